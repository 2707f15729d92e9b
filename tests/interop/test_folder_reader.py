"""Folders of diffusers: what the library writes is read; what is missing, doubled or leads outside is refused in one line."""

import json
import os
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

from ldm_jax.core.errors import UserError
from ldm_jax.interop.checks import once
from ldm_jax.interop.folder_reader import is_folder, read_folder

UNET = {"conv_in.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "conv_in.bias": np.ones(2, np.float32)}
TEXT = {"text_model.embeddings.token_embedding.weight": np.ones((3, 2), np.float32),
        "text_model.embeddings.position_ids": np.arange(3)}
INDEX = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
         "scheduler": ["diffusers", "DDIMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
         "tokenizer": ["transformers", "CLIPTokenizer"],
         "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "image_encoder": [None, None],
         "requires_safety_checker": True}


def page(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def model(tmp_path):
    root = tmp_path / "model"
    page(root / "model_index.json", INDEX)
    page(root / "unet/config.json", {"_class_name": "UNet2DConditionModel", "in_channels": 4})
    page(root / "text_encoder/config.json", {"architectures": ["CLIPTextModel"]})
    page(root / "scheduler/scheduler_config.json", {"beta_start": 0.1})
    page(root / "tokenizer/tokenizer_config.json", {"model_max_length": 77, "pad_token": "<|endoftext|>"})
    page(root / "tokenizer/special_tokens_map.json", {"pad_token": {"content": "!"}})
    page(root / "safety_checker/config.json", {})
    save_file(UNET, root / "unet/diffusion_pytorch_model.safetensors")
    save_file(TEXT, root / "text_encoder/model.safetensors")
    return root


def shard(folder, parts, base="diffusion_pytorch_model"):
    """Writes a component's tensors as shards with their index."""
    (folder / f"{base}.safetensors").unlink(missing_ok=True)
    table = {}
    for i, part in enumerate(parts):
        file = f"{base}-0000{i + 1}-of-0000{len(parts)}.safetensors"
        save_file(part, folder / file)
        table |= {name: file for name in part}
    page(folder / f"{base}.safetensors.index.json", {"metadata": {}, "weight_map": table})
    return table


def test_components_configs_and_tensors(model):
    """Catches a component left out, a scheduler asked for weights, a tokenizer's padding that its other file overrules (SD 2), and
    what is not read left unsaid."""
    found = read_folder(model)
    assert set(found.components) == {"unet", "text_encoder", "scheduler", "tokenizer"} and is_folder(model) and is_folder(model / "unet")
    assert found.jsons["unet"]["in_channels"] == 4 and found.jsons["scheduler"] == {"beta_start": 0.1}
    assert found.jsons["model_index"] == INDEX and found.components["tokenizer"].folder == model / "tokenizer"
    assert found.jsons["tokenizer"] == {"model_max_length": 77, "pad_token": {"content": "!"}}
    np.testing.assert_array_equal(found.components["unet"].tensors["conv_in.weight"], UNET["conv_in.weight"])
    assert list(found.components["text_encoder"].tensors) == ["text_model.embeddings.token_embedding.weight"]
    assert found.told == ("safety_checker is not read: it blackens images; samples are not checked",)
    lone = read_folder(model / "unet")
    assert lone.index == {} and list(lone.components) == [""] and set(lone.components[""].tensors) == set(UNET)
    assert not is_folder(model / "scheduler") and not is_folder(model / "safety_checker")
    assert not is_folder(model / "none") and not is_folder(model / "unet/config.json")


@pytest.mark.parametrize("name, kind, why", [
    ("depth_estimator", "DPTForDepthEstimation", "depth is an input, given as an image"),
    ("image_encoder", "CLIPVisionModelWithProjection", "it tells images to pipelines that have no equal here"),
    ("watermarker", "StableDiffusionXLWatermarker", "samples are not marked"),
    ("feature_extractor", "CLIPImageProcessor", "it prepares images for parts that are not read"),
])
def test_what_is_not_read_is_told_and_not_asked_for(model, name, kind, why):
    """Catches a model that is refused for want of a part which nobody reads, or whose damage is found; and a part left out in silence."""
    page(model / "model_index.json", INDEX | {name: ["transformers", kind]})
    for _ in range(2):
        found = read_folder(model)
        assert f"{name} is not read: {why}" in found.told and name not in found.components
        page(model / name / "config.json", "damaged")


def test_a_variant_is_taken_where_it_is_asked_for_and_nowhere_else(model):
    """Catches the plain file read for the variant or the reverse, and a silent fallback."""
    half = {name: array.astype(np.float16) + 1 for name, array in UNET.items()}
    save_file(half, model / "unet/diffusion_pytorch_model.fp16.safetensors")
    assert read_folder(model).components["unet"].tensors["conv_in.bias"][0] == 1
    found = read_folder(model, variant="fp16")
    assert found.components["unet"].tensors["conv_in.bias"][0] == 2
    assert "text_encoder has no weights of the variant fp16: read from its plain file" in found.told
    with pytest.raises(UserError, match="no component has weights of the variant 'non_ema'"):
        read_folder(model, variant="non_ema")
    (model / "unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="it has diffusion_pytorch_model.fp16.safetensors: give the variant"):
        read_folder(model)
    with pytest.raises(UserError, match="letters and digits"):
        read_folder(model, variant="../x")


def test_pickled_weights(model):
    """Catches `.bin` files that are left out, or taken before the safe ones."""
    torch = pytest.importorskip("torch")
    torch.save({"conv_in.weight": torch.zeros(2, 3)}, model / "unet/diffusion_pytorch_model.bin")
    assert set(read_folder(model).components["unet"].tensors) == set(UNET)
    (model / "unet/diffusion_pytorch_model.safetensors").unlink()
    assert list(read_folder(model).components["unet"].tensors) == ["conv_in.weight"]


def test_old_names_become_todays(model):
    """Catches attention of diffusers before 0.15 and the flat names of transformers' CLIP under which no table finds them."""
    old = "encoder.mid_block.attentions.0."
    save_file({old + "query.weight": np.ones(2), old + "proj_attn.bias": np.ones(3), "conv_in.value.weight": np.ones(1)},
              model / "unet/diffusion_pytorch_model.safetensors")
    assert set(read_folder(model / "unet").components[""].tensors) == {old + "to_q.weight", old + "to_out.0.bias", "conv_in.value.weight"}
    save_file({"encoder.layers.0.mlp.fc1.bias": np.ones(2), "text_projection.weight": np.ones(1)}, model / "text_encoder/model.safetensors")
    assert set(read_folder(model / "text_encoder").components[""].tensors) == {"text_model.encoder.layers.0.mlp.fc1.bias",
                                                                              "text_projection.weight"}
    save_file({"encoder.layers.0.mlp.fc1.bias": np.ones(2), "embeddings.patch_embedding.weight": np.ones(1)},
              model / "text_encoder/model.safetensors")
    assert "vision_model.encoder.layers.0.mlp.fc1.bias" in read_folder(model / "text_encoder").components[""].tensors
    save_file({old + "query.weight": np.ones(2), old + "to_q.weight": np.ones(2)}, model / "unet/diffusion_pytorch_model.safetensors")
    with pytest.raises(UserError, match="query.weight and .*to_q.weight are two names of one tensor"):
        read_folder(model)


@pytest.mark.parametrize("value", [3, {"a": 1}, [3], None])
def test_architectures_of_another_type(model, value):
    """Catches a traceback at a config.json whose architectures are no list of texts."""
    page(model / "text_encoder/config.json", {"architectures": value})
    assert list(read_folder(model).components["text_encoder"].tensors) == ["text_model.embeddings.token_embedding.weight"]


def test_shards_are_one(model):
    """Catches a shard left out, and an index that is not preferred to what lies beside it."""
    shard(model / "unet", [{"conv_in.weight": UNET["conv_in.weight"]}, {"conv_in.bias": UNET["conv_in.bias"]}])
    found = read_folder(model).components["unet"].tensors
    assert set(found) == set(UNET)
    for name in UNET:
        np.testing.assert_array_equal(found[name], UNET[name])


def test_the_hubs_cache_is_read_through_its_links(tmp_path, model):
    """Catches a reader that refuses every link: the hub's cache is made of them."""
    snapshot = tmp_path / "models--a--b/snapshots/rev"
    (tmp_path / "models--a--b/blobs").mkdir(parents=True)
    for i, file in enumerate(path for path in sorted(model.rglob("*")) if path.is_file()):
        blob, link = tmp_path / f"models--a--b/blobs/{i}", snapshot / file.relative_to(model)
        blob.write_bytes(file.read_bytes())
        link.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(os.path.relpath(blob, link.parent), link)
    assert set(read_folder(snapshot).components["unet"].tensors) == set(UNET)


def spoil(what, root, outside):
    unet = root / "unet"
    weights = unet / "diffusion_pytorch_model.safetensors"
    table = {"conv_in.weight": "diffusion_pytorch_model-1.safetensors", "conv_in.bias": "diffusion_pytorch_model-1.safetensors"}
    index = unet / "diffusion_pytorch_model.safetensors.index.json"
    save_file(UNET, outside / "x.safetensors")
    page(outside / "config.json", {})
    if what.startswith("a link"):
        place = {"a link out": weights, "a link to a folder out": unet, "a link for the JSON": unet / "config.json",
                 "a link for the index": root / "model_index.json"}[what]
        target = outside / {"a link out": "x.safetensors", "a link to a folder out": "."}.get(what, "config.json")
        os.rename(place, root / "moved")
        os.symlink(target, place)
    elif what.startswith("an index"):
        weights.rename(unet / "diffusion_pytorch_model-1.safetensors")
        changes = {"an index that climbs": {"conv_in.bias": "../../outside/x.safetensors"},
                   "an index with an absolute path": {"conv_in.bias": str(outside / "x.safetensors")},
                   "an index of a missing shard": {"conv_in.bias": "diffusion_pytorch_model-2.safetensors"},
                   "an index with one tensor more": {"conv_out.bias": "diffusion_pytorch_model-1.safetensors"},
                   "an index of no files": {"conv_in.bias": 3}}
        page(index, {"weight_map": table | changes[what]} if what in changes else "{}")
        if what == "an index with one tensor less":
            page(index, {"weight_map": {"conv_in.weight": "diffusion_pytorch_model-1.safetensors"}})
    else:
        pages = {"a component that climbs": INDEX | {"../outside": ["diffusers", "UNet2DModel"]},
                 "a component that is missing": INDEX | {"vae": ["diffusers", "AutoencoderKL"]},
                 "damaged JSON": "{", "a list": "[1]", "a key twice": '{"unet": ["a", "b"], "unet": ["a", "b"]}'}
        page(root / "model_index.json", pages[what])


SPOILT = {
    "a link out": "leads out of the model's folder", "a link to a folder out": "leads out of the model's folder",
    "a link for the JSON": "leads out of the model's folder", "a link for the index": "leads out of the model's folder",
    "an index that climbs": "refused: it names the shard '../../outside/x.safetensors'",
    "an index with an absolute path": "refused: it names the shard", "an index of a missing shard": "-2.safetensors is missing",
    "an index with one tensor more": r"does not hold .* 1 are missing \(conv_out.bias\)",
    "an index with one tensor less": r"does not hold .* 1 are not its own \(conv_in.bias\)",
    "an index of no files": "no weight_map", "an index of nothing": "no weight_map",
    "a component that climbs": "refused: a component is named '../outside'", "a component that is missing": "no such folder",
    "damaged JSON": "damaged JSON", "a list": "not a JSON object", "a key twice": "'unet' stands twice",
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_spoilt_folder_is_refused_in_one_line(tmp_path, model, what):
    """Catches a path out of the folder that is followed, and a model read without one of its parts."""
    (tmp_path / "outside").mkdir()
    spoil(what, model, tmp_path / "outside")
    with pytest.raises(UserError, match=SPOILT[what]) as caught:
        read_folder(model)
    assert "\n" not in str(caught.value) and "model" in str(caught.value)


def test_a_key_twice_among_many_is_found_at_once():
    """Catches a search that goes through all keys for each of them: minutes for a file of 2 MB."""
    used = time.process_time()
    with pytest.raises(ValueError, match="'last' stands twice"):
        once([(str(i), 0) for i in range(30_000)] + [("last", 0)] * 2)
    assert time.process_time() - used < 1


@pytest.mark.parametrize("spoilt, told", [
    (lambda data: data[:-1], "truncated"), (lambda data: b"", "is empty"),
    (lambda data: data[:3] + b"\x7f" + data[4:], "header is said to be"),
    (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "git lfs pull"),
    (lambda data: data.replace(b'"conv_in.bias"', b'"../../x.bias"'), "refused: a tensor is named"),
])
def test_a_spoilt_file_in_a_folder_is_refused_in_one_line(model, spoilt, told):
    """Catches weights of a folder that come by another door than single files, without their checks."""
    file = model / "unet/diffusion_pytorch_model.safetensors"
    file.write_bytes(spoilt(file.read_bytes()))
    with pytest.raises(UserError, match=told) as caught:
        read_folder(model)
    assert "diffusion_pytorch_model" in str(caught.value) and "\n" not in str(caught.value)


def test_a_hostile_pickle_in_a_folder_is_refused_by_name(model, tmp_path):
    """Catches a `.bin` that is read by anything but the restricted reader."""
    torch = pytest.importorskip("torch")

    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "proof"),)

    (model / "unet/diffusion_pytorch_model.safetensors").unlink()
    torch.save({"conv_in.weight": torch.zeros(2), "x": Attack()}, model / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="asks for posix.mkdir"):
        read_folder(model)
    assert not (tmp_path / "proof").exists()


def test_what_is_not_there(tmp_path, model):
    for path, options, told in [(tmp_path / "x", {}, "no such folder"), (tmp_path, {}, "neither model_index.json nor config.json"),
                                (model / "unet", {"variant": "fp16"}, "no weights of the variant 'fp16'")]:
        with pytest.raises(UserError, match=told):
            read_folder(path, **options)
    (model / "unet/config.json").unlink()
    with pytest.raises(UserError, match="no config.json in it"):
        read_folder(model)
