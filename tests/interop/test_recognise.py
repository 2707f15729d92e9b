"""Files of small relatives of the published models, and what is told when no tensor says which model a file is."""

import dataclasses

import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.interop.described import single_file_shapes
from ldm_jax.interop.families import Heads
from ldm_jax.interop.recognise import Parts, recognise
from ldm_jax.interop.zoo import HEADS, ZOO
from tests.interop.zoo_files import file_of, smaller

SMALL = {  # kind: width, multipliers, attended, depth
    "sd1": smaller("sd1", 32, (1, 2), (1,)),
    "sd2": smaller("sd2", 64, (1, 2), (1,)),
    "sdxl": smaller("sdxl", 64, (1, 2), (2,), depth=(1, 2)),
    "sd2-x4-upscaler": smaller("sd2-x4-upscaler", 32, (1, 2, 2), (2, 4), text=48, levels=20),
    "lsun-churches256": smaller("lsun-churches256", 32, (1, 2), (1,), blocks=2),
    "text2img256": smaller("text2img256", 32, (1, 2), (2,), blocks=2),
    "cin256-v2": smaller("cin256-v2", 32, (1, 2), (2,)),
    "inpainting-big": smaller("inpainting-big", 32, (1, 2), ()),
}


class Files(dict):
    """kind -> the names and shapes of its small relative, made when they are asked for."""

    def __missing__(self, kind):
        self[kind] = file_of(dataclasses.replace(SMALL[kind], kind="sd2" * kind.startswith(("sd2", "sdxl"))))
        return self[kind]


@pytest.fixture(scope="module")
def files():
    return Files()


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.slow] * (k in ("cin256-v2", "text2img256"))) for k in SMALL])
def test_small_relatives_are_recognised(kind, files):
    """Catches structure taken from a row instead of from the tensors: residual resampling read as a block more, attention of one
    level read as all levels', depth or codes of the published model; and heads that do not follow the family's rule."""
    described, parts = recognise(files[kind], kind="sd2" if kind == "sd2" else "", where="x.ckpt")
    assert parts.like == (kind,)
    assert described == SMALL[kind]
    assert described.kind == ""


def test_where_the_parts_stand(files):
    """Catches a prefix or a form that a reader could not use, and a scale factor that goes unnoticed."""
    clip = ("conditioner.embedders.0.transformer.", "hf"), ("conditioner.embedders.1.model.", "openclip")
    assert recognise(files["sdxl"])[1] == Parts("model.diffusion_model.", "first_stage_model.", clip, "linear", "text_time", False,
                                                ("sdxl",))
    churches = files["lsun-churches256"] | {"model_ema.diffusion_modelout2bias": (4,)}
    assert recognise(churches)[1] == Parts("model.diffusion_model.", "first_stage_model.", (), "conv", "", True,
                                           ("lsun-churches256",))
    assert recognise(files["sd2-x4-upscaler"])[1].conditioner == (("cond_stage_model.model.", "openclip"),)
    again = {f"cond_stage_model.{name.removeprefix('first_stage_model.')}": shape for name, shape in files["inpainting-big"].items()
             if name.startswith("first_stage_model.")}
    assert recognise(files["inpainting-big"] | again)[1].conditioner == (("cond_stage_model.", "first_stage"),)


def test_an_old_clip_without_its_first_word(files):
    """Catches a file whose text encoder has no "text_model.": older and newer transformers wrote it so."""
    flat = {name.replace("text_model.", ""): shape for name, shape in files["sd1"].items()}
    assert recognise(flat) == recognise(files["sd1"])


@pytest.mark.slow
def test_a_network_without_its_text_encoder_is_not_a_retrieval_model():
    """Catches a pruned Stable Diffusion taken for a model that is told embeddings: its heads are others."""
    pruned = {name: shape for name, shape in file_of(ZOO["sd1"]).items() if not name.startswith("cond_stage_model.")}
    described, parts = recognise(pruned)
    assert (described.kind, parts.conditioner) == ("sd1", ())


