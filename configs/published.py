"""Untried: every published model of the zoo as a training run from scratch, with the sizes and rates that its authors published.

A first stage, and a diffusion model on it (which needs the first stage's kind, trained or converted):
  python train.py --config=configs/published.py:vq-f4 --workdir=runs/vq-f4 --config.data.source.folder=IMAGES
  python train.py --config=configs/published.py:celeba256 --workdir=runs/celeba256 --config.first_stage=runs/vq-f4 \
    --config.data.source.folder=IMAGES

Not as published: the perceptual loss is off until config.loss.perceptual_weights names a file (then set config.loss.perceptual=1), and
updates are clipped. Kinds that are told text, boxes, maps or masks build and load, and cannot be trained before the data has these.
"""

from configs.base import autoencoder, ldm
from ldm_jax.core.errors import UserError
from ldm_jax.interop.zoo import ZOO

ARGUMENTS = tuple(ZOO)
STAGES = {  # kind: (images a step, steps, first step of the critic, its weight, its layers)
    "kl-f4": (10, 176_991, 50_001, 0.5, 3),
    "kl-f8": (4, 246_803, 50_001, 0.5, 3),
    "kl-f16": (6, 442_998, 50_001, 0.5, 3),
    "kl-f32": (6, 406_763, 50_001, 0.5, 3),
    "vq-f4": (8, 533_066, 0, 0.75, 3),
    "vq-f4-noattn": (8, 658_131, 11, 0.75, 3),
    "vq-f8": (10, 971_043, 1, 0.6, 2),
    "vq-f8-n256": (10, 1_608_649, 250_001, 0.75, 3),
    "vq-f16": (14, 1_101_166, 250_001, 0.75, 2),
    "sd-vae": (192, 313_198, 0, 0.5, 3),
    "sdxl-vae": (256, 500_000, 50_001, 0.5, 3),
}
RATES = {  # kind: (learning rate, images a step, steps, loss); where the authors gave none, a round number
    "celeba256": (9.6e-5, 48, 410_000, "l2"),
    "ffhq256": (8.4e-5, 42, 635_000, "l2"),
    "lsun-beds256": (9.6e-5, 48, 1_900_000, "l2"),
    "lsun-churches256": (5e-5, 96, 500_000, "l1"),
    "cin256": (6.4e-5, 64, 4_800_000, "l2"),
    "cin256-v2": (1e-4, 1200, 178_000, "l2"),
    "text2img256": (5.6e-5, 28, 500_000, "l2"),
    "text2img-large": (5e-5, 680, 390_000, "l2"),
    "layout2img": (4.8e-5, 24, 4_400_000, "l1"),
    "semantic256": (8e-6, 8, 500_000, "l1"),
    "semantic512": (8e-6, 8, 500_000, "l1"),
    "bsr-sr": (6.4e-5, 64, 860_000, "l2"),
    "inpainting-big": (1e-6, 128, 360_000, "l1"),
    "rdm768": (1e-4, 64, 500_000, "l2"),
    "rdm-imagenet": (1e-4, 40, 500_000, "l2"),
    "rdm-ffhq": (1e-4, 50, 500_000, "l2"),
    "sd2-inpainting": (5e-5, 256, 500_000, "l2"),
}
STABLE = (1e-4, 2048, 595_000, "l2")
FLIPPED = ("lsun-churches256", "lsun-beds256")


def get_config(kind: str = ""):
    if kind not in ZOO:
        raise UserError(f"--config=configs/published.py:{kind}: expected a kind after the colon, one of {', '.join(ZOO)}")
    row = ZOO[kind]
    config = ldm() if row.sections else autoencoder()
    labels = dict(labels="folders") if row.classes else dict(labels="none")
    config.data = dict(source=dict(name="images", folder="", channels=row.channels, captions="", held_out=0.05, links="inside") | labels,
                       transforms=(dict(name="crop_resize", crop="random"), *(dict(name="flip"),) * (kind in FLIPPED)),
                       resolution=row.resolution, batch=1)
    config.ema.decay = 0.9999
    if row.sections:
        _diffusion(config, row)
    else:
        _first_stage(config, row)
    config.run.update(log_every=100, evaluate_every=10_000, preview_every=10_000, save_every=10_000)
    return config


def _first_stage(config, row) -> None:
    batch, steps, begins, weight, layers = STAGES[row.kind]
    config.data.batch = batch
    config.model = dict(row.first_stage)
    config.optimizer = dict(name="adam", b1=0.5, b2=0.9, eps=1e-8)
    config.learning_rate = dict(name="constant", peak=4.5e-6 * batch, warmup=0)
    config.critic = dict(name="patch", width=64, layers=layers, loss="hinge", weight=weight, start=begins)
    config.run.steps = steps


def _diffusion(config, row) -> None:
    peak, batch, steps, loss = RATES.get(row.kind, STABLE)
    config.data.batch = batch
    for name, section in row.sections.items():
        config[name] = dict(section)
    config.loss.name = loss
    config.optimizer = dict(name="adamw", b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01, decay="all")
    config.learning_rate = dict(name="constant", peak=peak, warmup=10_000)
    config.run.steps = steps
