"""Two conditions at once on the shapes world: a caption and a map of classes, each dropped and guided on its own. Untried.

Either may be left out when sampling: --prompt alone, --map alone, or both, as
--guidance='{"name":"each","weights":[3,1.5]}', in the order of the parts.
Command: python train.py --config=configs/demo/several.py --workdir=runs/shapes/several --config.first_stage=runs/shapes/autoencoder
"""

from configs.base import ldm


def get_config():
    config = ldm()
    config.first_stage = "runs/shapes/autoencoder"
    config.data.update(source=dict(name="shapes", resolution=32, records=0, world=0), batch=64, fields=dict(
        tokens=dict(name="captions", tokenizer=dict(name="bytes")), map=dict(name="segmentation")))
    config.network.update(time_width=128, levels=(
        dict(width=64, blocks=1, attention="none", heads=1, depth=1, down="conv"),
        dict(width=128, blocks=1, attention="transformer", heads=4, depth=1, down="none"),
    ))
    text = dict(name="bert_text", width=128, layers=2, heads=4, head_width=32, vocabulary=259, length=96, bos=256, eos=257, pad=258,
                logits=False, drop=0.1)
    of_map = dict(name="semantic_map", classes=25, halvings=2, channels=8, drop=0.1)
    config.conditioner = dict(name="several", drops="apart", all=0.1, parts=(text, of_map))
    config.learning_rate.update(peak=1e-3, warmup=100, steps=2500)
    config.ema.decay = 0.998
    del config.sampling["guidance"]  # a number by default, and of another type
    config.sampling.guidance = dict(name="each", weights=(2.0, 2.0))
    config.run.update(steps=2500, log_every=100, evaluate_every=500, preview_every=500, save_every=500)
    return config
