"""Stage 2 of the demo: class-conditional diffusion on the digits' latents.

Result: 1,000 samples at guidance 1.25: 99.6 % of their intended class, Frechet ratio 1.89. 1,000 steps, about 4 min on 2 CPU cores,
2026-11-20, jax 0.10.2.
Command: python train.py --config=configs/demo/ldm.py --workdir=runs/demo/ldm --config.first_stage=runs/demo/autoencoder
"""

from configs.base import ldm


def get_config():
    config = ldm()
    config.first_stage = "runs/demo/autoencoder"
    config.network.update(time_width=192, levels=(
        dict(width=48, blocks=1, attention="none", heads=1, depth=1, down="conv"),
        dict(width=96, blocks=1, attention="plain", heads=4, depth=1, down="none"),
    ))
    config.learning_rate.update(peak=2e-3, warmup=50, steps=1000)
    config.ema.decay = 0.995
    config.sampling.guidance = 1.25
    config.run.update(steps=1000, log_every=100, evaluate_every=500, preview_every=500, save_every=500)
    return config
