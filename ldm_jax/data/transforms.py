"""What happens to an image between its source and a batch: uint8 [H, W, C] in, uint8 [H', W', C] out, numpy and Pillow.

A transform is called with a random generator of its own, or with None for its deterministic form (evaluation). Its
`version` goes into the data fingerprint: raise it whenever the same input gives other pixels. What lies on the image goes
with it, by generators of the same state: `of_map(map, rng)`, [H, W] of classes, uint8 or uint16, never mixed, or of depths, float32,
which bilinear resizing mixes; and `window(height, width,
rng)`, what is shown of the image that it is given: (left, top, right, bottom, mirrored), in shares of it, after the mirror.
`draws` says whether training gives other pixels than evaluation.

Resizing is Pillow's, on uint8 (two passes, each rounded to 8 bits, no gamma). The filter is named, and its support grows
with the reduction: reducing is antialiased (for every filter here but nearest), enlarging interpolates.
"""

import dataclasses
import math
from typing import ClassVar, Literal

import numpy as np
from PIL import Image

from ldm_jax.core.errors import UserError

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS,
           "bilinear": Image.Resampling.BILINEAR, "box": Image.Resampling.BOX, "nearest": Image.Resampling.NEAREST}
Filter = Literal["bicubic", "lanczos", "bilinear", "box", "nearest"]
Window = tuple[float, float, float, float, bool]
PIXEL_LIMIT = 89_478_485  # Pillow's MAX_IMAGE_PIXELS: 256 MiB of RGB; also the limit of what is read from files


