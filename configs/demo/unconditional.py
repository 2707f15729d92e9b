"""Unconditional diffusion on the digits' latents: the demo's stage 2 without labels, to be guided by configs/demo/classifier.py.

Result, 500 samples a scale of the classifier: share of the asked class and Frechet distance at scale 0: 9.8 %, 25.3; 1: 70.6 %, 26.5;
2: 90.0 %, 26.5; 4: 97.6 %, 43.7; 8: 98.8 %, 77.0 (held-out digits: 99.2 %, 14.5).
1,000 steps, about 11 min on 2 CPU cores that other work shared, 2026-11-20, jax 0.10.2.
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
