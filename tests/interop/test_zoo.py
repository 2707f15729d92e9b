"""The zoo's rows against published_rows.py, typed by hand: conventions, parameters and tensors; and recognised."""

import math

import pytest

from ldm_jax.interop.recognise import recognise
from ldm_jax.interop.zoo import HEADS, ZOO
from tests.interop.published_rows import FIRST_STAGE_ROWS, NETWORK_ROWS, SAMPLING_ROWS, STAGES, heads_of, stage_of, told
from tests.interop.zoo_files import file_of

FIRST_STAGES = {  # millions of parameters, tensors
    "kl-f4": (55.31, 204), "kl-f8": (83.65, 248), "kl-f16": (69.61, 342), "kl-f32": (103.88, 436), "vq-f4": (55.32, 205),
    "vq-f4-noattn": (53.22, 185), "vq-f8": (67.72, 299), "vq-f8-n256": (67.65, 299), "vq-f16": (69.59, 343), "sd-vae": (83.65, 248),
    "sdxl-vae": (83.65, 248)}
NETWORKS = {
    "celeba256": (274.06, 368), "ffhq256": (274.06, 368), "lsun-beds256": (274.06, 368), "lsun-churches256": (294.97, 520),
    "cin256": (394.98, 626), "cin256-v2": (400.92, 688), "text2img256": (403.62, 688), "text2img-large": (872.30, 686),
    "layout2img": (246.28, 1328), "semantic256": (215.23, 216), "semantic512": (215.23, 216), "bsr-sr": (113.62, 306),
    "inpainting-big": (387.25, 416), "rdm768": (1335.48, 688), "rdm-imagenet": (400.92, 688), "rdm-ffhq": (414.71, 688),
    "sd1": (859.52, 686), "sd1-inpainting": (859.54, 686), "sd2-base": (865.91, 686), "sd2": (865.91, 686),
    "sd2-inpainting": (865.93, 686), "sd2-depth": (865.91, 686), "sd2-x4-upscaler": (473.40, 687), "sdxl": (2567.46, 1680),
    "sdxl-refiner": (2259.53, 1220)}
QUICK = ("kl-f16", "vq-f4-noattn", "vq-f8", "lsun-churches256", "cin256-v2", "semantic256", "inpainting-big", "sd1", "sdxl")
ASKED = {"kl-f8": "scale_factor", "sd-vae": "scale_factor", "sdxl-vae": "scale_factor", "sd2-base": "prediction", "sd2": "prediction"}


def kinds():
    return [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in QUICK)) for kind in ZOO]


def test_every_kind_is_counted():
    """Catches a kind that is added without its numbers."""
    assert list(FIRST_STAGES | NETWORKS) == list(ZOO) == list(FIRST_STAGE_ROWS | NETWORK_ROWS)


@pytest.mark.parametrize("kind", FIRST_STAGE_ROWS)
def test_first_stages_are_as_published(kind):
    """Catches a level, an attention, a codebook or a scale factor that no file can tell, since it was given to the wrong kind."""
    row = ZOO[kind]
    assert ((stage_of(row.first_stage), row.scale_factor), row.sections, row.resolution) == (FIRST_STAGE_ROWS[kind], {}, 256)


@pytest.mark.parametrize("kind", NETWORK_ROWS)
def test_networks_are_as_published(kind):
    """Catches heads by another rule, another end of the betas, v for noise, a factor, a first stage or a conditioner of a relative:
    what no tensor says, so that a file read with it gives images that are wrong without a word."""
    row, (heads, ends, prediction, stage, factor, side, conditioner) = ZOO[kind], NETWORK_ROWS[kind]
    sections = row.sections
    assert heads in heads_of(sections["network"]) and (HEADS[kind].by, HEADS[kind].number) == (heads[:5], int(heads[5:]))
    assert sections["schedule"] == dict(name="scaled_linear", start=ends[0], end=ends[1], steps=1000)
    assert (sections["prediction"], sections["time_input"]) == (dict(name=prediction), dict(name="index"))
    multipliers, attention, *rest = STAGES[stage]
    assert stage_of(row.first_stage) == (multipliers, tuple(at * side // 256 for at in attention), *rest)
    assert (row.scale_factor, row.resolution, told(sections["conditioner"], row.classes)) == (factor, side, conditioner)


@pytest.mark.parametrize("kind", SAMPLING_ROWS)
def test_sampling_is_as_published(kind):
    """Catches a deterministic sampler where the published numbers were made with noise, and another number of steps."""
    sampling = ZOO[kind].sections["sampling"]
    name, eta = sampling["sampler"]["name"], sampling["sampler"].get("eta", 0.0)
    assert (name, sampling["steps"], sampling["guidance"], eta) == SAMPLING_ROWS[kind]


@pytest.mark.parametrize("kind", kinds())
def test_counts(kind):
    """Catches any block, skip, attention or bias too many or too few, at any level, and a wrong width, depth or number of codes."""
    prefix = "model.diffusion_model." if kind in NETWORKS else ""
    shapes = {name: shape for name, shape in file_of(ZOO[kind]).items() if name.startswith(prefix)}
    millions, tensors = (NETWORKS | FIRST_STAGES)[kind]
    assert (round(sum(map(math.prod, shapes.values())) / 1e6, 2), len(shapes)) == (millions, tensors)


def unsampled(row):
    """What a file decides: models that differ in how they are sampled alone are one."""
    return {key: section for key, section in row.sections.items() if key != "sampling"}


@pytest.mark.parametrize("kind", kinds())
def test_full_size_files_are_recognised(kind):
    """Catches a row that its own file does not lead back to: heads, schedule or conditioner of a relative."""
    row, given = ZOO[kind], kind if kind in ASKED else ""
    described, parts = recognise(file_of(row), kind=given, where="x.ckpt")
    same = [other for other in ZOO if unsampled(ZOO[other]) == unsampled(row) != {}]  # celeba256 and its likes are one model
    assert kind in parts.like and described.kind == ("" if len(same) > 1 else kind)
    assert unsampled(described) == unsampled(row) and described.first_stage == row.first_stage
    assert described.sections.get("sampling") == ZOO[parts.like[0]].sections.get("sampling")
    assert (described.scale_factor, described.classes) == (row.scale_factor, row.classes)
    assert parts.proj == ("linear" if kind.startswith(("sd2", "sdxl")) and row.sections else "conv")
