"""Inpainting on the shapes world: the masked image's latent and the mask beside the latent; strokes, boxes, borders and all. Untried.

Command: python train.py --config=configs/demo/inpainting.py --workdir=runs/shapes/inpainting --config.first_stage=runs/shapes/autoencoder
"""

from configs.demo import shapes_unconditional


def get_config():
    config = shapes_unconditional.get_config()
    config.data.fields = dict(mask=dict(name="mixed_mask"))
    config.conditioner = dict(name="inpainting")
    return config
