"""One record of a cache as bytes: a line of JSON, then the arrays that it names, one after the other.

Numbers, texts and tuples of them stand in the JSON; arrays are little-endian and keep dtype and shape. bfloat16, which numpy has not, is
the upper half of a float32, rounded to nearest even.
"""

import json
from collections.abc import Mapping

import numpy as np

ARRAYS = "arrays"
BFLOAT16 = "bfloat16"


def to_bytes(record: Mapping, narrow: tuple[str, ...] = ()) -> bytes:
    """A record, {key: array, number, text, or a tuple of these}, as bytes; the float32 arrays named in `narrow` in bfloat16."""
    plain, listed, pieces = {}, [], []
    for key, value in record.items():
        if isinstance(value, np.generic):
            value = value.item()
        if not isinstance(value, np.ndarray):
            plain[key] = value
            continue
        name = BFLOAT16 if key in narrow else value.dtype.newbyteorder("<").str
        listed.append([key, name, list(value.shape)])
        pieces.append((_upper_halves(value) if key in narrow else np.ascontiguousarray(value, value.dtype.newbyteorder("<"))).tobytes())
    return b"".join([json.dumps(plain | {ARRAYS: listed}).encode(), b"\n", *pieces])


def from_bytes(data: bytes) -> dict:
    """The record; arrays may not be written to. Lists come back as tuples, bfloat16 as float32."""
    end = data.index(b"\n")
    record = json.loads(data[:end])
    listed, at = record.pop(ARRAYS), end + 1
    record = {key: _tuples(value) for key, value in record.items()}
    for key, name, shape in listed:
        dtype, number = np.dtype("<u2" if name == BFLOAT16 else name), int(np.prod(shape))
        flat = np.frombuffer(data, dtype, number, at)
        at += number * dtype.itemsize
        record[key] = (_widened(flat) if name == BFLOAT16 else flat).reshape(shape)
    return record


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _upper_halves(array: np.ndarray) -> np.ndarray:
    """float32, finite -> uint16 of the same shape."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype("<u2")


def _widened(halves: np.ndarray) -> np.ndarray:
    return (halves.astype(np.uint32) << np.uint32(16)).view(np.float32)
