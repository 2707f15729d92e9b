"""The streaming safetensors writer, read back by the library and by our strict reader."""

import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from ldm_jax.checkpoint import tensors_writer
from ldm_jax.checkpoint.tensors_writer import Weights, write_shards, write_tensors
from ldm_jax.core.errors import UserError


def leaves():
    rng = np.random.default_rng(0)
    return {"odd": np.arange(3, dtype=np.uint8), "turned": rng.normal(size=(5, 3, 4)).astype(np.float32).transpose(2, 0, 1),
            "scalar": np.array(2.5, np.float64), "empty": np.zeros((0, 5), np.float32), "half": rng.normal(size=7).astype(np.float16),
            "bf": jnp.asarray([1.5, -2.0], jnp.bfloat16), "flag": np.array([True, False]), "long": np.arange(4)[::-1]}


def test_equals_the_library(tmp_path, monkeypatch):
    """Catches a wrong offset, row order of a turned array, a piece lost between two, a tensor that is not aligned."""
    monkeypatch.setattr(tensors_writer, "PIECE", 24)
    path = tmp_path / "x.safetensors"
    write_tensors(path, Weights.of(leaves()), metadata={"format": "pt"})
    with safe_open(str(path), framework="numpy") as file:
        assert file.metadata() == {"format": "pt"} and set(file.keys()) == set(leaves())
    for name, array in load_file(path).items():
        expected = np.asarray(leaves()[name])
        assert array.dtype == expected.dtype and array.shape == expected.shape, name
        np.testing.assert_array_equal(array, expected)
    start = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + start])
    sizes = {name: np.asarray(array).dtype.itemsize for name, array in leaves().items()}
    assert start % 8 == 0 and all(header[name]["data_offsets"][0] % size == 0 for name, size in sizes.items())
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_half_precision_by_choice(tmp_path, dtype):
    """Catches integers that are cast, floats that are not, and another rounding than numpy's."""
    write_tensors(tmp_path / "x", Weights.of(leaves()), dtype=dtype)
    kind = {"bfloat16": np.dtype(ml_dtypes.bfloat16)}.get(dtype) or np.dtype(dtype)
    for name, array in load_file(tmp_path / "x").items():
        old = np.asarray(leaves()[name])
        assert array.dtype == (kind if name in ("turned", "scalar", "empty", "half", "bf") else old.dtype), name
        np.testing.assert_array_equal(array, old.astype(array.dtype))


def test_a_number_that_half_precision_cannot_hold(tmp_path):
    """Catches a weight of 70,000 that becomes infinity in float16; what was infinite before is kept."""
    with pytest.raises(UserError, match="a: its largest number is 7e.04, which float16 cannot hold: write it as bfloat16"):
        write_tensors(tmp_path / "x", Weights.of({"a": np.array([1, -7e4], np.float32)}), dtype="float16")
    assert not list(tmp_path.iterdir())
    write_tensors(tmp_path / "x", Weights.of({"a": np.array([1, np.inf], np.float32)}), dtype="float16")
    with pytest.raises(UserError, match="dtype='int8': expected one of float32"):
        write_tensors(tmp_path / "x", Weights.of(leaves()), dtype="int8")
    with pytest.raises(UserError, match="a: safetensors cannot hold complex64"):
        write_tensors(tmp_path / "x", Weights.of({"a": np.zeros(2, np.complex64)}))


@pytest.mark.parametrize("given, told", [
    ([("b", np.ones(2))], "never given: a"), ([("a", np.ones(2))], "not"), ([("a", np.ones(3)), ("a", np.ones(3))], "twice"),
    ([("a", np.ones(3)), ("c", np.ones(3))], "twice"), ([("a", np.ones(3, np.float32))], "not float64"),
])
def test_arrays_that_are_not_those_announced(tmp_path, given, told):
    """Catches a file of zeros where an array was forgotten, and one that runs over its neighbour; nothing is left behind."""
    (tmp_path / "x").write_bytes(b"before")
    with pytest.raises(ValueError, match=told):
        write_tensors(tmp_path / "x", Weights({"a": ((3,), np.dtype(float)), "b": ((2,), np.dtype(float))}, given))
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_bytes() == b"before"


def test_shards_and_their_index(tmp_path):
    """Catches a tensor in two shards, an index that names another, sizes before the cast, names that diffusers does not find."""
    named = {f"t{i}": np.full(10, i, np.float32) for i in range(5)} | {"large": np.ones(100, np.float32)}
    weights = Weights.of(named)
    files = write_shards(tmp_path, "model", Weights(weights.specs, reversed(list(named.items()))), dtype="float16", limit=45)
    assert files == [f"model-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)] + ["model.safetensors.index.json"]
    index = json.loads((tmp_path / files[-1]).read_text())
    assert index["metadata"] == {"total_size": 300} and set(index["weight_map"]) == set(named)
    for file in files[:-1]:
        found = load_file(tmp_path / file)
        assert set(found) == {name for name, where in index["weight_map"].items() if where == file}
        assert all((array == named[name]).all() for name, array in found.items())
    assert write_shards(tmp_path, "unet", weights) == ["unet.safetensors"] == write_shards(tmp_path, "unet", weights, limit=600)
    assert write_shards(tmp_path, "unet", weights, variant="fp16", limit=599)[-1] == "unet.safetensors.index.fp16.json"
    assert (tmp_path / "unet.fp16-00001-of-00002.safetensors").exists()
