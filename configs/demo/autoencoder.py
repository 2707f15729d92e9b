"""Untried (numbers follow)."""

from configs.common import autoencoder


def get_config():
    config = autoencoder()
    config.model.update(width=16, multipliers=(1, 2, 4), blocks=1, middle_attention=False)
    config.data.batch = 32
    config.learning_rate.update(peak=2e-3, warmup=30, steps=800)
    config.run.update(steps=800, log_every=50, evaluate_every=400, preview_every=400, save_every=400)
    return config
