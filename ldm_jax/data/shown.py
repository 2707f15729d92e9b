"""A record of a source as its transforms leave it: the image, and what lies on it."""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.data.transforms import Window, to_float

MAPS = {"segmentation", "depth"}  # of a record: [H, W], on the image


@dataclasses.dataclass(frozen=True)
class Draw:
    """What the random transforms of a record are drawn from: the seed and words of their own, (position,) where every draw is fresh and
    (record, variant) where there are so many variants and no more."""

    seed: int
    words: tuple[int, ...]

    @property
    def variant(self) -> int:
        return self.words[1] if len(self.words) > 1 else 0


@dataclasses.dataclass(frozen=True)
class Transformed:
    """The records of a source, transformed. side: (height, width) that images must have then; covers: the fields that need no maker."""

    source: Sequence[dict]
    transforms: tuple
    side: tuple[int, int]
    covers = ()

    def found(self, record: int, draw: Draw | None) -> Mapping:
        """The record as the source has it; draw None is the transforms' deterministic form, here and below."""
        return self.source[record]

    def row(self, found: Mapping, draw: Draw | None, whole: bool) -> tuple[dict[str, np.ndarray], dict]:
        """(what a batch holds of the image, the record as shown). whole: with all that the makers of fields are told (fields.py)."""
        shown = self.shown(found, draw) if whole else {"image": self._image(found, draw), "label": found.get("label")}
        return {"image": to_float(shown["image"])}, shown

    def shown(self, found: Mapping, draw: Draw | None) -> dict:
        """The record with its image and what lies on it where the transforms leave them."""
        windows: list[Window] = []
        image = self._image(found, draw, windows)
        height, width = found["image"].shape[:2]
        shown = dict(found) | {"image": image, "size": (width, height), "window": together(windows)}
        for name in MAPS & found.keys():
            for place, transform in enumerate(self.transforms):
                shown[name] = transform.of_map(shown[name], self._generator(place, draw))
        captions = shown.pop("captions", ())
        if draw is not None and captions:
            drawn = np.random.default_rng(np.random.SeedSequence([draw.seed, word("caption"), *draw.words])).random()
            shown["caption"] = captions[int(drawn * len(captions))]
        if "boxes" in found and shown["window"][4]:
            shown["boxes"] = np.asarray([1, 0, 1, 0], np.float32) + np.asarray([-1, 1, -1, 1], np.float32) * found["boxes"][:, [2, 1, 0, 3]]
        return shown

    def _image(self, found: Mapping, draw: Draw | None, windows: list | None = None) -> np.ndarray:
        """windows: a list that is given what each transform shows of the image before it."""
        image, channels = np.asarray(found["image"]), self.source.channels
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != channels:
            raise UserError(f"the image is {image.dtype} {list(image.shape)}, expected uint8 [H, W, {channels}]")
        given = image.shape
        for place, transform in enumerate(self.transforms):
            if windows is not None:
                windows.append(transform.window(image.shape[0], image.shape[1], self._generator(place, draw)))
            image = transform(image, self._generator(place, draw))
        if image.shape[:2] != self.side:
            changed = "" if given == image.shape else f" ({given[1]}x{given[0]} before its transforms)"
            raise UserError(f"the image is {image.shape[1]}x{image.shape[0]}{changed}, and {self.side[1]}x{self.side[0]} is asked for: "
                            "put crop_resize into the transforms, or ask for the size the source has")
        return image

    def _generator(self, place: int, draw: Draw | None):
        if draw is None:
            return None
        name = self.transforms[place].name
        before = sum(other.name == name for other in self.transforms[:place])
        return np.random.default_rng(np.random.SeedSequence([draw.seed, word(name), before, *draw.words]))


def together(windows: Sequence[Window]) -> Window:
    """What windows, each of what the one before it shows, show of the whole image."""
    left, top, right, bottom, mirrored = 0.0, 0.0, 1.0, 1.0, False
    for *shown, mirrors in windows:
        if mirrors:
            left, right, mirrored = 1 - right, 1 - left, not mirrored
        wide, high = right - left, bottom - top
        left, top, right, bottom = left + shown[0] * wide, top + shown[1] * high, left + shown[2] * wide, top + shown[3] * high
    return left, top, right, bottom, mirrored


def word(name: str) -> int:
    """A name as a number for a SeedSequence."""
    return zlib.crc32(name.encode())
