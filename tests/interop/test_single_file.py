"""A published single file taken apart: nothing lost, nothing mixed up, the average where it is asked for."""

import fnmatch

import numpy as np
import pytest
from safetensors.numpy import save_file

from ldm_jax.core.errors import UserError
from ldm_jax.interop import single_file
from ldm_jax.interop.mapped import Tensors, shapes
from ldm_jax.interop.single_file import ema_name, split
from ldm_jax.interop.tensors import read_tensors

PREFIXES = {"network": "model.diffusion_model.", "first_stage": "first_stage_model.", "conditioner": "cond_stage_model."}
NETWORK = ("input_blocks.0.0.weight", "input_blocks.1.0.in_layers.0.weight", "out.2.bias")


def numbers(*names, start=0):
    return {name: np.full((2, i + 1), start + i, np.float32) for i, name in enumerate(names)}


def published():
    """A file like SD 1's full checkpoint, a few tensors of each kind."""
    network = numbers(*(PREFIXES["network"] + name for name in NETWORK))
    average = {ema_name(name): array + 100 for name, array in network.items()}
    rest = numbers("first_stage_model.encoder.conv_in.weight", "first_stage_model.quant_conv.bias",
                   "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight", start=50)
    buffers = numbers("betas", "posterior_mean_coef1", "logvar", "model_ema.decay", "model_ema.num_updates",
                      "first_stage_model.loss.discriminator.main.0.weight",
                      "cond_stage_model.transformer.text_model.embeddings.position_ids")
    return {**network, **average, **rest, **buffers, "scale_factor": np.array(0.25, np.float32)}


@pytest.mark.parametrize("weights, added", [("ema", 100), ("raw", 0)])
def test_parts_and_the_average(tmp_path, weights, added):
    """Catches the average's names inverted instead of built forward, raw values under "ema", and a factor that is not read."""
    assert ema_name("model.diffusion_model.input_blocks.0.0.weight") == "model_ema.diffusion_modelinput_blocks00weight"
    save_file(published(), tmp_path / "x.safetensors")
    found = split(read_tensors(tmp_path / "x.safetensors").tensors, PREFIXES, weights)
    assert found.weights == weights and found.scale_factor == 0.25
    assert isinstance(found.parts["network"], Tensors) and shapes(found.parts["network"])["out.2.bias"] == (2, 3)
    assert {name: array.flat[0] for name, array in found.parts["network"].items()} == {n: i + added for i, n in enumerate(NETWORK)}
    assert set(found.parts["first_stage"]) == {"encoder.conv_in.weight", "quant_conv.bias"}
    assert list(found.parts["conditioner"]) == ["transformer.text_model.embeddings.token_embedding.weight"]
    assert "betas" in found.ignored and not any(name.startswith("model.") for name in found.ignored)


def test_a_file_without_an_average():
    """Catches a file of averaged weights only (most of the published ones) that "ema" refuses, or calls so."""
    content = {name: array for name, array in published().items() if not name.startswith("model_ema.") and name != "scale_factor"}
    found = split(content, PREFIXES)
    assert found.weights == "raw" and found.scale_factor is None and found.parts["network"]["out.2.bias"].flat[0] == 2


def test_a_bare_first_stage_and_its_average():
    """Catches an autoencoder file, whose names have no prefix, of which parts are called unknown or the average is left out."""
    weights = numbers("encoder.conv_in.weight", "quantize.embedding.weight")
    losses = numbers("loss.discriminator.main.0.weight", "loss.perceptual_loss.lin0.model.1.weight")
    average = {ema_name(name): array + 100 for name, array in (weights | numbers("loss.discriminator.main.0.weight")).items()}
    found = split(weights | losses | average, {"first_stage": ""})
    assert set(found.parts["first_stage"]) == set(weights) and found.weights == "ema"
    assert found.parts["first_stage"]["quantize.embedding.weight"].flat[0] == 101


def test_two_text_encoders_and_their_old_names():
    """Catches a part that takes what another one's longer prefix names, and the flat names of CLIP left as they are."""
    content = numbers("model.diffusion_model.a", "conditioner.embedders.0.transformer.encoder.layers.0.mlp.fc1.bias",
                      "conditioner.embedders.1.model.ln_final.bias", "conditioner.embedders.1.model.logit_scale")
    found = split(content, {"network": PREFIXES["network"], "one": "conditioner.embedders.0.", "two": "conditioner.embedders.1."})
    assert list(found.parts["one"]) == ["transformer.text_model.encoder.layers.0.mlp.fc1.bias"]
    assert list(found.parts["two"]) == ["model.ln_final.bias"]
    rest = split(content, {"rest": "", "network": PREFIXES["network"]}).parts
    assert list(rest["network"]) == ["a"] and len(rest["rest"]) == 2