@dataclasses.dataclass(frozen=True)
class CropResize:
    """Resizes the shorter side to `resolution` (antialiased, see above), then crops a square of that side.

    crop: "centre", or "random" (the whole of the longer side is reachable; evaluation takes the centre).
    enlarge: False refuses images whose shorter side is below `resolution` instead of blurring them up.
    """

    resolution: int
    crop: Literal["centre", "random"] = "centre"
    filter: Filter = "bicubic"
    enlarge: bool = False
    name: ClassVar[str] = "crop_resize"
    version: ClassVar[int] = 1

    def __post_init__(self):
        _check_side(self.resolution)
        _check_word("crop", self.crop, ("centre", "random"))
        _check_word("filter", self.filter, FILTERS)

    @property
    def draws(self) -> bool:
        return self.crop == "random"

    def __call__(self, image: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        size, top, left = self._cut(image.shape[0], image.shape[1], rng)
        return resize(image, *size, self.filter)[top:top + self.resolution, left:left + self.resolution]

    def of_map(self, classes: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        return _map_by(self, classes, rng)

    def window(self, height: int, width: int, rng: np.random.Generator | None) -> Window:
        (high, wide), top, left = self._cut(height, width, rng)
        side = self.resolution
        return left / wide, top / high, (left + side) / wide, (top + side) / high, False

    def _cut(self, height: int, width: int, rng) -> tuple[list[int], int, int]:
        """([height, width] to resize to, top, left)."""
        shorter, side = min(height, width), self.resolution
        if shorter < side and not self.enlarge:
            raise UserError(f"the image is {width}x{height}, smaller than resolution {side}: choose a smaller resolution, "
                            f"or write enlarge=True in crop_resize")
        size = [max(side, round(n * side / shorter)) for n in (height, width)]
        if size[0] * size[1] > PIXEL_LIMIT:
            raise UserError(f"the image is {width}x{height}: enlarging its shorter side to {side} gives more than {PIXEL_LIMIT} pixels")
        if rng is None or self.crop == "centre":
            return size, (size[0] - side) // 2, (size[1] - side) // 2
        return size, *(int(rng.random() * (n - side + 1)) for n in size)


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """A random box of `smallest`..1 of the area and aspect `1/aspect`..`aspect` (log-uniform), resized to a square.

    Evaluation takes the largest centred square instead. Boxes that do not fit are drawn again, ten times; then the
    largest centred square is taken. A box with a side below `resolution` is refused unless `enlarge`.
    """

    resolution: int
    smallest: float = 0.25
    aspect: float = 4 / 3
    filter: Filter = "bicubic"
    enlarge: bool = False
    name: ClassVar[str] = "random_resized_crop"
    version: ClassVar[int] = 1

    def __post_init__(self):
        _check_side(self.resolution)
        _check_word("filter", self.filter, FILTERS)
        if not 0 < self.smallest <= 1 or not self.aspect >= 1:
            raise UserError(f"smallest={self.smallest}, aspect={self.aspect}: expected smallest in (0, 1] and aspect >= 1")

    @property
    def draws(self) -> bool:
        return True

    def __call__(self, image: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        top, left, high, wide = self._box(image.shape[0], image.shape[1], rng)
        if min(high, wide) < self.resolution and not self.enlarge:
            raise UserError(f"a crop of {wide}x{high} of the {image.shape[1]}x{image.shape[0]} image is smaller than resolution "
                            f"{self.resolution}: raise smallest, choose a smaller resolution, or write enlarge=True in random_resized_crop")
        return resize(image[top:top + high, left:left + wide], self.resolution, self.resolution, self.filter)

    def of_map(self, classes: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        return _map_by(self, classes, rng)

    def window(self, height: int, width: int, rng: np.random.Generator | None) -> Window:
        top, left, high, wide = self._box(height, width, rng)
        return left / width, top / height, (left + wide) / width, (top + high) / height, False

    def _box(self, height: int, width: int, rng) -> tuple[int, int, int, int]:
        for _ in range(10 if rng is not None else 0):
            area = height * width * (self.smallest + (1 - self.smallest) * rng.random())
            ratio = math.exp(math.log(self.aspect) * (2 * rng.random() - 1))
            wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            down, right = rng.random(), rng.random()
            if 0 < wide <= width and 0 < high <= height:
                return int(down * (height - high + 1)), int(right * (width - wide + 1)), high, wide
        side = min(height, width)
        return (height - side) // 2, (width - side) // 2, side, side


@dataclasses.dataclass(frozen=True)
class SquareCrop:
    """A square anywhere in the image whose side is `smallest`..`largest` of the shorter one (uniform), resized to `resolution`.

    Equal ends are crops of one size: 2/3 is what cropping 256 from images of 384 shows. Evaluation takes the centred square of `largest`.
    """

    resolution: int
    smallest: float = 0.5
    largest: float = 1.0
    filter: Filter = "box"
    enlarge: bool = False
    name: ClassVar[str] = "square_crop"
    version: ClassVar[int] = 1

    def __post_init__(self):
        _check_side(self.resolution)
        _check_word("filter", self.filter, FILTERS)
        if not 0 < self.smallest <= self.largest <= 1:
            raise UserError(f"smallest={self.smallest}, largest={self.largest}: expected shares of the shorter side in order, above 0 "
                            "and up to 1")

    def __call__(self, image: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        top, left, side = self._square(image.shape[0], image.shape[1], rng)
        if side < self.resolution and not self.enlarge:
            raise UserError(f"a crop of {side}x{side} of the {image.shape[1]}x{image.shape[0]} image is smaller than resolution "
                            f"{self.resolution}: raise smallest, choose a smaller resolution, or write enlarge=True in square_crop")
        return resize(image[top:top + side, left:left + side], self.resolution, self.resolution, self.filter)

    def of_map(self, classes: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        return _map_by(self, classes, rng)

    def window(self, height: int, width: int, rng: np.random.Generator | None) -> Window:
        top, left, side = self._square(height, width, rng)
        return left / width, top / height, (left + side) / width, (top + side) / height, False

    def _square(self, height: int, width: int, rng) -> tuple[int, int, int]:
        """(top, left, side)."""
        share = self.largest if rng is None else self.smallest + (self.largest - self.smallest) * rng.random()
        side = max(1, round(share * min(height, width)))
        if rng is None:
            return (height - side) // 2, (width - side) // 2, side
        return int(rng.random() * (height - side + 1)), int(rng.random() * (width - side + 1)), side


@dataclasses.dataclass(frozen=True)
class Flip:
    """Mirrors left and right with a probability. Not for digits, nor where captions say left and right."""

    probability: float = 0.5
    name: ClassVar[str] = "flip"
    version: ClassVar[int] = 1

    def __post_init__(self):
        if not 0 <= self.probability <= 1:
            raise UserError(f"probability={self.probability}: expected a number from 0 to 1")

    @property
    def draws(self) -> bool:
        return self.probability > 0  # one that always mirrors does not in evaluation

    def __call__(self, image: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        return image[:, ::-1] if self._mirrors(rng) else image

    def of_map(self, classes: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        return self(classes, rng)

    def window(self, height: int, width: int, rng: np.random.Generator | None) -> Window:
        return 0.0, 0.0, 1.0, 1.0, self._mirrors(rng)

    def _mirrors(self, rng) -> bool:
        return rng is not None and rng.random() < self.probability


def resize(image: np.ndarray, height: int, width: int, filter: Filter) -> np.ndarray:
    """uint8 [H, W, C] -> uint8 [height, width, C], C 1 or 3; see the top of the file for how.

    For C = 1 also float32, and uint16 by the nearest.
    """
    if image.shape[:2] == (height, width):
        return image
    grey = image.shape[2] == 1
    pillow = Image.fromarray(np.ascontiguousarray(image[..., 0] if grey else image))
    resized = np.asarray(pillow.resize((width, height), FILTERS[filter]))
    return resized[..., None] if grey else resized


def to_float(image: np.ndarray) -> np.ndarray:
    """uint8 -> float32 in [-1, 1]: x / 127.5 - 1."""
    return image.astype(np.float32) / np.float32(127.5) - np.float32(1)


def describe(transform) -> dict:
    """What a transform is, JSON-able, for the fingerprint."""
    return {"name": transform.name, "version": transform.version} | dataclasses.asdict(transform)


def _map_by(transform, classes: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """A map [H, W] by a transform that resizes, with the filter of its kind (see the top of the file)."""
    filter = "bilinear" if classes.dtype.kind == "f" else "nearest"
    return dataclasses.replace(transform, filter=filter)(classes[..., None], rng)[..., 0]


def _check_side(resolution: int) -> None:
    if not 1 <= resolution <= 16384:
        raise UserError(f"resolution={resolution}: expected 1 to 16384")


def _check_word(key: str, word: str, known) -> None:
    if word not in known:
        raise UserError(f"{key}={word!r}: expected one of {', '.join(known)}")


TRANSFORMS = {"crop_resize": CropResize, "random_resized_crop": RandomResizedCrop, "square_crop": SquareCrop, "flip": Flip}
