"""Files of others at the door: what is no model, damaged or hostile is refused in one line, and nothing of it is run."""

import functools
import json
import os
import pathlib
import pickle
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import ldm_jax as ldm
from ldm_jax import describe, published
from ldm_jax.core.errors import UserError
from ldm_jax.publishing import publish

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def file(trained_ldm, tmp_path_factory):
    """A model in the CompVis layout, and its tensors."""
    path = tmp_path_factory.mktemp("published") / "model.safetensors"
    publish(trained_ldm, path, "compvis")
    return path, load_file(path)


class Acts:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def hostile(path, target):
    """What `torch.save` of a module that acts when it is unpickled looks like."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps({"state_dict": Acts(target)}, protocol=2))
        archive.writestr("model/version", "3\n")
    return path


def test_a_hostile_file_stays_inert_on_the_command_line(tmp_path):
    """Mistake: a pickle that is run, or an error that does not say what it tried."""
    path = hostile(tmp_path / "model.ckpt", tmp_path / "touched")
    done = subprocess.run([sys.executable, "sample.py", f"--model={path}", f"--out={tmp_path / 'out'}"], cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 2 and "system" in done.stderr and "refused" in done.stderr and len(done.stderr.splitlines()) == 1
    assert sorted(one.name for one in tmp_path.iterdir()) == ["model.ckpt"]


def changed(file, out, **tensors):
    """The file without its own description, with other tensors."""
    save_file({name: tensor for name, tensor in (file[1] | tensors).items() if tensor is not None}, out)
    return out


def test_damage_is_found(file, tmp_path):
    """Mistake: a truncated file, a number that is none, or another model's tensor, taken for the model."""
    path, tensors = file
    whole = path.read_bytes()
    (tmp_path / "short.safetensors").write_bytes(whole[:-5])
    name = "first_stage_model.decoder.conv_in.weight"
    at = whole.find(np.ascontiguousarray(tensors[name]).tobytes())
    (tmp_path / "nan.safetensors").write_bytes(whole[:at] + np.float32(np.nan).tobytes() + whole[at + 4:])
    (tmp_path / "text.safetensors").write_text("<html>not found</html>")
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    for bad, match in (("short", "truncated|does not|cover"), ("nan", "decoder.conv_in.weight: .* not finite"), ("text", "a web page"),
                       ("other", "no U-Net .* and no autoencoder")):
        with pytest.raises(UserError, match=match):
            ldm.load(tmp_path / f"{bad}.safetensors")
    with pytest.raises(UserError, match="expected one of kl-f4"):
        ldm.load(changed(file, tmp_path / "a.safetensors"), kind="sd3")
    with pytest.raises(UserError, match="kind=sd1 does not fit: .* tensors differ: .* The file holds a U-Net of 2 -> 2"):
        ldm.load(tmp_path / "a.safetensors", kind="sd1")
    with pytest.raises(UserError, match="does not exist: expected a run folder .* or a .ckpt"):
        ldm.load(tmp_path / "nothing", kind="sd1")
    with pytest.raises(UserError, match="says what it is"):
        ldm.load(file[0], kind="sd1")


def test_a_page_and_what_was_left_out(file):
    """Mistake: a page that opens our own checkpoints only."""
    page = describe.page(file[0])
    assert "diffusion, step 0" in page and "network.levels" in page and "conv_in/kernel" in page
    assert published.open_published(file[0]).told == ()


def spoilt(record: dict, where: str, value) -> str:
    """The description with another value at "sections/network/levels/0/blocks"."""
    record = json.loads(json.dumps(record))
    *parents, last = [int(key) if key.isdigit() else key for key in where.split("/")]
    functools.reduce(lambda part, key: part[key], parents, record)[last] = value
    return json.dumps(record)


@pytest.mark.parametrize("where, value", [
    ("scale_factor", 0), ("scale_factor", "x"), ("", "[" * 200_000), ("sections/network/levels/0/blocks", 10**9),
    ("sections/network/levels/0/depth", 10**9), ("first_stage/blocks", 10**9),
    ("sections/network/middle", {"attention": "transformer", "heads": 1, "depth": 10**9}),
    ("sections/schedule/steps", 10**10), ("sections/sampling/steps", 10**10), ("first_stage/latent_channels", 10**10),
    ("sections/network/levels", []), ("first_stage/multipliers", []), ("sections/conditioner", {"name": "clip_text", "layers": 10**9}),
])
def test_a_description_in_the_header_is_not_believed(file, tmp_path, where, value):
    """Mistake: a traceback, or modules built until memory ends, by a header of a few hundred bytes."""
    with safe_open(file[0], "numpy") as header:
        record = json.loads(header.metadata()[published.RECORD])
    save_file(file[1], tmp_path / "x.safetensors", {published.RECORD: spoilt(record, where, value) if where else value})
    used = time.process_time()
    with pytest.raises(UserError, match="x.safetensors: .*damaged|config") as caught:
        published.open_published(tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value) and time.process_time() - used < 5


def test_a_folders_settings_are_not_believed(tmp_path):
    """Mistake: modules built without end by a config.json of a few hundred bytes."""
    config = {"_class_name": "AutoencoderKL", "block_out_channels": [32] * 9, "layers_per_block": 1000,
              "down_block_types": ["DownEncoderBlock2D"] * 9, "up_block_types": ["UpDecoderBlock2D"] * 9}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"encoder.conv_in.weight": np.zeros((32, 3, 3, 3), np.float32)}, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(UserError, match="more blocks and layers than it has tensors"):
        published.open_published(tmp_path)
