"""Unconditional diffusion on the digits' latents, untried: the demo's stage 2 without labels, to be guided by configs/demo/classifier.py.

Command: python train.py --config=configs/demo/unconditional.py --workdir=runs/demo/unconditional
    --config.first_stage=runs/demo/autoencoder
"""

from configs.demo import ldm


def get_config():
    config = ldm.get_config()
    config.conditioner = dict(name="none")
    config.sampling.guidance = 1.0
    return config
