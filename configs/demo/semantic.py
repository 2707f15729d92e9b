"""Semantic map to image on the shapes world: the map of 25 classes, halved twice and mixed to 8 channels beside the latent. Untried.

Command: python train.py --config=configs/demo/semantic.py --workdir=runs/shapes/semantic --config.first_stage=runs/shapes/autoencoder
"""

from configs.demo import shapes_unconditional


def get_config():
    config = shapes_unconditional.get_config()
    config.data.fields = dict(map=dict(name="segmentation"))
    config.conditioner = dict(name="semantic_map", classes=25, halvings=2, channels=8, drop=0.1)
    return config