@pytest.mark.parametrize("kind, given, heads", [("sd1", "", Heads("count", 8)), ("sd2", "sd2", Heads("width", 64))])
def test_heads_follow_the_family(kind, given, heads, files):
    """Catches the two rules exchanged: 8 heads at any width, or heads of 64 channels."""
    level = recognise(files[kind], kind=given)[0].sections["network"]["levels"][0]
    assert HEADS[kind] == heads and level["heads"] == heads.of(level["width"])


@pytest.mark.parametrize("kind, shown", [
    ("sd2", ["x.ckpt: it may be sd2-base or sd2", "prediction: noise (sd2-base), v (sd2)", "--kind=sd2"]),
    ("kl-f8", ["kl-f8, sd-vae or sdxl-vae", "scale_factor: 1.0 (kl-f8), 0.18215 (sd-vae), 0.13025 (sdxl-vae)"])])
def test_several_kinds_that_fit(kind, shown, files):
    """Catches a guess where no tensor decides: a v model sampled as one of noise gives noise."""
    shapes = files["sd2"] if kind == "sd2" else single_file_shapes(dataclasses.replace(ZOO["kl-f8"], first_stage=SMALL["sd1"].first_stage))
    with pytest.raises(UserError) as error:
        recognise(shapes, where="x.ckpt")
    assert all(part in str(error.value) for part in shown), error.value
    assert "\n" not in str(error.value)
    base = recognise(shapes, kind="sd2-base" if kind == "sd2" else "sd-vae")[0]
    assert base.sections.get("prediction", dict(name="noise")) == dict(name="noise") and base.scale_factor == 0.18215


def refusal(shapes, kind=""):
    with pytest.raises(UserError) as error:
        recognise(shapes, kind, "x.ckpt")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_kind_that_does_not_fit(files):
    """Catches a message that names neither the tensors that differ nor what the file is."""
    told = refusal(files["sd1"], "kl-f4")
    assert "kind=kl-f4 does not fit" in told and "conditioners hf" in told and "a U-Net of 4 -> 4 channels" in told
    bare = {name.removeprefix("first_stage_model."): shape for name, shape in files["inpainting-big"].items() if "first_stage" in name}
    told = refusal(bare, "kl-f4")
    assert "quantize.embedding.weight [16, 3] is not of this architecture" in told and "a VQ of 16 codes autoencoder f2" in told


@pytest.mark.slow
def test_a_full_size_file_of_another_kind():
    """Catches a kind that is taken because its required traits agree, where the file is exactly another: the heads would be wrong."""
    told = refusal(file_of(ZOO["sd1"]), "sd1-inpainting")
    assert "input_blocks.0.0.weight is [320, 4, 3, 3], expected [320, 9, 3, 3]" in told and "that is sd1" in told
    told = refusal(file_of(ZOO["cin256-v2"]) | {"cond_stage_model.embedding.weight": (1001, 512)}, "cin256")
    assert "that is cin256-v2" in told


def test_what_is_no_model_of_the_family(files):
    """Catches a traceback for a file of something else, a damaged one, or a kind that there is not."""
    assert "no U-Net (model.diffusion_model.input_blocks...)" in refusal({"decoder.weight": (3, 3)})
    broken = {name: shape for name, shape in files["sd1"].items() if not name.endswith("input_blocks.1.0.out_layers.3.weight")}
    assert "input_blocks.1.0.out_layers.3.weight is missing" in refusal(broken)
    assert "expected one of kl-f4" in refusal(files["sd1"], "sd3")
    edited = files["sd1"] | {"model.diffusion_model.input_blocks.0.0.weight": (32, 8, 3, 3)}  # instruction following: 4 channels more
    assert "no published model is built like this" in refusal(edited) and "8 -> 4 channels" in refusal(edited)
    no_scale = {name: shape for name, shape in files["lsun-churches256"].items() if name != "scale_factor"}
    assert "whose scale_factor stands in the file only" in refusal(no_scale)
    vqgan = files["inpainting-big"] | {"first_stage_model.post_quant_conv.weight": (256, 3, 1, 1)}
    assert "a latent of 256 and an embedding of 3" in refusal(vqgan)
