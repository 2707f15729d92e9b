"""Samples of the shapes world as its oracle reads them, what they were asked to be, and means over them with their errors."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ldm_jax.data.shapes_oracle import LEAST_COVERAGE, Seen, read_covers
from ldm_jax.data.shapes_world import EDGE, GAP, SIZES, Scene, Thing

MISFIT = 0.16  # of a thing that is one of the shapes: the nearest that is none (an ellipse of 1.3 to 1, a square on its tip) is 0.164 away;
# clean pictures stay below 0.04, and 99 % of things below 0.14 under the noise that the oracle bears, of 8 levels
LOOSE = 0.25  # the same for things that are only nearer to a shape than an ellipse of 1.5 to 1 is
TOLERANCE = 1 / 32  # of the side: what a valid scene's boxes may be off by, a pixel of the standard world
GREY = 16.0  # levels 0..255: the length of the chroma, averaged over 3 x 3 pixels, that a valid scene's ground stays below


@dataclasses.dataclass(frozen=True, eq=False)
class Held:
    """N held-out records: their scenes, images uint8 [N, R, R, 3] and the batch fields that the model was told, [N, ...] each.

    near: for each record the scenes of the neighbours whose embeddings it was told, where that is known.
    """

    scenes: Sequence[Scene]
    images: np.ndarray
    fields: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    near: Sequence[Sequence[Scene]] | None = None

    @property
    def single(self) -> np.ndarray:
        """bool [N]: one thing, not two."""
        return np.array([len(scene.things) == 1 for scene in self.scenes])

    def part(self, rows: np.ndarray) -> "Held":
        """Some of the records, by their places."""
        return Held([self.scenes[i] for i in rows], self.images[rows], {name: value[rows] for name, value in self.fields.items()},
                    self.near and [self.near[i] for i in rows])


    def pasted(self, images: np.ndarray) -> np.ndarray:
        """Images of these records with the given pixels around the hole, where there is one, as the published script for inpainting pastes
        them; others as they are."""
        mask = self.fields.get("mask")
        return images if mask is None else np.where(np.asarray(mask)[..., None] >= 0.5, images, self.images)


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
    """Images uint8 [N, R, R, 3], each read once."""

    images: np.ndarray

    @functools.cached_property
    def covers(self) -> list[list[tuple[Seen, np.ndarray]]]:
        return [read_covers(image) for image in self.images]

    @property
    def seen(self) -> list[tuple[Seen, ...]]:
        """The things of each image, in reading order."""
        return [tuple(seen for seen, _ in found) for found in self.covers]


@dataclasses.dataclass(frozen=True, eq=False)
class Measure:
    """A number an image [N], the mean of `weight` [N] things each; weight 0: it does not apply to that image."""

    value: np.ndarray
    weight: np.ndarray | None = None

    def of(self, rows: np.ndarray) -> tuple[float | None, float | None, int]:
        """Mean over the things of some images (bool [N]), its standard error (images drawn anew), and how many things there are;

        None where there is none. Of shares p of n images the error is sqrt(p (1 - p) / n).
        """
        value = np.asarray(self.value, np.float64)[rows]
        weight = np.ones(len(value)) if self.weight is None else np.asarray(self.weight, np.float64)[rows]
        total = weight.sum()
        if not total:
            return None, None, 0
        mean = (weight * np.where(weight > 0, value, 0)).sum() / total
        error = np.sqrt((weight**2 * np.square(np.where(weight > 0, value - mean, 0))).sum()) / total
        return float(mean), float(error), int(total)


@dataclasses.dataclass(frozen=True, eq=False)
class Pooled:
    """Intersections and unions [N, K] of K classes over all images together: the mean over the classes that are present."""

    intersection: np.ndarray
    union: np.ndarray

    def of(self, rows: np.ndarray) -> tuple[float | None, None, int]:
        both, either = self.intersection[rows].sum(0), self.union[rows].sum(0)
        present = either > 0
        return (float((both[present] / either[present]).mean()) if present.any() else None), None, int(present.sum())


def matched(told: Sequence[Thing], seen: Sequence[Seen], score: Callable[[Thing, Thing], float]) -> list[Seen | None]:
    """For each told thing the one that was seen in its place, so that the sum of the scores is largest; None where none is left."""
    from scipy.optimize import linear_sum_assignment

    found: list[Seen | None] = [None] * len(told)
    if told and seen:
        table = np.array([[score(t, s.thing) for s in seen] for t in told])
        for i, j in zip(*linear_sum_assignment(table, maximize=True)):
            found[i] = seen[j]
    return found


def faults(image: np.ndarray, covers: Sequence[tuple[Seen, np.ndarray]], misfit: float = MISFIT) -> set[str]:
    """What keeps an image from being a scene of the world: "number" (not 1 or 2 things), "shapes" (one that is none of the four),
    "sizes" (out of the world's range), "places" (a box that leaves the image, or two nearer than the world has them), "ground" (not grey).
    """
    things, found = [seen.thing for seen, _ in covers], set()
    if len(things) not in (1, 2):
        found.add("number")
    if any(seen.misfit > misfit for seen, _ in covers):
        found.add("shapes")
    sizes = list(SIZES.values())
    if any(not sizes[0][0] - TOLERANCE <= thing.size <= sizes[-1][1] + TOLERANCE for thing in things):
        found.add("sizes")
    inside = all(EDGE - TOLERANCE <= min(t.box) and max(t.box) <= 1 - EDGE + TOLERANCE for t in things)
    apart = all(_gap(a, b) >= GAP - TOLERANCE for i, a in enumerate(things) for b in things[:i])
    if not inside or not apart:
        found.add("places")
    ground = np.ones(image.shape[:2], bool)
    for _, alpha in covers:
        ground &= alpha <= LEAST_COVERAGE / 2
    chroma = np.pad((image - image.mean(2, keepdims=True)) * ground[..., None], ((1, 1), (1, 1), (0, 0)))
    high, wide = image.shape[:2]
    means = sum(chroma[i:i + high, j:j + wide] for i in range(3) for j in range(3)) / 9
    if (np.linalg.norm(means, axis=2) > GREY).any():
        found.add("ground")
    return found


def _gap(a: Thing, b: Thing) -> float:
    return max(abs(a.x - b.x), abs(a.y - b.y)) - (a.size + b.size) / 2
