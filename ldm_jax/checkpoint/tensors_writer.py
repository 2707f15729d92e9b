"""Safetensors files written an array at a time: the header first, from names, types and shapes alone.

Layout (https://github.com/huggingface/safetensors, "Format"): u64 header size, JSON header, the arrays in little-endian
row-major order without gaps; wider elements stand first, so that every array is aligned to its own.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from ldm_jax.core.errors import UserError

TYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32", "int16": "I16",
         "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL"}
FLOATS = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
PIECE = 4 * 2**20  # bytes brought into order and cast at a time
SHARD = 5 * 10**9  # bytes, the field's limit of one file


@dataclasses.dataclass(frozen=True)
class Weights:
    """Tensors to be written. specs: name -> (shape, element type); arrays: (name, array) in any order, each name once."""

    specs: Mapping[str, tuple[tuple[int, ...], Any]]
    arrays: Iterable[tuple[str, Any]]

    @classmethod
    def of(cls, leaves: Mapping[str, Any]) -> "Weights":
        """Of arrays that are there, on any device."""
        return cls({name: (tuple(leaf.shape), leaf.dtype) for name, leaf in leaves.items()}, leaves.items())


def write_tensors(path, weights: Weights, *, dtype: str = "", metadata: Mapping[str, str] | None = None) -> None:
    """Writes one file, whole or not at all; one array at a time is brought to the host.

    Args:
      path: replaced if it is there.
      dtype: "float32", "float16" or "bfloat16" for all floating-point tensors; "" keeps each as it is.
      metadata: of the header; {"format": "pt"} for torch's libraries.

    Raises:
      UserError: an element type that safetensors cannot hold; a finite number that is none in `dtype`; a disk that is full.
      ValueError: an array that is not in the specs, missing from them, twice, or of another shape or element type.
    """
    _write([(pathlib.Path(path), list(weights.specs))], weights, dtype, metadata)


def write_shards(folder, base: str, weights: Weights, *, dtype: str = "", metadata: Mapping[str, str] | None = None,
                 limit: int = SHARD, variant: str = "") -> list[str]:
    """Writes `base.safetensors`, or above `limit` bytes `base-0000i-of-0000N.safetensors` and their index.json.

    Returns:
      The names of the files. variant "fp16": `base.fp16.safetensors`, as diffusers names it.

    Raises:
      As `write_tensors`.
    """
    folder, mark = pathlib.Path(folder), f".{variant}" if variant else ""
    sizes = {name: math.prod(shape) * _kind(name, kind, dtype).itemsize for name, (shape, kind) in weights.specs.items()}
    groups: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if groups[-1] and filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    count = len(groups)
    files = [f"{base}{mark}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    files = files if count > 1 else [f"{base}{mark}.safetensors"]
    _write([(folder / file, group) for file, group in zip(files, groups)], weights, dtype, metadata)
    if count == 1:
        return files
    table = {name: file for file, group in zip(files, groups) for name in group}
    index = f"{base}.safetensors.index{mark}.json"
    text = json.dumps({"metadata": {"total_size": sum(sizes.values())}, "weight_map": table}, indent=2, sort_keys=True) + "\n"
    (folder / index).write_text(text, encoding="utf-8")
    return [*files, index]


def _write(files: list[tuple[pathlib.Path, list[str]]], weights: Weights, dtype: str, metadata) -> None:
    """Every tensor into the file of its name, at its place; the files get their names when all of them are whole."""
    kinds = {name: _kind(name, kind, dtype) for name, (_, kind) in weights.specs.items()}
    partial = [path.with_name(f".{path.name}.partial") for path, _ in files]
    places: dict[str, tuple[Any, int]] = {}
    try:
        with contextlib.ExitStack() as stack:
            opened = [stack.enter_context(open(path, "wb")) for path in partial]
            for file, (_, names) in zip(opened, files):
                shapes = {name: (weights.specs[name][0], kinds[name]) for name in names}
                places |= {name: (file, start) for name, start in _begin(file, shapes, metadata).items()}
            for name, array in weights.arrays:
                shape, kind = weights.specs[name] if name in places else (None, None)
                if shape is None or tuple(shape) != tuple(array.shape) or np.dtype(kind) != array.dtype:
                    raise ValueError(f"{name} {array.dtype} {tuple(array.shape)} is written twice, not announced, or not {kind} {shape}")
                file, start = places.pop(name)
                file.seek(start)
                for piece in _pieces(np.asarray(array), kinds[name], name):
                    file.write(piece)
            if places:
                raise ValueError(f"{len(places)} tensors were never given: {', '.join(list(places)[:5])}")
            for file in opened:
                file.flush()
                os.fsync(file.fileno())
        for path, (final, _) in zip(partial, files):
            os.replace(path, final)
    except OSError as error:
        raise UserError(f"{files[0][0]} could not be written: {error}") from error
    finally:
        for path in partial:
            path.unlink(missing_ok=True)


def _kind(name: str, kind, dtype: str) -> np.dtype:
    """The element type that a tensor is written in."""
    if dtype and dtype not in FLOATS:
        raise UserError(f"dtype={dtype!r}: expected one of {', '.join(FLOATS)}, or '' to keep each tensor's")
    kind = np.dtype(kind)
    if kind.name not in TYPES:
        raise UserError(f"{name}: safetensors cannot hold {kind.name}")
    return FLOATS[dtype] if dtype and kind.name in ("float64", *FLOATS) else kind


def _begin(file, shapes: Mapping[str, tuple[tuple[int, ...], np.dtype]], metadata) -> dict[str, int]:
    """Writes the header and makes room for the data; where each tensor begins."""
    header, starts, offset = {}, {}, 0
    for name, (shape, kind) in sorted(shapes.items(), key=lambda item: -item[1][1].itemsize):
        end = offset + math.prod(shape) * kind.itemsize
        header[name] = {"dtype": TYPES[kind.name], "shape": list(shape), "data_offsets": [offset, end]}
        starts[name], offset = offset, end
    text = json.dumps(({"__metadata__": dict(metadata)} if metadata else {}) | header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    file.truncate(8 + len(text) + offset)
    return {name: 8 + len(text) + start for name, start in starts.items()}


def _pieces(array: np.ndarray, kind: np.dtype, name: str) -> Iterator[memoryview]:
    """The bytes of an array in row-major order, cast, a few rows at a time whatever its strides are."""
    rows = array if array.ndim else array.reshape(1)
    if not rows.size:
        return
    step = max(1, PIECE * len(rows) // rows.nbytes)
    for i in range(0, len(rows), step):
        old = rows[i : i + step]
        with np.errstate(over="ignore"):
            new = np.ascontiguousarray(old, dtype=kind)
        if new.dtype != old.dtype and not _finite(new) and _finite(old):
            raise UserError(f"{name}: its largest number is {np.abs(old.astype(np.float64)).max():.4g}, which {kind.name} "
                            "cannot hold: write it as bfloat16 or float32")
        yield memoryview(new.reshape(-1).view(np.uint8))


def _finite(array: np.ndarray) -> bool:
    return bool(np.isfinite(array if array.dtype.kind == "f" else array.astype(np.float32)).all())
