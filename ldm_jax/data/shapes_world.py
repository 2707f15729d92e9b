"""Source `shapes`: a small world of coloured shapes, a pure function of (seed, split, index), at any resolution.

The standard world, version 1 (measurements stand on it; a change of any pixel or word is a new version): 32x32 RGB; one
or two objects, each half of the time; 4 shapes x 6 colours x 9 places; sizes 20 to 45 % of the side; ground plain or a
linear gradient, grey. Objects lie whole inside the image, their bounding boxes at least 1/16 of the side apart.

Lengths are fractions of the side, x to the right, y down, from the top left corner. A place is the cell of a 3x3 grid
that holds the object's centre (of its box), at least 0.04 from the cell's borders; two objects never share a place. Things
are listed in reading order of their places, in captions, boxes and label alike.
"""

import dataclasses
import re
from typing import Literal

import numpy as np

from ldm_jax.core.errors import UserError

VERSION = "1"
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (40, 80, 220),
           "yellow": (240, 210, 40), "magenta": (210, 60, 200), "cyan": (40, 200, 210)}
PLACES = ("at the top left", "at the top", "at the top right", "on the left", "in the centre", "on the right",
          "at the bottom left", "at the bottom", "at the bottom right")
SIZES = {"small": (0.20, 0.27), "": (0.29, 0.36), "large": (0.38, 0.45)}  # the gaps make the word exact
CELL_MARGIN, EDGE, GAP = 0.04, 1 / 64, 1 / 16
GREYS = (20, 235)
SUPERSAMPLES = 8  # a pixel's coverage is the mean of 8 x 8 points
CLASSES = len(SHAPES) * len(COLOURS)
COLOUR_NAMES, COLOUR_VALUES = tuple(COLOURS), np.array(list(COLOURS.values()), np.float64)


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object: indices into SHAPES and COLOURS, centre and side of its (square) bounding box."""

    shape: int
    colour: int
    x: float
    y: float
    size: float

    @property
    def place(self) -> int:
        """0..8, row by row."""
        return min(int(self.y * 3), 2) * 3 + min(int(self.x * 3), 2)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1."""
        half = self.size / 2
        return self.x - half, self.y - half, self.x + half, self.y + half

    @property
    def label(self) -> int:
        """0..23: shape * 6 + colour."""
        return self.shape * len(COLOURS) + self.colour

    @property
    def words(self) -> tuple[str, str, str, str]:
        """(size word, colour, shape, place); the size word is "small", "" or "large"."""
        size = next((word for word, (_, most) in SIZES.items() if self.size < most + 0.01), "large")
        return size, COLOUR_NAMES[self.colour], SHAPES[self.shape], PLACES[self.place]


@dataclasses.dataclass(frozen=True)
class Ground:
    """Grey levels 0..255 at the two ends of direction (across, down); equal ends are a plain ground."""

    first: float
    last: float
    across: float
    down: float


@dataclasses.dataclass(frozen=True)
class Scene:
    things: tuple[Thing, ...]
    ground: Ground

    @property
    def caption(self) -> str:
        """As "a small red circle at the top left and a blue square in the centre"; see parse_caption."""
        return " and ".join(" ".join(("a", *filter(None, thing.words))) for thing in self.things)


class Shapes:
    """Records of the world: image uint8 [R, R, 3]; label, the class (0..23) of the first thing in reading order; caption;
    boxes float32 [n, 4] (x0, y0, x1, y1 in 0..1) and box_labels int32 [n]; segmentation uint8 [R, R]: 0 ground, else
    1 + class, where a thing covers at least half of the pixel.

    Args:
      split: "train" or "test": independent streams, disjoint by the derivation of the generator.
      resolution: side in pixels. The scenes are the same at every resolution.
      records: how many; 0 is 50,000 for train and 2,000 for test.
      world: the seed of the world, 0 .. 2^32 - 1; 0 is the standard one.
    """

    name, version, classes, channels = "shapes", VERSION, CLASSES, 3

    def __init__(self, split: Literal["train", "test"], resolution: int = 32, records: int = 0, world: int = 0):
        if split not in ("train", "test"):
            raise UserError(f"split={split!r}: expected train or test")
        if not 8 <= resolution <= 4096 or records < 0 or not 0 <= world < 2**32:
            raise UserError(f"resolution={resolution}, records={records}, world={world}: expected resolution 8 to 4096, records >= 0, "
                            "world 0 to 2^32 - 1")
        self.split, self.resolution, self.world = split, resolution, world
        self._records = records or {"train": 50_000, "test": 2_000}[split]

    def __len__(self) -> int:
        return self._records

    def scene(self, i: int) -> Scene:
        return scene(self.world, self.split, i)

    def caption(self, i: int) -> str:
        """Of a record, without its image."""
        return self.scene(i).caption

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < self._records:
            raise IndexError(i)
        told = self.scene(i)
        image, segmentation = draw(told, self.resolution)
        return {"image": image, "segmentation": segmentation, "label": told.things[0].label, "caption": told.caption,
                "boxes": np.array([thing.box for thing in told.things], np.float32),
                "box_labels": np.array([thing.label for thing in told.things], np.int32)}

    def fingerprint(self) -> dict:
        return {"name": self.name, "version": self.version, "split": self.split, "records": len(self),
                "resolution": self.resolution, "world": self.world}


