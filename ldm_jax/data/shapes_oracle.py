"""Reads a picture of the shapes world back: how many things, which shape, colour and place, and their boxes.

It leans on what the world promises: grounds are grey, so the colour of a pixel less its grey part is coverage times the
colour of the thing, whatever the ground; boxes are 1/16 of the side apart, so things are connected regions. For each region
and each shape, area and centre of mass give the one position and size that fit; the shape that, drawn so, is nearest wins.
`misfit` says how far a region is from any shape.

Measured on the standard world, records 0..1999 of the test split at 32x32, clean: all 2000 right in number, shapes, colours,
places, size words and boxes (least overlap with the true box 0.94, largest misfit 0.038). With Gaussian noise of standard
deviation 8 levels added, 500 of 500; with 12 levels, 0.62: specks of chroma begin to count as cover.
"""

import dataclasses

import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.data.shapes_world import COLOUR_VALUES, SHAPES, Scene, Thing, coverage

LEAST_COVERAGE = 0.15  # a pixel less covered than this starts no region
HALF = 0.5 - 1 / 128  # coverage comes in 64ths; what 8 bits round off must not move a pixel that is half covered
LEAST_AREA = 0.005  # of the image; the smallest thing covers 0.02. Smaller regions are specks, not things
FILL = {"circle": np.pi / 4, "square": 1.0, "triangle": 1 / 2, "cross": 5 / 9}  # area in a box of side 1
DROP = {"triangle": 1 / 6}  # how far below the box's centre the centre of mass lies, in sides
CHROMA = COLOUR_VALUES - COLOUR_VALUES.mean(1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class Seen:
    """One thing as read; misfit is the mean difference of coverage between it and the fitted shape, over the shape's area
    (0 exact; clean pictures stay below 0.05)."""

    thing: Thing
    misfit: float


def read_scene(image: np.ndarray) -> tuple[Seen, ...]:
    """The things of a picture, in reading order of their places.

    Args:
      image: uint8 [R, R, 3], R >= 32.

    Raises:
      UserError: another shape or type.
    """
    return tuple(seen for seen, _ in read_covers(image))


def read_covers(image: np.ndarray) -> list[tuple[Seen, np.ndarray]]:
    """Each thing of `read_scene`, and how much of each pixel its region covers, float64 [R, R] in 0..1."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.shape[0] != image.shape[1] or len(image) < 32:
        raise UserError(f"image: expected uint8 [R, R, 3] with R >= 32, got {image.dtype} {list(image.shape)}")
    chroma = image.astype(np.float64)
    chroma -= chroma.mean(2, keepdims=True)
    lengths = np.linalg.norm(CHROMA, axis=1)
    colour = (chroma @ (CHROMA / lengths[:, None]).T).argmax(2)
    alpha = (chroma * CHROMA[colour]).sum(2) / (lengths[colour] ** 2)
    found = []
    for region in regions(alpha > LEAST_COVERAGE):
        votes = np.bincount(colour[region], weights=alpha[region], minlength=len(lengths))
        winner = int(votes.argmax())
        mine = np.clip((chroma @ CHROMA[winner]) / lengths[winner] ** 2, 0, 1) * _grown(region)
        if mine.mean() >= LEAST_AREA:
            found.append((_fit(mine, winner), mine))
    return sorted(found, key=lambda pair: (pair[0].thing.place, pair[0].thing.y, pair[0].thing.x))


def painted(covers: list[tuple[Seen, np.ndarray]], side: int) -> np.ndarray:
    """The segmentation of `read_covers`, uint8 [side, side] as the world's: 0 ground, else 1 + class of the thing that covers half of the
    pixel. A region is of the class that it was read as, but stands as it is in the picture, and not as that thing would be drawn."""
    found = np.zeros((side, side), np.uint8)
    for seen, alpha in covers:
        found[alpha >= HALF] = 1 + seen.thing.label
    return found


def _fit(alpha: np.ndarray, colour: int) -> Seen:
    side = len(alpha)
    centres = (np.arange(side) + 0.5) / side
    total = alpha.sum()
    x, y = (alpha.sum(0) @ centres) / total, (alpha.sum(1) @ centres) / total
    tries = []
    for shape, word in enumerate(SHAPES):
        size = float(np.sqrt(total / side**2 / FILL[word]))
        fitted = Thing(shape, colour, float(x), float(y - DROP.get(word, 0.0) * size), size)
        difference = np.abs(coverage(shape, fitted.x, fitted.y, size, side) - alpha).sum() / total
        tries.append(Seen(fitted, float(difference)))
    return min(tries, key=lambda s: s.misfit)


def regions(mask: np.ndarray) -> list[np.ndarray]:
    """The 8-connected regions of a bool [R, R], each as a mask, in the order of their last pixels."""
    marks = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        spread = np.where(mask, _highest_near(marks), 0)
        if np.array_equal(spread, marks):
            return [marks == mark for mark in np.unique(marks) if mark]
        marks = spread


def _grown(mask: np.ndarray) -> np.ndarray:
    return _highest_near(mask.astype(np.int64)) > 0


def _highest_near(marks: np.ndarray) -> np.ndarray:
    """The maximum over each pixel's 3x3 neighbourhood."""
    wide = np.pad(marks, 1)
    rows = np.maximum(np.maximum(wide[:-2], wide[1:-1]), wide[2:])
    return np.maximum(np.maximum(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:])


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1)."""
    wide, high = (max(0.0, min(a[k + 2], b[k + 2]) - max(a[k], b[k])) for k in (0, 1))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return wide * high / max(areas - wide * high, 1e-12)


def agrees(seen: tuple[Seen, ...], told: Scene, least_overlap: float = 0.9) -> bool:
    """Whether a reading is right: the number of things, and each one's shape, colour, place, size word and box."""
    return len(seen) == len(told.things) and all(
        s.thing.words == t.words and overlap(s.thing.box, t.box) >= least_overlap for s, t in zip(seen, told.things))
