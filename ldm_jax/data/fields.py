"""What a batch tells beside the image and its label: each field made from a record by a maker, by name.

A maker is frozen, and has `gives`, the names of the fields that it makes; `version`, for the fingerprint: raise it whenever
the same record gives other numbers; `describe() -> dict`, JSON-able; and the call (record, rng) -> {field: array} without a
batch axis. rng is a generator of its own, of (seed, field, position) in training, of (field, record) in evaluation. One that must know
whose records it is given has `of_source(source)`, the maker that is called for them.

The record is the source's, after the transforms: "image" uint8 [H, W, C], "segmentation" uint8 or uint16 [H, W], "depth" float32
[H, W] as shown; "boxes" float32 [n, 4], left, top, right, bottom in 0 .. 1 of the WHOLE image, mirrored if that is; "window", (left,
top, right, bottom, mirrored), what is shown of it; "size", its (width, height) before the transforms; "caption", "box_labels"; "index",
"record".
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.data.boxes import boxes_tokens
from ldm_jax.data.captions_field import captions
from ldm_jax.data.degradations import DEGRADATIONS
from ldm_jax.data.maker import Maker, taken
from ldm_jax.data.masks import MASKS
from ldm_jax.data.neighbours_field import NEIGHBOURS


@dataclasses.dataclass(frozen=True)
class Segmentation(Maker):
    """The class of each pixel: map int32 [H, W].

    Fields:
      classes: of the conditioner (given), which a map may not exceed; 0 for any, and no other.
      other: what pixels of other classes are taken for, as those that a data set leaves without a class (255); -1 refuses them.
    """

    classes: int = 0
    other: int = -1
    gives: ClassVar[tuple[str, ...]] = ("map",)

    def __post_init__(self):
        if self.other < -1 or self.other >= self.classes:
            known = f"a class from 0 to {self.classes - 1}, or -1 for none" if self.classes else "-1, for classes=0 takes all as they are"
            raise UserError(f"other={self.other}: expected {known}")

    def describe(self) -> dict:
        """`classes` refuses maps and changes none."""
        return {"maker": type(self).__name__, "version": self.version} | ({"other": self.other} if self.other >= 0 else {})

    def __call__(self, record: Mapping, rng) -> dict[str, np.ndarray]:
        found = np.asarray(taken(record, "segmentation"), np.int32)
        strange = (found >= self.classes) & (self.classes > 0)
        if strange.any() and self.other < 0:
            raise UserError(f"segmentation: {strange.mean():.1%} of its pixels are of classes that the conditioner has not, as "
                            f"{found[strange][0]}; expected 0 to {self.classes - 1}, or config.data.fields.map.other, the class to take "
                            "them for")
        return {"map": np.where(strange, np.int32(self.other), found)}


@dataclasses.dataclass(frozen=True)
class Depth(Maker):
    """The depth of each pixel, in the data's unit: depth float32 [H, W], larger is nearer.

    nearer: which of the data's numbers are nearer; "smaller" for distances, as sensors measure them, whose sign is turned.
    """

    nearer: Literal["larger", "smaller"] = "larger"
    gives: ClassVar[tuple[str, ...]] = ("depth",)

    def __call__(self, record: Mapping, rng) -> dict[str, np.ndarray]:
        found = np.asarray(taken(record, "depth"), np.float32)
        return {"depth": found if self.nearer == "larger" else -found}


@dataclasses.dataclass(frozen=True)
class Sizes(Maker):
    """What SDXL is told of an image (arXiv 2307.01952, section 2.2): sizes float32 [6].

    Height and width before the transforms, top and left of the crop in pixels of the image as it is resized (mirrored, where that is),
    height and width that come out.

    count: of the conditioner (given).
    """

    count: int = 6
    gives: ClassVar[tuple[str, ...]] = ("sizes",)

    def __post_init__(self):
        if self.count != 6:
            raise UserError(f"sizes: the conditioner reads {self.count} numbers of an image; expected count=6, since data tells no others")

    def __call__(self, record: Mapping, rng) -> dict[str, np.ndarray]:
        (width, height), (left, top, right, bottom) = record["size"], record["window"][:4]
        high, wide = record["image"].shape[:2]
        corner = round(top * high / (bottom - top)), round(left * wide / (right - left))
        return {"sizes": np.array([height, width, *corner, high, wide], np.float32)}


@dataclasses.dataclass(frozen=True)
class Boxes(Maker):
    """Boxes, their classes and what is shown as ids (see boxes.py): boxes_tokens int32 [3 objects + 2].

    Fields:
      objects: how many fit, as the conditioner's `length` has it; of more, those of the largest area stay.
      vocabulary: number of ids.
    """

    objects: int
    vocabulary: int
    gives: ClassVar[tuple[str, ...]] = ("boxes_tokens",)

    def __call__(self, record: Mapping, rng) -> dict[str, np.ndarray]:
        boxes, labels = np.asarray(taken(record, "boxes")), np.asarray(taken(record, "box_labels"))
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        kept = np.sort(np.argsort(-areas, kind="stable")[:self.objects])
        crop = record.get("window", (0.0, 0.0, 1.0, 1.0))[:4]
        return {"boxes_tokens": boxes_tokens(boxes[kept], labels[kept], crop, self.objects, self.vocabulary)}


def boxes(spec) -> Boxes:
    """spec: of the text encoder that reads them: its length is that of 3 objects + 2 ids."""
    if spec.length < 5 or (spec.length - 2) % 3:
        raise UserError(f"length={spec.length} of the conditioner: three ids an object and two of the crop, as 92 for 30 objects")
    return Boxes((spec.length - 2) // 3, spec.vocabulary)


FIELDS = ({"captions": captions, "segmentation": Segmentation, "boxes": boxes, "depth": Depth, "sizes": Sizes}
          | DEGRADATIONS | MASKS | NEIGHBOURS)