def scene(seed: int, split: str, index: int) -> Scene:
    """Scene `index` of a split. Only `random()` of PCG64 is drawn from: numpy promises that stream, not the others."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, ("train", "test").index(split), index])))
    count = 1 + _pick(rng, 2)
    things = tuple(_thing(rng) for _ in range(count))
    while count == 2 and not _apart(*things):  # so pairs are smaller and nearer the corners than single things
        things = (_thing(rng), _thing(rng))
    low, high = GREYS
    plain, first, last = rng.random() < 0.5, low + (high - low) * rng.random(), low + (high - low) * rng.random()
    across, down = 2 * rng.random() - 1, 2 * rng.random() - 1
    return Scene(tuple(sorted(things, key=lambda thing: thing.place)), Ground(first, first if plain else last, across, down))


def _pick(rng, n: int) -> int:
    return int(rng.random() * n)


def _thing(rng) -> Thing:
    shape, colour, place, (least, most) = _pick(rng, 4), _pick(rng, 6), _pick(rng, 9), tuple(SIZES.values())[_pick(rng, 3)]
    size = least + (most - least) * rng.random()

    def within(cell: int) -> float:
        low = max(cell / 3 + CELL_MARGIN, size / 2 + EDGE)
        high = min((cell + 1) / 3 - CELL_MARGIN, 1 - size / 2 - EDGE)
        return low + (high - low) * rng.random()

    return Thing(shape, colour, within(place % 3), within(place // 3), size)


def _apart(a: Thing, b: Thing) -> bool:
    return max(abs(a.x - b.x), abs(a.y - b.y)) >= (a.size + b.size) / 2 + GAP


def coverage(shape: int, x: float, y: float, size: float, resolution: int) -> np.ndarray:
    """How much of each pixel a shape covers, float64 [R, R] in 0..1, by 8x8 points a pixel. The shapes, in a box of side s:
    circle of diameter s; square; triangle with its apex in the middle of the top and its base the bottom; cross with arms s/3 wide."""
    whole = np.zeros((resolution, resolution))
    first, last = ((np.array([x, y]) + sign * size / 2) * resolution for sign in (-1, 1))
    left, top = np.clip(np.floor(first), 0, resolution).astype(int)
    right, bottom = np.clip(np.ceil(last), 0, resolution).astype(int)
    if right <= left or bottom <= top:
        return whole
    u = ((np.arange((right - left) * SUPERSAMPLES) + 0.5) / SUPERSAMPLES + left) / resolution - x
    v = ((np.arange((bottom - top) * SUPERSAMPLES) + 0.5) / SUPERSAMPLES + top)[:, None] / resolution - y
    half = size / 2
    inside = (np.abs(u) <= half) & (np.abs(v) <= half)
    match SHAPES[shape]:
        case "circle":
            inside &= u * u + v * v <= half * half
        case "triangle":
            inside &= 2 * np.abs(u) <= v + half
        case "cross":
            inside &= (np.abs(u) <= size / 6) | (np.abs(v) <= size / 6)
    points = inside.reshape(bottom - top, SUPERSAMPLES, right - left, SUPERSAMPLES)
    whole[top:bottom, left:right] = points.mean((1, 3))
    return whole


def draw(told: Scene, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """(image uint8 [R, R, 3], segmentation uint8 [R, R])."""
    centres = (np.arange(resolution) + 0.5) / resolution - 0.5
    ground = told.ground
    reach = max((abs(ground.across) + abs(ground.down)) / 2, 1e-9)
    along = 0.5 + (ground.across * centres[None, :] + ground.down * centres[:, None]) / (2 * reach)
    image = np.repeat(np.rint(ground.first + (ground.last - ground.first) * along)[..., None], 3, axis=2)
    segmentation = np.zeros((resolution, resolution), np.uint8)
    for thing in told.things:
        alpha = coverage(thing.shape, thing.x, thing.y, thing.size, resolution)
        image += alpha[..., None] * (COLOUR_VALUES[thing.colour] - image)
        segmentation[alpha >= 0.5] = 1 + thing.label
    return np.rint(image).astype(np.uint8), segmentation


def _one_of(words) -> str:
    return "(" + "|".join(filter(None, words)) + ")"


_PHRASE = re.compile(rf"a (?:{_one_of(SIZES)} )?{_one_of(COLOURS)} {_one_of(SHAPES)} {_one_of(PLACES)}")


def parse_caption(caption: str) -> tuple[tuple[str, str, str, str], ...]:
    """The (size word, colour, shape, place) of each thing that a caption names, in its order: the inverse of Scene.caption.

    Grammar: phrase ("and" phrase)?; phrase: "a" ("small" | "large")? colour shape place.

    Raises:
      UserError: another sentence.
    """
    phrases = [_PHRASE.fullmatch(phrase) for phrase in caption.split(" and ")]
    if not 1 <= len(phrases) <= 2 or not all(phrases):
        raise UserError(f"caption {caption!r}: expected one or two of 'a [small|large] COLOUR SHAPE PLACE' joined by 'and'; colours "
                        f"{', '.join(COLOURS)}; shapes {', '.join(SHAPES)}; places {', '.join(PLACES)}")
    return tuple((m[1] or "", m[2], m[3], m[4]) for m in phrases)
