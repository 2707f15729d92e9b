"""The manifest, the bundle, and what stands at a path."""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.checkpoint import bundle, digests
from ldm_jax.checkpoint.bundle import kind_of, latest_run_step, open_any, read_bundle, read_manifest, write_bundle
from ldm_jax.checkpoint.manifest import FORMAT, FirstStage, Manifest, relative_path, versions
from ldm_jax.checkpoint.store import Store
from ldm_jax.core import trees
from ldm_jax.core.errors import UserError

UNITS = {"mean": [0.1, -0.2], "std": [1.5, 0.75]}
FIRST = FirstStage("../autoencoder", 300, "ab" * 32, {"model": {"width": 32}}, UNITS)
MANIFEST = Manifest("diffusion", {"model": {"multipliers": (1, 2), "dropout": 0.1}, "name": ""}, 12, 500, None, FIRST)


@pytest.fixture
def weights():
    """Two trees with every dtype a model has, nested, scalar and empty-branch leaves, and a tuple."""
    model = {"unet": {"kernel": jnp.arange(12.0).reshape(3, 4).T, "half": jnp.asarray([1.5, -2.0], jnp.bfloat16)},
             "step": jnp.int32(7),
             "numpy": np.arange(6.0, dtype=np.float32).reshape(2, 3).T, "none": {}, "pair": (jnp.ones(1, bool), jnp.zeros((2, 0)))}
    return {"model": model, "first_stage": {"decoder": {"bias": jnp.asarray([np.pi], jnp.float16)}}}


def test_a_manifest_comes_back_from_json():
    """A field lost, or the nested first stage left a dict; tuples become lists once and stay so."""
    text = json.dumps(MANIFEST.to_json())
    back = Manifest.from_json(json.loads(text))
    assert isinstance(back.first_stage, FirstStage) and back.first_stage == FIRST and back.config["model"]["multipliers"] == [1, 2]
    assert back.to_json() == json.loads(text) == Manifest.from_json(back.to_json()).to_json()
    assert set(versions()) == {"python", "jax", "flax", "orbax-checkpoint", "ldm_jax"} == set(back.versions)
    assert back.versions["jax"] == jax.__version__ and text.count(os.getcwd()) == 0


@pytest.mark.parametrize("change, told", [
    ({"format": FORMAT + 1}, f"written by format {FORMAT + 1}, this reads <= {FORMAT}"),
    ({"format": None}, "not a format number"),
    ({"format": True}, "not a format number"),
    ({"stepp": 3}, "stepp is not a key"),
    ({"step": "3"}, "step='3': expected int"),
    ({"step": None}, "step=None: expected int"),
    ({"config": [1]}, "config"),
    ({"first_stage": [1]}, "first_stage: expected a JSON object"),
    ({"first_stage": {"path": "x"}}, "first_stage: config is missing; digest is missing"),
    ({"first_stage": dataclasses.asdict(FIRST) | {"path": "/home/me/run"}}, "relative to the run"),
    ({"first_stage": dataclasses.asdict(FIRST) | {"path": "gs://bucket/run"}}, "relative to the run"),
])
def test_a_manifest_that_is_not_one_is_refused(change, told):
    """Reading a newer format as if it were this one; ignoring a key; an absolute path that means nothing elsewhere."""
    with pytest.raises(UserError, match="page.*") as error:
        Manifest.from_json(MANIFEST.to_json() | change, "page")
    assert told in str(error.value)


def test_manifest_errors_where_it_is_made():
    """A key missing on reading; a config that JSON cannot say, found only when it is read back."""
    found = MANIFEST.to_json()
    del found["task"]
    with pytest.raises(UserError, match="task is missing"):
        Manifest.from_json(found)
    with pytest.raises(UserError, match="not JSON"):
        dataclasses.replace(MANIFEST, config={"rate": float("nan")}).to_json()
    with pytest.raises(UserError, match="expected FirstStage"):
        dataclasses.replace(MANIFEST, first_stage={"path": "x"})


def test_relative_paths(tmp_path):
    """A path relative to the working directory rather than to the run; a link that leads elsewhere; two buckets."""
    (tmp_path / "a/b").mkdir(parents=True)
    assert relative_path(tmp_path / "first", tmp_path / "a/b") == "../../first"
    os.symlink(tmp_path / "a/b", tmp_path / "link")
    assert relative_path(tmp_path / "first", tmp_path / "link") == "../../first"
    assert relative_path("gs://x/runs/first", "gs://x/runs/second") == "../first"
    for path, run in (("gs://x/first", "gs://y/second"), ("/x/first", "gs://y/second")):
        with pytest.raises(UserError, match="cannot be named relative"):
            relative_path(path, run)


