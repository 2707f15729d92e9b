"""The strict safetensors reader: equal to the library on good files, and every bad header refused in one clear line."""

import hashlib
import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ldm_jax.core.errors import UserError
from ldm_jax.interop.checks import finite
from ldm_jax.interop.tensors import read_safetensors, read_tensors

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write(path, header, data=b"\0" * 8, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def test_equals_the_library(tmp_path):
    """Catches a wrong offset, element type or shape: empty, scalar, unaligned and bfloat16 tensors among them."""
    rng = np.random.default_rng(0)
    tensors = {"a.weight": rng.normal(size=(3, 4)).astype(np.float32), "b/kernel": rng.normal(size=(2, 2)).astype(np.float16),
               "odd": np.arange(3, dtype=np.uint8), "scalar": np.array(7, np.int64), "empty": np.zeros((0, 5), np.float32),
               "bf": rng.normal(size=5).astype(ml_dtypes.bfloat16), "flag": np.array([True, False])}
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    for found in (read_safetensors(path).tensors, read_tensors(path).tensors):
        assert found.keys() == tensors.keys() == load_file(path).keys()
        for name, array in tensors.items():
            assert found[name].dtype == array.dtype and found[name].shape == array.shape
            np.testing.assert_array_equal(found[name], array)


def test_a_name_that_stands_twice(tmp_path):
    """Catches the header the library itself accepts: its last entry would silently win."""
    entry = json.dumps(F32)
    path = write(tmp_path / "x", f'{{"a": {entry}, "a": {entry}}}'.encode())
    assert list(load_file(path)) == ["a"], "the library refuses it by now; the test's reason is gone"
    with pytest.raises(UserError, match="'a' stands twice"):
        read_safetensors(path)


BAD = {
    "hole": ({"a": F32 | {"data_offsets": [4, 12]}}, b"\0" * 12, "leaves 4 bytes unused"),
    "overlap": ({"a": F32, "b": F32}, b"\0" * 8, "overlaps"),
    "partial overlap": ({"a": F32, "b": F32 | {"data_offsets": [4, 12]}}, b"\0" * 12, "overlaps"),
    "truncated data": ({"a": F32}, b"\0" * 7, "truncated"),
    "trailing bytes": ({"a": F32}, b"\0" * 9, "bytes follow"),
    "shape and size disagree": ({"a": F32 | {"shape": [3]}}, b"\0" * 8, "takes 12 bytes"),
    "a huge shape": ({"a": F32 | {"shape": [2**40, 2**40]}}, b"\0" * 8, "shape"),
    "a huge empty shape": ({"a": F32 | {"shape": [2**62, 2**62, 0], "data_offsets": [0, 0]}}, b"", "shape"),
    "a negative size": ({"a": F32 | {"shape": [-2, -1]}}, b"\0" * 8, "whole numbers"),
    "a size that is a float": ({"a": F32 | {"shape": [2.0]}}, b"\0" * 8, "whole numbers"),
    "a size that is a bool": ({"a": F32 | {"shape": [True, 2]}}, b"\0" * 8, "whole numbers"),
    "offsets backwards": ({"a": F32 | {"data_offsets": [8, 0]}}, b"\0" * 8, "takes 8 bytes"),
    "an unknown type": ({"a": F32 | {"dtype": "F31"}}, b"\0" * 8, "element type 'F31'"),
    "a missing field": ({"a": {"dtype": "F32", "shape": [2]}}, b"\0" * 8, "expected dtype"),
    "not JSON": (b"{oops", b"", "header"),
    "not an object": (b"[1]", b"", "not a JSON object"),
    "not UTF-8": (b'{"\xff": 1}', b"", "header"),
    "deep nesting": (b'{"a":' + b"[" * 100_000, b"", "header"),
    "a name that climbs": ({"../../etc/x": F32}, b"\0" * 8, "refused: a tensor is named"),
    "a name that climbs, in the middle": ({"a/../../x": F32}, b"\0" * 8, "refused"),
    "an absolute name": ({"/etc/x": F32}, b"\0" * 8, "refused"),
    "a name with a line break": ({"a\nb": F32}, b"\0" * 8, "refused"),
    "an empty name": ({"": F32}, b"\0" * 8, "refused"),
    "a very long name": ({"a" * 600: F32}, b"\0" * 8, "refused"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_header_is_one_clear_line(tmp_path, what):
    header, data, match = BAD[what]
    with pytest.raises(UserError, match=match) as caught:
        read_safetensors(write(tmp_path / "bad.safetensors", header, data))
    assert "bad.safetensors" in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("length", [2**62, 2**64 - 1, 200_000_000, 50])
def test_a_header_longer_than_the_file_is_not_allocated(tmp_path, length):
    with pytest.raises(UserError, match="header is said to be"):
        read_safetensors(write(tmp_path / "x", {"a": F32}, b"", length=length + (1 << 10 if length < 100 else 0)))


def test_digest(tmp_path):
    """Catches a flipped bit in the data, which no header check can see."""
    path = tmp_path / "x.safetensors"
    save_file({"a": np.ones(4, np.float32)}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_tensors(path, sha256=digest[:8]).tensors["a"].sum() == 4
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="another file, or it is damaged"):
        read_tensors(path, sha256=digest)
    with pytest.raises(UserError, match="8 to 64 hexadecimal digits"):
        read_tensors(path, sha256="xyz")


@pytest.mark.parametrize("content, match", [
    (b"", "is empty"), (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "git lfs pull"), (b"<!DOCTYPE html>", "web page"),
    (b"\0" * 257 + b"ustar" + b"\0" * 300, "tar file"), (b"\x80\x04]q\0.", "bare Python pickle"), (b"hello there", "begins with b'hello"),
])
def test_files_of_another_kind_are_named(tmp_path, content, match):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=match):
        read_tensors(path)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_tensors(tmp_path / "x.pth")
    with pytest.raises(UserError, match="not a file"):
        read_tensors(tmp_path)


def test_finite_numbers_whose_sum_is_not():
    """Mistake: large weights called damaged because their sum overflows; one NaN among many, or infinities that cancel, called whole."""
    large = np.full(8, 3e38, np.float32)
    assert finite(large) and finite(np.full(4, 6e4, np.float16)) and finite(np.zeros((0, 2), np.float32)) and finite(np.float32(1))
    for bad in (np.nan, np.inf):
        assert not finite(np.append(large, np.float32(bad)))
    assert not finite(np.float32([np.inf, -np.inf, 1]))
