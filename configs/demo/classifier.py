"""Stage 3 of the demo: a classifier of the digits' noisy latents, to guide the model of configs/demo/unconditional.py.

Result: held-out accuracy 0.98, 0.96, 0.94 in the cleanest three tenths of times, 0.57 over all (the last four tenths fall to chance).
Guiding the unconditional model: the share of the asked class is 10 % at scale 0, 71 % at 1, 90 % at 2, 97.6 % at 4 (see there).
600 steps, about 2 min on 2 CPU cores that other work shared, 2026-11-20, jax 0.10.2.
Command: python train.py --config=configs/demo/classifier.py --workdir=runs/demo/classifier --config.first_stage=runs/demo/autoencoder
"""

from configs.base import classifier
from configs.demo import ldm


def get_config():
    config, diffusion = classifier(), ldm.get_config()
    for section in ("first_stage", "schedule", "time_input"):
        config[section] = diffusion[section]
    config.network.update(time_width=128, dropout=0.1, levels=diffusion.network.levels)
    config.learning_rate.update(peak=1e-3, warmup=50, steps=600)
    config.ema.decay = 0.99
    config.run.update(steps=600, log_every=100, evaluate_every=300, preview_every=300, save_every=300)
    return config