def test_a_bundle_comes_back_bit_for_bit(tmp_path, weights):
    """bfloat16 through float32, a transposed array written in memory order, a digest of something else than the model."""
    written = write_bundle(tmp_path / "out/b", weights, MANIFEST)
    assert os.listdir(tmp_path / "out") == ["b"]
    assert sorted(os.listdir(tmp_path / "out/b")) == ["manifest.json", "model.safetensors"]
    found, manifest = read_bundle(tmp_path / "out/b")
    assert manifest.to_json() == written.to_json() == read_manifest(tmp_path / "out/b").to_json()
    assert manifest.first_stage.path == "" and manifest.first_stage.latent_units == UNITS
    assert manifest.content_digest == trees.content_digest(weights["model"]) == trees.content_digest(found["model"])
    for name, tree in weights.items():
        wanted, got = dict(trees.paths(tree)), dict(trees.paths(found[name]))
        assert wanted.keys() == got.keys()
        for path in wanted:
            assert got[path].dtype == wanted[path].dtype and got[path].shape == wanted[path].shape
            assert got[path].tobytes() == np.asarray(wanted[path]).tobytes(), path


def test_the_safetensors_library_reads_the_weights(tmp_path, weights):
    """A file that only our own reader takes for safetensors."""
    write_bundle(tmp_path / "b", weights, MANIFEST)
    from safetensors.numpy import load_file
    found = load_file(str(tmp_path / "b/model.safetensors"))
    assert np.array_equal(found["model/unet/kernel"], np.asarray(weights["model"]["unet"]["kernel"]))
    assert found["model/unet/half"].dtype == jnp.bfloat16 and found["model/step"].shape == ()


def test_one_flipped_bit_in_a_bundle_is_found(tmp_path, weights):
    """A weights file that is loaded as long as it parses; a manifest whose numbers can be edited."""
    write_bundle(tmp_path / "b", weights, MANIFEST)
    for name in ("model.safetensors", "manifest.json"):
        path = tmp_path / "b" / name
        whole = path.read_bytes()
        for place in range(0, len(whole), max(1, len(whole) // 60)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1:])
            with pytest.raises(UserError, match=name):
                read_bundle(tmp_path / "b")
        path.write_bytes(whole[:-1])
        with pytest.raises(UserError, match=name):
            read_bundle(tmp_path / "b")
        path.unlink()
        with pytest.raises(UserError, match=name):
            read_bundle(tmp_path / "b")
        path.write_bytes(whole)
    read_bundle(tmp_path / "b")


def test_an_export_is_whole_or_not_there(tmp_path, weights, monkeypatch):
    """A folder that loads although the export stopped half way; a folder of the user's overwritten."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes").write_text("keep")
    with pytest.raises(UserError, match="not an empty folder"):
        write_bundle(tmp_path / "mine", weights, MANIFEST)
    assert os.listdir(tmp_path / "mine") == ["notes"]
    (tmp_path / "empty").mkdir()
    write_bundle(tmp_path / "empty", weights, MANIFEST)
    with pytest.raises(UserError, match="a.*key.*cannot hold complex64|cannot hold complex64"):
        write_bundle(tmp_path / "odd", {"model": {"key": jnp.ones(1, jnp.complex64)}}, MANIFEST)
    monkeypatch.setattr(digests, "write_atomically", lambda *_: (_ for _ in ()).throw(OSError("No space left on device")))
    with pytest.raises(UserError, match="No space left"):
        write_bundle(tmp_path / "full", weights, MANIFEST)
    assert sorted(os.listdir(tmp_path)) == ["empty", "mine"]
    with pytest.raises(UserError, match="local disk only"):
        write_bundle("gs://bucket/b", weights, MANIFEST)


def test_what_stands_at_a_path(tmp_path, weights, capsys):
    """A step taken for a run, a damaged one opened, a run renamed by a reader, a wrong path that gives a traceback."""
    run = tmp_path / "run"
    with Store(run / "checkpoints") as store:
        for step in (1, 2):
            store.save(step, {"params": {"x": jnp.ones(1)}}, {})
    write_bundle(tmp_path / "b", weights, MANIFEST)
    steps = str(run / "checkpoints")
    kinds = {run: "run", steps: "run", run / "checkpoints/2": "step", tmp_path / "b": "bundle", tmp_path: None, "nowhere": None}
    assert {path: kind_of(path) for path in kinds} == kinds
    assert open_any(run) == open_any(steps) == bundle.Found("step", steps, 2) and latest_run_step(run)[1] == 2
    assert open_any(run / "checkpoints/1") == bundle.Found("step", steps, 1)
    assert open_any(tmp_path / "b") == bundle.Found("bundle", str(tmp_path / "b"), None)
    (run / "checkpoints/2/commit_success.txt").write_text("broken")
    assert open_any(run) == bundle.Found("step", steps, 1) and (run / "checkpoints/2").is_dir()
    assert "step 2" in capsys.readouterr().err
    with pytest.raises(UserError, match="step 2 .* is damaged: commit_success.txt"):
        open_any(run / "checkpoints/2")
    (run / "checkpoints/2/digests.json").unlink()
    with pytest.raises(UserError, match="step 2 .* is damaged: no digests.json"):
        open_any(run / "checkpoints/2")
    (run / "checkpoints/1/commit_success.txt").unlink()
    with pytest.raises(UserError, match="no valid step"):
        open_any(run)
    (tmp_path / "young/checkpoints").mkdir(parents=True)
    for path, told in ((tmp_path / "young", "no saved step yet"), (tmp_path / "nowhere", "does not exist"), (tmp_path, "none of these")):
        with pytest.raises(UserError, match=told):
            open_any(path)
