"""Super-resolution x4 on the shapes world: the image reduced to 8x8 by bicubic, beside the latent. Untried.

Command: python train.py --config=configs/demo/super_resolution.py --workdir=runs/shapes/super_resolution \
    --config.first_stage=runs/shapes/autoencoder
"""

from configs.demo import shapes_unconditional


def get_config():
    config = shapes_unconditional.get_config()
    config.data.fields = dict(low_res=dict(name="bicubic"))
    config.conditioner = dict(name="low_resolution")
    return config
