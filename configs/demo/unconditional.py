"""Unconditional diffusion on the digits' latents: the demo's stage 2 without labels, to be guided by configs/demo/classifier.py.

Result, 500 samples a scale of the classifier: share of the asked class and Frechet distance at scale 0: 11.4 %, 26.2; 1: 72.8 %, 26.8;
2: 95.0 %, 32.5; 4: 99.6 %, 54.1; 8: 99.8 %, 91.6 (held-out digits: 99.2 %, 14.5).
1,000 steps, about 32 min on a fifth of 2 CPU cores (the machine was shared), 2026-11-20, jax 0.10.2.
Command: python train.py --config=configs/demo/unconditional.py --workdir=runs/demo/unconditional
    --config.first_stage=runs/demo/autoencoder
Then: python -m ldm_jax.cli.evaluate --model=runs/demo/unconditional --guide=runs/demo/classifier --scales=0,1,2,4,8
    --num_samples=500
"""

from configs.demo import ldm


def get_config():
    config = ldm.get_config()
    config.conditioner = dict(name="none")
    config.sampling.guidance = 1.0
    return config
