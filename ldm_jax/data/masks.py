"""Random masks to train inpainting with: float32 [H, W] of the size of a record's image, 1 where it is made anew, 0 where it stays.

The sizes and numbers of strokes and boxes are LaMa's wide masks for images of 256 x 256 (arXiv 2109.07161, its training on
Places), by whose protocol latent diffusion's inpainting was trained; sides here are in 256ths of the image's side, so that a small
image has the same masks. LaMa's angles are whole radians; here they are any. Every mask makes at least one pixel anew.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.data.maker import Maker

PUBLISHED = 256  # the side, in pixels, that LaMa's lengths are of
SEGMENTS = 5  # of a stroke, at most
LENGTH, WIDTH = 10, 5  # the least, of 256
TURNS = (0.0, 4.0)  # the directions of a stroke's pieces, in radians; every other stroke has them the other way round


@dataclasses.dataclass(frozen=True)
class FreeForm(Maker):
    """Broad strokes of one to five straight pieces, with round ends.

    least, most: strokes; length, width: the largest of a piece beyond the least (10 and 5), all lengths in 256ths of the side.
    """

    least: int = 1
    most: int = 5
    length: float = 200.0
    width: float = 100.0
    name: ClassVar[str] = "free_form_mask"
    gives: ClassVar[tuple[str, ...]] = ("mask",)

    def __post_init__(self):
        _check_order(self.least, self.most)
        if not (self.length >= 0 and self.width >= 0):
            raise UserError(f"length={self.length}, width={self.width}: expected numbers of 0 or above, in 256ths of the side")

    def __call__(self, record: Mapping, rng: np.random.Generator) -> dict[str, np.ndarray]:
        anew = np.zeros(record["image"].shape[:2], bool)
        high, wide = anew.shape
        unit = min(high, wide) / PUBLISHED
        for i in range(int(rng.integers(self.least, self.most + 1))):
            here = np.array([int(rng.random() * high) + 0.5, int(rng.random() * wide) + 0.5])  # a pixel's centre: never an empty mask
            for _ in range(int(rng.integers(1, SEGMENTS + 1))):
                angle = (1 if i % 2 else -1) * rng.uniform(*TURNS)
                length = unit * (LENGTH + self.length * rng.random())
                width = unit * (WIDTH + self.width * rng.random())
                there = np.clip(here + length * np.array([np.cos(angle), np.sin(angle)]), 0, (high, wide))
                _draw(anew, here, there, width)
                here = there
        return {"mask": anew.astype(np.float32)}


@dataclasses.dataclass(frozen=True)
class Box(Maker):
    """Rectangles.

    least, most: how many; smallest, largest: a side, and margin: to the image's edge, all in 256ths of the side.
    """

    least: int = 1
    most: int = 4
    smallest: float = 30.0
    largest: float = 150.0
    margin: float = 10.0
    name: ClassVar[str] = "box_mask"
    gives: ClassVar[tuple[str, ...]] = ("mask",)

    def __post_init__(self):
        _check_order(self.least, self.most)
        if not 0 < self.smallest <= self.largest <= PUBLISHED - 2 * self.margin <= PUBLISHED:
            raise UserError(f"smallest={self.smallest}, largest={self.largest}, margin={self.margin}: expected sides in order, above 0 "
                            f"and up to {PUBLISHED} less two margins, in 256ths of the side")

    def __call__(self, record: Mapping, rng: np.random.Generator) -> dict[str, np.ndarray]:
        mask = np.zeros(record["image"].shape[:2], np.float32)
        for _ in range(int(rng.integers(self.least, self.most + 1))):
            (top, bottom), (left, right) = (self._span(side, min(mask.shape) / PUBLISHED, rng) for side in mask.shape)
            mask[top:bottom, left:right] = 1
        return {"mask": mask}

    def _span(self, side: int, unit: float, rng) -> tuple[int, int]:
        """First pixel and end of a box, of at least one pixel, along a side."""
        margin = min(round(self.margin * unit), (side - 1) // 2)
        length = min(max(round(unit * rng.uniform(self.smallest, self.largest)), 1), side - 2 * margin)
        first = margin + int(rng.random() * (side - 2 * margin - length + 1))
        return first, first + length


@dataclasses.dataclass(frozen=True)
class Full(Maker):
    """All is made anew: what an inpainting model needs to have seen to make whole images too."""

    name: ClassVar[str] = "full_mask"
    gives: ClassVar[tuple[str, ...]] = ("mask",)

    def __call__(self, record: Mapping, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"mask": np.ones(record["image"].shape[:2], np.float32)}


@dataclasses.dataclass(frozen=True)
class Outpaint(Maker):
    """A border on some of the four sides, each with probability 1/2, and on one of them at least.

    least, most: its share of the side (LaMa: 0.04 to 0.25).
    """

    least: float = 0.125
    most: float = 0.5
    name: ClassVar[str] = "outpaint_mask"
    gives: ClassVar[tuple[str, ...]] = ("mask",)

    def __post_init__(self):
        if not 0 < self.least <= self.most <= 1:
            raise UserError(f"least={self.least}, most={self.most}: expected shares of the side in order, above 0 and up to 1")

    def __call__(self, record: Mapping, rng: np.random.Generator) -> dict[str, np.ndarray]:
        high, wide = record["image"].shape[:2]
        mask = np.zeros((high, wide), np.float32)
        sides, one, shares = rng.random(4) < 0.5, int(rng.integers(4)), rng.uniform(self.least, self.most, 4)
        if not sides.any():
            sides[one] = True
        left, top, right, bottom = (max(1, round(share * side)) for share, side in zip(shares, (wide, high, wide, high)))
        for chosen, part in zip(sides, (np.s_[:, :left], np.s_[:top], np.s_[:, wide - right:], np.s_[high - bottom:])):
            mask[part] = 1 if chosen else mask[part]
        return {"mask": mask}


@dataclasses.dataclass(frozen=True)
class Mixed(Maker):
    """One of the four others, each as its class has it by default, with these weights (LaMa: strokes and boxes, half each)."""

    free_form: float = 0.4
    box: float = 0.4
    outpaint: float = 0.1
    full: float = 0.1
    name: ClassVar[str] = "mixed_mask"
    gives: ClassVar[tuple[str, ...]] = ("mask",)

    def __post_init__(self):
        if min(self._weights) < 0 or not 0 < sum(self._weights) < np.inf:
            raise UserError(f"free_form={self.free_form}, box={self.box}, outpaint={self.outpaint}, full={self.full}: expected weights of "
                            "0 or above, and one above it")

    @property
    def _weights(self) -> tuple[float, ...]:
        return self.free_form, self.box, self.outpaint, self.full

    def __call__(self, record: Mapping, rng: np.random.Generator) -> dict[str, np.ndarray]:
        # not Generator.choice: the same draw must mean the same kind whatever numpy's way to choose is
        ends = np.cumsum(self._weights)
        kind = int(np.searchsorted(ends, rng.random() * ends[-1], side="right"))
        return (FreeForm(), Box(), Outpaint(), Full())[kind](record, rng)


def _draw(anew: np.ndarray, start: np.ndarray, end: np.ndarray, width: float) -> None:
    """Sets the pixels of anew [H, W] whose centres are within width / 2 of the segment between two points (down, across)."""
    reach = width / 2
    low = np.maximum(np.floor(np.minimum(start, end) - reach), 0).astype(int)
    high = np.minimum(np.ceil(np.maximum(start, end) + reach), anew.shape).astype(int)
    down, across = np.ogrid[low[0]:high[0], low[1]:high[1]]
    y, x, (dy, dx) = down + 0.5 - start[0], across + 0.5 - start[1], end - start
    along = np.clip((y * dy + x * dx) / max(dy * dy + dx * dx, 1e-12), 0, 1)
    anew[low[0]:high[0], low[1]:high[1]] |= (y - along * dy) ** 2 + (x - along * dx) ** 2 <= reach * reach


def _check_order(least, most) -> None:
    if not 1 <= least <= most:
        raise UserError(f"least={least}, most={most}: expected whole numbers from 1, in order")


MASKS = {kind.name: kind for kind in (FreeForm, Box, Full, Outpaint, Mixed)}
