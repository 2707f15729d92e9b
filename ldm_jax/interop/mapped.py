"""The tensors of a file as a mapping: each is a view of the mapped file, made when it is asked for.

A whole model is read so in little memory: pages that earlier tensors touched are given back to the system (they come again
from the file if somebody touches them), so what counts against the process is what it has copied.
"""

import dataclasses
import mmap
from collections.abc import Iterator, Mapping

import numpy as np

BUDGET = 32 * 2**20  # bytes of tensors handed out before their pages are given back


class MappedFile:
    """A file's bytes, read-only. The file must stay as it is while arrays of it live."""

    def __init__(self, path):
        with open(path, "rb") as file:
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.given = 0

    def bytes(self, start: int, count: int) -> np.ndarray:
        """uint8 [count] at `start`."""
        self.given += count
        if self.given > BUDGET and hasattr(mmap, "MADV_DONTNEED"):
            self.map.madvise(mmap.MADV_DONTNEED)  # read-only and of a file: nothing is lost
            self.given = count
        return np.frombuffer(self.map, np.uint8, count, start)


@dataclasses.dataclass(frozen=True)
class Stored:
    """Where a tensor stands: start in bytes, element type, shape, steps in elements (None: row after row)."""

    file: MappedFile
    start: int
    dtype: np.dtype
    shape: tuple[int, ...]
    steps: tuple[int, ...] | None = None

    def array(self) -> np.ndarray:
        """The tensor, read-only."""
        if 0 in self.shape:
            empty = np.zeros(self.shape, self.dtype)
            empty.flags.writeable = False
            return empty
        size = self.dtype.itemsize
        if self.steps is None:
            count = int(np.prod(self.shape, dtype=np.int64))
            return self.file.bytes(self.start, count * size).view(self.dtype).reshape(self.shape)
        last = sum((n - 1) * step for n, step in zip(self.shape, self.steps))
        flat = self.file.bytes(self.start, (last + 1) * size).view(self.dtype)
        return np.lib.stride_tricks.as_strided(flat, self.shape, tuple(step * size for step in self.steps), writeable=False)


class Tensors(Mapping):
    """name -> array of stored tensors; `shapes`, `dtypes`, `pick` and `joined` below touch none."""

    def __init__(self, places: Mapping[str, Stored]):
        self.places = dict(places)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.places[name].array()

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def __contains__(self, name) -> bool:
        return name in self.places

    def __repr__(self) -> str:
        return f"Tensors({len(self.places)})"


def shapes(tensors: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """name -> shape; of stored tensors without touching one."""
    if isinstance(tensors, Tensors):
        return {name: place.shape for name, place in tensors.places.items()}
    return {name: tuple(array.shape) for name, array in tensors.items()}


def dtypes(tensors: Mapping[str, np.ndarray]) -> dict[str, np.dtype]:
    """name -> element type; of stored tensors without touching one."""
    if isinstance(tensors, Tensors):
        return {name: place.dtype for name, place in tensors.places.items()}
    return {name: array.dtype for name, array in tensors.items()}


def pick(tensors: Mapping[str, np.ndarray], names: Mapping[str, str]) -> Mapping[str, np.ndarray]:
    """{new name: old name} of a mapping, as one of the same kind."""
    if isinstance(tensors, Tensors):
        return Tensors({new: tensors.places[old] for new, old in names.items()})
    return {new: tensors[old] for new, old in names.items()}


def joined(parts) -> Mapping[str, np.ndarray]:
    """One mapping of several whose names differ."""
    parts = list(parts)
    if all(isinstance(part, Tensors) for part in parts):
        return Tensors({name: place for part in parts for name, place in part.places.items()})
    return {name: part[name] for part in parts for name in part}
