"""Layout to image on the shapes world: boxes and what they hold as ids, read by a small BERT-like encoder. Untried.

Command: python train.py --config=configs/demo/layout.py --workdir=runs/shapes/layout --config.first_stage=runs/shapes/autoencoder
"""

from configs.demo import shapes_unconditional


def get_config():
    config = shapes_unconditional.get_config()
    config.data.fields = dict(boxes_tokens=dict(name="boxes"))
    config.conditioner = dict(name="bert_text", reads="boxes_tokens", width=96, layers=2, heads=4, head_width=24, vocabulary=1025, length=8,
                              bos=-1, eos=-1, pad=1024, logits=False, drop=0.1)  # two objects and the crop; corners on a grid of 32 x 32
    config.network.levels = shapes_unconditional.levels("transformer")
    config.sampling.guidance = 2.0
    return config
