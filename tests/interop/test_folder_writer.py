"""Folders that diffusers and transformers load, read back by both, and written whole or not at all."""

import errno
import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from ldm_jax.checkpoint import tensors_writer
from ldm_jax.checkpoint.tensors_writer import Weights
from ldm_jax.core.errors import UserError
from ldm_jax.interop import single_file
from ldm_jax.interop.folder_reader import read_folder
from ldm_jax.interop.folder_writer import Part, weights_of, whole, write_file, write_folder
from ldm_jax.interop.places import CONV, LINEAR, Place

INDEX = {"_class_name": "LDMPipeline", "_diffusers_version": "0.35.0", "vae": ["diffusers", "AutoencoderKL"],
         "text_encoder": ["transformers", "CLIPTextModel"], "scheduler": ["diffusers", "DDIMScheduler"]}
PLACES = (Place("conv/kernel", ("conv.weight",), CONV),
          Place("qkv/kernel", ("to_q.weight", "to_k.weight", "to_v.weight"), LINEAR), Place("norm/scale", ("norm.weight",)))


def ours():
    rng = np.random.default_rng(0)
    return {"conv/kernel": rng.normal(size=(3, 3, 4, 5)).astype(np.float32), "qkv/kernel": rng.normal(size=(4, 12)).astype(np.float32),
            "norm/scale": np.ones(4, np.float32)}


def test_a_name_table_is_written(tmp_path):
    """Catches shapes announced otherwise than they come, parts without their prefixes, a header that transformers 4 refuses."""
    weights = whole({"model.diffusion_model.": weights_of(PLACES, ours()), "first_stage_model.": Weights.of({"x": np.ones(2)})})
    write_file(tmp_path / "new/x.safetensors", weights)
    with safe_open(str(tmp_path / "new/x.safetensors"), framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
    parts = single_file.split(load_file(tmp_path / "new/x.safetensors"), {"n": "model.diffusion_model.", "f": "first_stage_model."}).parts
    assert set(parts["n"]) == {"conv.weight", "to_q.weight", "to_k.weight", "to_v.weight", "norm.weight"} and set(parts["f"]) == {"x"}
    for place in PLACES:
        np.testing.assert_array_equal(place.read(parts["n"]), ours()[place.ours])
    with pytest.raises(UserError, match="exists already"):
        write_file(tmp_path / "new/x.safetensors", weights)
    with pytest.raises(UserError, match="ends in .safetensors"):
        write_file(tmp_path / "x.ckpt", weights)
    with pytest.raises(ValueError, match="one name"):
        whole({"a": Weights.of({"bc": np.ones(1)}), "ab": Weights.of({"c": np.ones(1)})})


@pytest.fixture(scope="module")
def models():
    pytest.importorskip("torch")
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    vae = AutoencoderKL(block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=2, norm_num_groups=4,
                        up_block_types=("UpDecoderBlock2D",) * 2)
    text = CLIPTextModel(CLIPTextConfig(vocab_size=20, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2))
    return vae, text


def state(model):
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}


def equal(found, expected):
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_the_libraries_load_what_is_written(tmp_path, models):
    """Catches file names, metadata, shards and configs that from_pretrained does not take; a tensor lost on the way."""
    vae, text = models
    parts = {"vae": Part(dict(vae.config) | {"_class_name": "AutoencoderKL"}, Weights.of(state(vae))),
             "text_encoder": Part(text.config.to_dict() | {"architectures": ["CLIPTextModel"]}, Weights.of(state(text))),
             "scheduler": Part({"_class_name": "DDIMScheduler", "beta_start": 0.1})}
    files = write_folder(tmp_path / "out", parts, INDEX, {"README.md": "# x\n", "tokenizer/vocab.json": b"{}"}, limit=10_000)
    assert {"README.md", "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json", "tokenizer/vocab.json",
            "text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors.index.json"} < set(files)
    loaded, info = type(vae).from_pretrained(tmp_path / "out/vae", output_loading_info=True)
    assert not any(info.values())
    equal(state(loaded), state(vae))
    loaded, info = type(text).from_pretrained(tmp_path / "out/text_encoder", output_loading_info=True)
    assert not any(info.values())
    equal(state(loaded), state(text))
    equal(read_folder(tmp_path / "out").components["vae"].tensors, state(vae))


def test_what_the_libraries_write_is_read(tmp_path, models):
    """Catches the libraries' own shards, variants and CLIP names, in this version of them, that the reader does not know."""
    vae, text = models
    vae.save_pretrained(tmp_path / "vae", max_shard_size="10KB", variant="fp16")
    equal(read_folder(tmp_path / "vae", variant="fp16").components[""].tensors, state(vae))
    vae.save_pretrained(tmp_path / "bin", safe_serialization=False)
    equal(read_folder(tmp_path / "bin").components[""].tensors, state(vae))
    text.save_pretrained(tmp_path / "text", max_shard_size="5KB")
    found = read_folder(tmp_path / "text").components[""].tensors
    equal({name.removeprefix("text_model."): array for name, array in found.items()},
          {name.removeprefix("text_model."): array for name, array in state(text).items() if not name.endswith("position_ids")})
    assert all(name.startswith("text_model.") for name in found)


def test_nothing_is_left_of_a_folder_that_fails(tmp_path, monkeypatch):
    """Catches half a folder under the final name: a full disk, a number too large, a name that leads out, an array missing."""
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    good, out = {"unet": Part({}, Weights.of({"x": np.full(3, 1e5, np.float32)}))}, tmp_path / "out"
    for error, told, parts, extra, options in [
        (UserError, "float16 cannot hold", good, {}, {"dtype": "float16"}),
        (UserError, "No such file", good, {"vocab.json": tmp_path / "none"}, {}),
        (ValueError, "leads out", good, {"../x": "x"}, {}), (ValueError, "is there already", good, {"model_index.json": "x"}, {}),
        (ValueError, "components are called", {"../x": Part({})}, {}, {}),
        (ValueError, "have no _class_name", {"vae": Part({"a": 1})}, {}, {}),
        (ValueError, "never given", {"unet": Part({}, Weights({"x": ((1,), np.dtype(float))}, []))}, {}, {}),
    ]:
        with pytest.raises(error, match=told):
            write_folder(out, parts, INDEX, extra, **options)
    with monkeypatch.context() as patch:
        patch.setattr(tensors_writer.os, "replace", full)
        with pytest.raises(UserError, match="No space left"):
            write_folder(out, good, INDEX)
    assert not list(tmp_path.iterdir())
    out.mkdir()
    write_folder(out, {"": Part({"a": 1}, Weights.of({"x": np.ones(1)}))}, {})
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((out / "config.json").read_text()) == {"a": 1}
    with pytest.raises(UserError, match="not an empty folder"):
        write_folder(out, good, INDEX)
