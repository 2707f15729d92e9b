"""Where each tensor of a published layout stands in ours, and how one becomes the other, both ways.

A name table (`unet_names.py`, `first_stage_names.py`, `text_names.py`) gives a tuple of Places for a module; everything else
about a format is here: the strict comparison, reading, writing. Nothing is ever left over on either side in silence.
"""

import dataclasses
import fnmatch
from collections.abc import Iterator, Mapping

import numpy as np

from ldm_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the axes of a foreign tensor stand. turned: theirs is the transpose that `axes` undoes; ones: how many trailing axes of
    length 1 theirs has more; heads: above 0, theirs holds (heads, parts, width of a head) on its first axis where ours holds
    (parts, heads, width) on its last.
    """

    axes: tuple[int, ...] = ()
    ones: int = 0
    heads: int = 0
    parts: int = 3

    def ours(self, theirs: np.ndarray) -> np.ndarray:
        """Our array of one foreign tensor; a view where that is possible."""
        array = theirs.reshape(theirs.shape[: theirs.ndim - self.ones]) if self.ones else theirs
        if self.heads:
            split = array.reshape(self.heads, self.parts, -1, *array.shape[1:])
            array = split.swapaxes(0, 1).reshape(array.shape)
        return array.transpose(self.axes) if self.axes else array

    def theirs(self, ours: np.ndarray) -> np.ndarray:
        """The inverse of `ours`."""
        array = ours.transpose(np.argsort(self.axes)) if self.axes else ours
        if self.heads:
            split = array.reshape(self.parts, self.heads, -1, *array.shape[1:])
            array = split.swapaxes(0, 1).reshape(array.shape)
        return array.reshape(*array.shape, *(1,) * self.ones)

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The foreign shape of our shape."""
        return (tuple(ours[i] for i in np.argsort(self.axes)) if self.axes else tuple(ours)) + (1,) * self.ones


SAME = Layout()
LINEAR = Layout(axes=(1, 0))  # torch's linear layer, [out, in]
POINTWISE = Layout(axes=(1, 0), ones=2)  # a 1x1 convolution
LINE = Layout(axes=(1, 0), ones=1)  # a 1-D convolution of width 1
CONV = Layout(axes=(2, 3, 1, 0))  # OIHW -> HWIO


@dataclasses.dataclass(frozen=True)
class Place:
    """Our path ("down_0/block_0/conv1/kernel") and the foreign tensors that are joined on the last axis of ours, in equal parts."""

    ours: str
    theirs: tuple[str, ...]
    layout: Layout = SAME

    def shapes(self, ours: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """The foreign shapes that our shape asks for."""
        part = (*ours[:-1], ours[-1] // len(self.theirs)) if len(self.theirs) > 1 else tuple(ours)
        return {name: self.layout.shape(part) for name in self.theirs}

    def read(self, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        """Our array."""
        arrays = [self.layout.ours(np.asarray(tensors[name])) for name in self.theirs]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)

    def write(self, ours: np.ndarray) -> dict[str, np.ndarray]:
        """The foreign tensors."""
        parts = np.split(ours, len(self.theirs), axis=-1) if len(self.theirs) > 1 else [ours]
        return {name: self.layout.theirs(part) for name, part in zip(self.theirs, parts)}


def prefixed(places, ours: str = "", theirs: str = "") -> tuple[Place, ...]:
    """The places of a part inside a whole: "network/" and "model.diffusion_model.", for example."""
    return tuple(Place(ours + p.ours, tuple(theirs + name for name in p.theirs), p.layout) for p in places)


def check(places, ours: Mapping[str, tuple[int, ...]], theirs: Mapping[str, tuple[int, ...]], where: str,
          ignorable: tuple[str, ...] = ()) -> None:
    """The strict comparison, by shapes alone.

    Args:
      ours: path -> shape of our tree. theirs: name -> shape of the file.
      where: whose tensors these are, for the message.
      ignorable: patterns (fnmatch) of foreign names that may be there and have no place.

    Raises:
      UserError: the first tensors that are missing, unknown, or of another shape, with their number.
      ValueError: a path of ours without a place: the name table is wrong, not the file.
    """
    placed = {place.ours: place for place in places}
    if placed.keys() != ours.keys() or len(placed) != len(places):
        raise ValueError(f"name table: {sorted(placed.keys() ^ ours.keys())[:5]} of ours have no place, or two")
    wanted = {name: shape for path, place in placed.items() for name, shape in place.shapes(tuple(ours[path])).items()}
    unknown = [name for name in theirs if name not in wanted and not any(fnmatch.fnmatchcase(name, p) for p in ignorable)]
    told = [f"{name} {list(theirs[name])} is not of this architecture" for name in unknown]
    told += [f"{name} {list(shape)} is missing" for name, shape in wanted.items() if name not in theirs]
    told += [f"{name} is {list(theirs[name])}, expected {list(shape)}" for name, shape in wanted.items()
             if name in theirs and tuple(theirs[name]) != tuple(shape)]
    if told:
        raise UserError(f"{where}: {len(told)} tensors differ: {'; '.join(told[:5])}{'; ...' if len(told) > 5 else ''}")


def read(places, tensors: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """(our path, our array) one after the other; nothing is held. After `check`."""
    return ((place.ours, place.read(tensors)) for place in places)


def write(places, ours: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """(foreign name, foreign array) one after the other; nothing is held."""
    return (item for place in places for item in place.write(np.asarray(ours[place.ours])).items())