def test_a_first_stage_that_stands_twice():
    """Catches the inpainting model's second copy called unknown, and a second copy with other values dropped in silence."""
    prefixes = {part: PREFIXES[part] for part in ("network", "first_stage")}
    content = published()
    del content["cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"]
    del content["cond_stage_model.transformer.text_model.embeddings.position_ids"]
    name = "cond_stage_model.encoder.conv_in.weight"
    copy = content["first_stage_model.encoder.conv_in.weight"]
    assert "1 tensors of cond_stage_model: the first stage again" in split(content | {name: copy}, prefixes).ignored
    with pytest.raises(UserError, match="cond_stage_model.encoder.conv_in.weight differs"):
        split(content | {name: copy + 1}, prefixes)


BAD = {
    "of no part": ({"control_model.x": np.ones(2)}, "1 tensors are of no part of the model: control_model.x"),
    "an average of nothing": ({"model_ema.diffusion_modelx": np.ones(2)}, "average nothing in the file: model_ema.diffusion_modelx"),
    "an average that lacks one": ({"model.diffusion_model.x": np.ones(2)}, "does not fit its network: model.diffusion_model.x is missing"),
    "an average of another shape": ({"model_ema.diffusion_modelout2bias": np.ones(2)}, r"is \[2\], .*out.2.bias is \[2, 3\]"),
    "a factor of 0": ({"scale_factor": np.zeros(())}, "scale_factor is 0.0, expected one positive number"),
    "two factors": ({"scale_factor": np.ones(2)}, "expected one positive number"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_file_that_is_not_whole_is_refused(what):
    added, told = BAD[what]
    with pytest.raises(UserError, match=f"x.ckpt: .*{told}") as caught:
        split(published() | added, PREFIXES, where="x.ckpt")
    assert "\n" not in str(caught.value)


def test_a_damaged_average_does_not_keep_from_the_raw_weights():
    content = published() | {"model_ema.diffusion_modelx": np.ones(2)}
    assert split(content, PREFIXES, "raw").weights == "raw"
    with pytest.raises(UserError, match="no tensors of conditioner"):
        split(numbers("model.diffusion_model.a", "first_stage_model.a"), PREFIXES)
    with pytest.raises(UserError, match="expected 'ema' or 'raw'"):
        split(content, PREFIXES, "best")


def test_a_file_of_many_names_takes_few_tables(monkeypatch):
    """Catches a table of all that is left out, built anew for every name of a file with a hundred thousand."""
    calls = []
    monkeypatch.setattr(single_file, "set", lambda *of: calls.append(1) or set(*of), raising=False)
    split(published() | numbers(*(f"model.diffusion_model.{i}" for i in range(50))), PREFIXES, "raw")
    assert len(calls) < 10


# What published files of a kind hold beside their parameters: name of the family -> keys.
EXTRA = {
    "every": (*single_file.SCHEDULE, "scale_factor", "logvar", "first_stage_model.loss.logvar",
              "first_stage_model.loss.discriminator.main.0.weight", "model_ema.decay", "model_ema.num_updates"),
    "a first stage alone": ("loss.logvar", "loss.perceptual_loss.net.slice1.0.weight", "loss.discriminator.main.11.bias"),
    "sd1": ("cond_stage_model.transformer.text_model.embeddings.position_ids", "cond_stage_model.transformer.embeddings.position_ids"),
    "sd2": ("cond_stage_model.model.attn_mask", "cond_stage_model.model.logit_scale"),
    "sd2-depth": ("depth_model.model.pretrained.model.cls_token", "depth_model.model.scratch.output_conv.0.weight"),
    "sd2-x4-upscaler": tuple(f"low_scale_model.{name}" for name in single_file.SCHEDULE),
    "sdxl": ("conditioner.embedders.0.transformer.text_model.embeddings.position_ids", "conditioner.embedders.1.model.logit_scale",
             "conditioner.embedders.1.model.attn_mask", "denoiser.sigmas"),
    "rdm768": ("unconditional_guidance_vex",),
}


@pytest.mark.parametrize("kind", EXTRA)
def test_what_published_files_hold_beside_their_parameters(kind):
    """Catches a buffer of a published file that keeps it from opening, or that ends in a part."""
    own = {"sdxl": "conditioner.embedders.1.", "a first stage alone": ""}.get(kind, "cond_stage_model.")
    prefixes = PREFIXES | {"conditioner": own} if own else {"first_stage": ""}
    kept = {f"{prefix}kept": np.ones(2) for prefix in prefixes.values()}
    found = split(kept | {name: np.ones(()) for name in EXTRA[kind]}, prefixes)
    assert all(set(part) == {"kept"} for part in found.parts.values())
    assert set(found.ignored) == {name for name in EXTRA[kind] if not name.startswith("model_ema.")}


def test_every_pattern_of_what_is_left_out_is_of_a_published_file():
    """Catches a pattern that no published file needs, which would drop a tensor of some other."""
    names = [name for some in EXTRA.values() for name in some]
    assert not [pattern for pattern in single_file.IGNORABLE if not fnmatch.filter(names, pattern)]
