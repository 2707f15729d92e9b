"""Two conditions at once on the shapes world: a caption and a map of classes, each dropped and guided on its own. Untried.

Either may be left out of a sample: --prompt alone, --map alone, or both, as --guidance='{"name":"each","weights":[3,1.5]}' in the
order of the parts.
Command: python train.py --config=configs/demo/several.py --workdir=runs/shapes/several --config.first_stage=runs/shapes/autoencoder
"""

from configs.demo import semantic, text


def get_config():
    config, of_map = text.get_config(), semantic.get_config()
    config.data.fields.update(of_map.data.fields)
    parts = tuple(part.conditioner.to_dict() for part in (config, of_map))
    config.conditioner = dict(name="several", drops="apart", all_drop=0.1, parts=parts)
    del config.sampling["guidance"]  # a number there, and a section is of another type
    config.sampling.guidance = dict(name="each", weights=(2.0, 2.0))
    return config
