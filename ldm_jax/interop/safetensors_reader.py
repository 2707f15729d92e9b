"""A strict reader of safetensors files: the whole header is checked before any tensor is made.

The format (https://github.com/huggingface/safetensors, "Format"): 8 bytes little-endian header size, a JSON header
{name: {"dtype", "shape", "data_offsets"}} and the data, which the tensors must cover without hole or overlap. The
library's own reader takes a header in which a name stands twice, although the format forbids it; this one does not.
"""

import json
import struct

import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.interop.checks import ELEMENTS, TensorFile, as_file, check_names, check_sha256, check_shape, elements, once
from ldm_jax.interop.mapped import MappedFile, Stored, Tensors

HEADER_LIMIT = 100_000_000  # bytes, the library's own limit
FIELDS = {"dtype", "shape", "data_offsets"}


def read_safetensors(path, *, sha256: str = "") -> TensorFile:
    """Reads a safetensors file; arrays are read-only views of the file, paged in when they are used.

    Raises:
      UserError: no file; truncated or with bytes to spare; a header that is not JSON or holds a name twice, an unknown
        element type, a bad shape, a hole or an overlap; a name like a path; another sha256 than the one given.
    """
    path = as_file(path)
    if sha256:
        check_sha256(path, sha256)
    size = path.stat().st_size
    header, start = _header(path, size)
    entries = {name: _entry(path, name, entry) for name, entry in header.items() if name != "__metadata__"}
    check_names(entries, path)
    _check_cover(path, entries, size - start)
    file = MappedFile(path)
    tensors = Tensors({name: Stored(file, start + begin, kind, shape) for name, (kind, shape, begin, _) in entries.items()})
    return TensorFile(tensors, metadata=_metadata(path, header.get("__metadata__", {})))


def _header(path, size: int) -> tuple[dict, int]:
    with open(path, "rb") as file:
        first = file.read(8)
        if len(first) < 8:
            raise UserError(f"{path}: {size} bytes: too short for a safetensors file")
        length = struct.unpack("<Q", first)[0]
        if length > HEADER_LIMIT or 8 + length > size:
            raise UserError(f"{path}: its header is said to be {length} bytes, the file is {size}: truncated, or not safetensors")
        text = file.read(length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: bad safetensors header: {str(error)[:200]}") from None
    if not isinstance(header, dict):
        raise UserError(f"{path}: bad safetensors header: not a JSON object")
    return header, 8 + length


def _metadata(path, found) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise UserError(f"{path}: bad safetensors header: __metadata__ is no table of texts")
    return found


def _entry(path, name: str, entry) -> tuple[np.dtype, tuple[int, ...], int, int]:
    def bad(why):
        return UserError(f"{path}: bad safetensors header: tensor {name[:80]!r}: {why}")
    if not isinstance(entry, dict) or set(entry) != FIELDS:
        raise bad("expected dtype, shape and data_offsets")
    kind = ELEMENTS.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if kind is None:
        raise bad(f"element type {entry['dtype']!r} is not one of {', '.join(ELEMENTS)}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    whole = all(isinstance(x, list) and all(type(i) is int and 0 <= i < 2**63 for i in x) for x in (shape, offsets))
    if not whole or len(offsets) != 2 :
        raise bad(f"shape {str(shape)[:80]} and data_offsets {str(offsets)[:80]} are not lists of whole numbers >= 0")
    try:
        check_shape(shape)
    except ValueError as error:
        raise bad(str(error)) from None
    begin, end = offsets
    if end - begin != elements(shape) * kind.itemsize:
        raise bad(f"shape {shape} of {entry['dtype']} takes {elements(shape) * kind.itemsize} bytes, its offsets say {end - begin}")
    return kind, tuple(shape), begin, end


def _check_cover(path, entries: dict, size: int) -> None:
    """The tensors, in the order of their offsets, must cover the data exactly."""
    reached = 0
    for name, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != reached:
            kind = "overlaps the one before it" if begin < reached else f"leaves {begin - reached} bytes unused before it"
            raise UserError(f"{path}: bad safetensors header: tensor {name[:80]!r} {kind}")
        reached = end
    if reached != size:
        raise UserError(f"{path}: the tensors take {reached} bytes, the file holds {size}: "
                        + ("truncated" if size < reached else "bytes follow the last tensor"))
