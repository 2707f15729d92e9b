"""Stage 1 of the demos on the shapes world: colour, f = 4, four latent channels, KL. Untried.

Command: python train.py --config=configs/demo/shapes_autoencoder.py --workdir=runs/shapes/autoencoder
"""

from configs.base import autoencoder


def get_config():
    config = autoencoder()
    config.data.update(source=dict(name="shapes", resolution=32, records=0, world=0), batch=32)
    config.model.update(width=16, multipliers=(1, 2, 4), blocks=1, middle_attention=False, latent_channels=4, groups=4)
    config.learning_rate.update(peak=2e-3, warmup=50, steps=1800)
    config.ema.decay = 0.995
    config.run.update(steps=1800, log_every=100, evaluate_every=300, preview_every=900, save_every=300)
    return config
