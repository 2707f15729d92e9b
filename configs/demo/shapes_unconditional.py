"""Stage 2 on the shapes world, told nothing: the parent of the demos of every conditioning task. Untried.

Command: python train.py --config=configs/demo/shapes_unconditional.py --workdir=runs/shapes/unconditional \
    --config.first_stage=runs/shapes/autoencoder
"""

from configs.base import ldm

STEPS = 3600


def get_config():
    config = ldm()
    config.first_stage = "runs/shapes/autoencoder"
    config.data.update(source=dict(name="shapes", resolution=32, records=0, world=0), batch=32)
    config.network.update(time_width=192, levels=levels("plain"))
    config.conditioner = dict(name="none")
    config.learning_rate.update(peak=1.5e-3, warmup=100, steps=STEPS)
    config.ema.decay = 0.998
    config.sampling.guidance = 1.0
    config.run.update(steps=STEPS, log_every=100, evaluate_every=1200, preview_every=1200, save_every=600)
    return config


def levels(attention: str) -> tuple:
    return (dict(width=48, blocks=1, attention=attention, heads=4, depth=1, down="conv"),
            dict(width=96, blocks=1, attention=attention, heads=4, depth=1, down="none"))
