"""Every published model that this package knows, by kind: ZOO[kind] is its Description, HEADS[kind] how its family counts heads.

Numbers: the configs and the code of the CompVis and Stability repositories.
A scale_factor of 0 stands for one that only the file knows (lsun-churches256 keeps it in a buffer).
"""

import dataclasses

from ldm_jax.interop.description import Description
from ldm_jax.interop.families import (
    CLIP_L,
    OPEN_CLIP_BIG_G,
    OPEN_CLIP_H,
    Heads,
    Net,
    bert_text,
    clip_text,
    first_stage,
    sampling,
    scaled_linear,
    several,
)

KL_F8 = first_stage((1, 2, 4, 4), 4)
FIRST_STAGES = {
    "kl-f4": first_stage((1, 2, 4), 3),
    "kl-f8": KL_F8,
    "kl-f16": first_stage((1, 1, 2, 2, 4), 16, (16,)),
    "kl-f32": first_stage((1, 1, 2, 2, 4, 4), 64, (16, 8)),
    "vq-f4": first_stage((1, 2, 4), 3, codes=8192),
    "vq-f4-noattn": first_stage((1, 2, 4), 3, codes=8192, middle_attention=False),
    "vq-f8": first_stage((1, 2, 2, 4), 4, (32,), codes=16384),
    "vq-f8-n256": first_stage((1, 2, 2, 4), 4, (32,), codes=256),
    "vq-f16": first_stage((1, 1, 2, 2, 4), 8, (16,), codes=16384),
    "sd-vae": KL_F8,
    "sdxl-vae": KL_F8,
}
SCALES = {"sd-vae": 0.18215, "sdxl-vae": 0.13025}  # of first stages alone; the others were published without one
UPSCALER_STAGE = first_stage((1, 2, 4), 4)

WIDE_32, WIDE_64, EIGHT, ONE = Heads("width", 32), Heads("width", 64), Heads("count", 8), Heads("count", 1)
CELEBA = Net(224, (1, 2, 3, 4), (2, 4, 8), "plain", WIDE_32)
CIN_V2 = Net(192, (1, 2, 3, 5), (2, 4, 8), "transformer", ONE)
LAYOUT = Net(128, (1, 2, 3, 4), (2, 4, 8), "transformer", WIDE_32, depth=3)
SEMANTIC = Net(128, (1, 4, 8), (), "plain", EIGHT)
SD1 = Net(320, (1, 2, 4, 4), (1, 2, 4), "transformer", EIGHT)
SD2 = dataclasses.replace(SD1, heads=WIDE_64)
NETS = {
    "celeba256": CELEBA,
    "ffhq256": CELEBA,
    "lsun-beds256": CELEBA,
    "lsun-churches256": Net(192, (1, 2, 2, 4, 4), (1, 2, 4, 8), "plain", EIGHT, down="residual", scale_shift=True),
    "cin256": Net(256, (1, 2, 4), (1, 2, 4), "transformer", WIDE_32),
    "cin256-v2": CIN_V2,
    "text2img256": dataclasses.replace(CIN_V2, heads=WIDE_32),
    "text2img-large": SD1,
    "layout2img": LAYOUT,
    "semantic256": SEMANTIC,
    "semantic512": SEMANTIC,
    "bsr-sr": Net(160, (1, 2, 2, 4), (8,), "plain", WIDE_32),
    "inpainting-big": Net(256, (1, 2, 3, 4), (2, 4, 8), "plain", EIGHT, down="residual"),
    "rdm768": Net(448, (1, 2, 3, 4), (1, 2, 4), "transformer", WIDE_32),
    "rdm-imagenet": dataclasses.replace(CIN_V2, heads=WIDE_32),
    "rdm-ffhq": dataclasses.replace(CELEBA, attention="transformer"),
    "sd1": SD1,
    "sd1-inpainting": SD1,
    "sd2-base": SD2,
    "sd2": SD2,
    "sd2-inpainting": SD2,
    "sd2-depth": SD2,
    "sd2-x4-upscaler": Net(256, (1, 2, 2, 4), (2, 4, 8), "transformer", EIGHT, vector="added", cross_only=(2, 4)),
    "sdxl": Net(320, (1, 2, 4), (2, 4), "transformer", WIDE_64, depth=(1, 2, 10)),
    "sdxl-refiner": Net(384, (1, 2, 4, 4), (2, 4), "transformer", WIDE_64, depth=4),
}

NOTHING = dict(name="none")
SD1_TEXT = clip_text(CLIP_L)
SD2_TEXT = clip_text(OPEN_CLIP_H, skip=1)
SDXL_TEXT = dict(name="two_clip_text", first=CLIP_L | dict(skip=1, final_norm=False), untold="zeros", drop=0.1,
                 second=OPEN_CLIP_BIG_G | dict(skip=1, final_norm=False))
