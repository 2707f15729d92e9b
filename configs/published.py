"""Untried: every published model of the zoo as a training run from scratch, with its authors' sizes and rates where known.

A first stage, and a diffusion model on it (which needs the first stage's kind, trained or converted):
  python train.py --config=configs/published.py:vq-f4 --workdir=runs/vq-f4 --config.data.source.folder=IMAGES
  python train.py --config=configs/published.py:celeba256 --workdir=runs/celeba256 --config.first_stage=runs/vq-f4 \
    --config.data.source.folder=IMAGES

Not as published:
- The perceptual loss is off until config.loss.perceptual_weights names a file (then set config.loss.perceptual=1), and updates are clipped.
- Text, boxes, maps and masks: config.data.fields must say how batches get them; configs/papers.py does so for the data sets.
- Numbers that the authors did not give are ours; UNPUBLISHED says which of which kind. A rate is the authors' base rate times the images of
  a step, on one device, where they wrote one; theirs was multiplied by devices too.
- sd1 is 1.1 to 1.5 in one run at 512: 237k, 194k, 515k and 595k steps, of which the first 237k were at 256. sd-vae was trained on from
  kl-f8 (config.init_from), its decoder alone, and sd1-inpainting (440k steps) from sd1.
- Conditions are dropped at 10 % wherever guidance is meant; the authors said so of Stable Diffusion 1.3 to 1.5 only.
- inpainting-big: its rate began at a hundredth of its highest, here at 0.
- lsun-churches256 measured the scale of its latents on the first batch; here it is that of the first stage's run.
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
RATES = {  # kind: (learning rate, images a step, steps, loss, updates of warm-up)
    "celeba256": (9.6e-5, 48, 410_000, "l2", 0),
    "ffhq256": (8.4e-5, 42, 635_000, "l2", 0),
    "lsun-beds256": (9.6e-5, 48, 1_900_000, "l2", 0),
    "lsun-churches256": (5e-5, 96, 500_000, "l1", 10_000),
    "cin256": (6.4e-5, 64, 4_800_000, "l2", 0),
    "cin256-v2": (1e-4, 1200, 178_000, "l2", 0),
    "text2img256": (5.6e-5, 28, 500_000, "l2", 0),
    "text2img-large": (5e-5, 680, 390_000, "l2", 0),
    "layout2img": (4.8e-5, 24, 4_400_000, "l1", 0),
    "semantic256": (8e-6, 8, 500_000, "l1", 0),
    "semantic512": (8e-6, 8, 500_000, "l1", 0),
    "bsr-sr": (6.4e-5, 64, 860_000, "l2", 0),
    "inpainting-big": (1.28e-5, 128, 360_000, "l1", 1000),  # 1e-6 x 128 images x 0.1
    "rdm768": (1e-4, 64, 500_000, "l2", 0),
    "rdm-imagenet": (1e-4, 40, 500_000, "l2", 100),
    "rdm-ffhq": (1e-4, 50, 500_000, "l2", 10_000),
    "sd1": (1e-4, 2048, 1_541_000, "l2", 10_000),
    "sd1-inpainting": (1e-4, 2048, 440_000, "l2", 10_000),
    "sd2-inpainting": (5e-5, 2048, 500_000, "l2", 10_000),
}
STABLE = (1e-4, 2048, 500_000, "l2", 10_000)  # of the other kinds of Stable Diffusion 2 and XL
WHOLE = ("rate", "images", "steps", "warm-up")
UNPUBLISHED = {  # kind: which of its numbers are ours, or those of a relative
    "sd-vae": ("rate", "critic"),
    "sdxl-vae": ("rate", "steps", "critic"),
    "text2img256": ("steps",),
    "semantic256": ("rate", "images", "steps"),
    "semantic512": ("steps",),
    "bsr-sr": ("steps",),
    "inpainting-big": ("rate", "images", "steps"),
    "rdm768": ("images", "steps"),
    "rdm-imagenet": ("steps",),
    "rdm-ffhq": ("steps",),
    "sd1-inpainting": ("rate", "images", "warm-up"),
    "sd2-inpainting": ("images", "steps", "warm-up"),
} | dict.fromkeys(("sd2-base", "sd2", "sd2-depth", "sd2-x4-upscaler", "sdxl", "sdxl-refiner"), WHOLE)
STAGE_RATES = {"sd-vae": 4.5e-5, "sdxl-vae": 4.5e-5}  # of the others: 4.5e-6 an image of the step
AVERAGED = ("sd-vae", "sdxl-vae")  # of the first stages; the others were published without an average
NOT_AVERAGED = ("cin256-v2", "text2img-large")  # of the diffusion models
FLIPPED = ("lsun-churches256", "lsun-beds256")


def get_config(kind: str = ""):
    if kind not in ZOO:
        raise UserError(f"--config=configs/published.py:{kind}: expected a kind after the colon, one of {', '.join(ZOO)}")
    row = ZOO[kind]
    config = ldm() if row.sections else autoencoder()
    labels = dict(labels="folders") if row.classes else dict(labels="none")
    config.data = dict(source=dict(name="images", folder="", channels=row.channels, captions="", held_out=0.05, links="inside") | labels,
                       transforms=(dict(name="crop_resize", crop="random"), *(dict(name="flip"),) * (kind in FLIPPED)), variants=0,
                       fields=dict(), cache="", resolution=row.resolution, batch=1)
    config.ema.decay = 0.9999 if (kind not in NOT_AVERAGED if row.sections else kind in AVERAGED) else 0.0
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
    config.learning_rate = dict(name="constant", peak=STAGE_RATES.get(row.kind, 4.5e-6 * batch), warmup=0)
    config.critic = dict(name="patch", width=64, layers=layers, loss="hinge", weight=weight, start=begins)
    config.run.steps = steps


def _diffusion(config, row) -> None:
    peak, batch, steps, loss, warmup = RATES.get(row.kind, STABLE)
    config.data.batch = batch
    for name, section in row.sections.items():
        config[name] = dict(section)
    config.loss.name = loss
    config.optimizer = dict(name="adamw", b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01, decay="all")
    config.learning_rate = dict(name="constant", peak=peak, warmup=warmup)
    if row.kind == "inpainting-big":
        config.learning_rate = dict(name="cosine", peak=peak, warmup=warmup, steps=50_000, end=peak * 1e-3)
    config.run.steps = steps
