"""Stage 1 of the demos on the shapes world: colour, f = 4, four latent channels, KL. Untried.

Command: python train.py --config=configs/demo/shapes_autoencoder.py --workdir=runs/shapes/autoencoder
"""

from configs.base import autoencoder


def get_config():
    config = autoencoder()
    config.data.update(source=dict(name="shapes", resolution=32, records=0, world=0), batch=16)
    config.model.update(width=16, multipliers=(1, 2, 8), blocks=1, middle_attention=False, latent_channels=4)
    config.loss.pixel = "l2"  # l1 learns the greys of the ground first, and the colours late
    config.loss.kl = 5e-3  # at 1e-6 twelve nats a number are kept, which a diffusion model must learn, for the same pictures
    config.learning_rate.update(peak=2e-3, warmup=50, steps=4000)
    config.ema.decay = 0.995
    config.run.update(steps=4000, log_every=100, evaluate_every=500, preview_every=1000, save_every=500)
    return config