INPAINTING = dict(name="inpainting", order=("mask", "masked"), hole=0.0)
BOXES = bert_text(512, 16, vocabulary=8192, length=92, bos=-1, eos=-1, drop=0.0, reads="boxes_tokens")  # 30 boxes of 3 ids, a crop of 2
SEMANTIC_MAP = dict(name="semantic_map", classes=182, halvings=2, channels=3)
CONDITIONERS = {  # those not named are told nothing
    "cin256": dict(name="class", width=512, drop=0.0, into="tokens"),
    "cin256-v2": dict(name="class", width=512, drop=0.1, into="tokens"),
    "text2img256": bert_text(640, 32),
    "text2img-large": bert_text(1280, 32),
    "layout2img": BOXES,
    "semantic256": SEMANTIC_MAP,
    "semantic512": SEMANTIC_MAP,
    "bsr-sr": dict(name="low_resolution"),
    "inpainting-big": dict(name="inpainting", order=("masked", "mask"), hole=-1.0),
    # No file of a retrieval model was at hand: besides unconditional_guidance_vex, which is left out, it may hold tensors (of its searcher)
    # that no one here has seen; such a file is refused with their names.
    "rdm768": dict(name="tokens", width=768, count=1, drop=0.1),
    "rdm-imagenet": dict(name="tokens", width=512, count=4, drop=0.1),
    "rdm-ffhq": dict(name="tokens", width=512, count=4, drop=0.1),
    "sd1": SD1_TEXT,
    "sd1-inpainting": several(SD1_TEXT, INPAINTING),
    "sd2-base": SD2_TEXT,
    "sd2": SD2_TEXT,
    "sd2-inpainting": several(SD2_TEXT, INPAINTING),
    "sd2-depth": several(SD2_TEXT, dict(name="depth")),
    "sd2-x4-upscaler": several(SD2_TEXT, dict(name="low_resolution", levels=1000, width=1024)),
    "sdxl": several(SDXL_TEXT, dict(name="sizes", count=6, width=256)),
    "sdxl-refiner": several(clip_text(OPEN_CLIP_BIG_G, skip=1, final_norm=False, vector="pooled"), dict(name="sizes", count=5, width=256)),
}

SD_SCHEDULE, LDM_SCHEDULE = scaled_linear(0.00085, 0.012), scaled_linear(0.0015, 0.0195)
ENDS = {"lsun-churches256": 0.0155, "layout2img": 0.0205, "semantic256": 0.0205, "semantic512": 0.0205, "bsr-sr": 0.0155,
        "inpainting-big": 0.0205, "rdm768": 0.015}
STAGES = {"lsun-churches256": "kl-f8", "cin256": "vq-f8", "text2img-large": "kl-f8", "inpainting-big": "vq-f4-noattn", "rdm768": "kl-f16",
          "sdxl": "sdxl-vae", "sdxl-refiner": "sdxl-vae"}  # of the others: vq-f4 of LDM's, sd-vae of Stable Diffusion's
FACTORS = {"lsun-churches256": 0.0, "text2img-large": 0.18215, "rdm768": 0.22765929, "sd2-x4-upscaler": 0.08333}
SIDES = {"semantic512": 512, "rdm768": 768, "sd2": 768, "sdxl": 1024, "sdxl-refiner": 1024}
SAMPLING = {  # those not named: 200 steps of ddim without noise
    "ffhq256": sampling("ddim", 200, eta=1.0),
    "lsun-beds256": sampling("ddim", 200, eta=1.0),
    "cin256": sampling("ddim", 200, eta=1.0),
    "cin256-v2": sampling("ddim", 20, 3.0),
    "text2img256": sampling("ddim", 200, 5.0),
    "text2img-large": sampling("ddim", 200, 5.0),
    "inpainting-big": sampling("ddim", 50),
    "bsr-sr": sampling("ddim", 100),
    "rdm768": sampling("plms", 50, 5.0),
    "rdm-imagenet": sampling("ddim", 100, 2.0),
    "rdm-ffhq": sampling("ddim", 100, 2.0),
    "sd1": sampling("plms", 50, 7.5),
    "sd2-base": sampling("plms", 50, 9.0),
    "sd2": sampling("ddim", 50, 9.0),
    "sd2-x4-upscaler": sampling("ddim", 75, 9.0),
}
SAMPLING |= {"sd1-inpainting": SAMPLING["sd1"], "sd2-inpainting": sampling("ddim", 50, 9.0), "sd2-depth": sampling("ddim", 50, 9.0)}
# SDXL on the times of diffusers' folders, 981 first of 50, since users compare with these; Stability's own code begins at 999 ("trailing").
EULER = sampling("euler", 50, 5.0) | dict(grid=dict(name="leading"))


def _diffusion(kind: str) -> Description:
    stable = kind.startswith("sd")
    schedule = SD_SCHEDULE if stable or kind == "text2img-large" else scaled_linear(0.0015, ENDS.get(kind, 0.0195))
    stage = FIRST_STAGES[STAGES.get(kind, "sd-vae" if stable else "vq-f4")]
    if kind == "sd2-x4-upscaler":
        schedule, stage = scaled_linear(1e-4, 0.02), UPSCALER_STAGE
    side = SIDES.get(kind, 512 if stable else 256)
    stage = stage | {"attention": tuple(at * side // 256 for at in stage["attention"])}
    factor = FACTORS.get(kind, SCALES[STAGES.get(kind, "sd-vae")] if stable else 1.0)
    sections = dict(network=NETS[kind].section(), conditioner=CONDITIONERS.get(kind, NOTHING), schedule=schedule,
                    prediction=dict(name="v" if kind in ("sd2", "sd2-x4-upscaler") else "noise"), time_input=dict(name="index"),
                    sampling=EULER if kind in ("sdxl", "sdxl-refiner") else SAMPLING.get(kind, sampling("ddim", 200)))
    return Description(kind, stage, sections, factor, side, classes=1000 if kind.startswith("cin256") else 0)


HEADS = {kind: net.heads for kind, net in NETS.items()}
ZOO = {kind: Description(kind, section, {}, SCALES.get(kind, 1.0), 256) for kind, section in FIRST_STAGES.items()}
ZOO |= {kind: _diffusion(kind) for kind in NETS}
