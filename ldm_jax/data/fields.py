"""What a batch tells beside the image and its label: each field made from a record by a maker, by name.

A maker is frozen, and has `gives`, the names of the fields that it makes; `version`, for the fingerprint: raise it whenever
the same record gives other numbers; `describe() -> dict`, JSON-able; and the call (record, rng) -> {field: array} without a
batch axis. rng is a generator of its own, of (seed, field, position) in training, of (field, record) in evaluation.

The record is the source's, after the transforms: "image" uint8 [H, W, C] and "segmentation" uint8 [H, W] as shown; "boxes"
float32 [n, 4], left, top, right, bottom in 0 .. 1 of the WHOLE image, mirrored if that is; "window", (left, top, right, bottom,
mirrored), what is shown of it; "size", its (width, height) before the transforms; "caption", "box_labels"; "index", "record".
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.data.boxes import boxes_tokens
from ldm_jax.data.captions_field import captions
from ldm_jax.data.degradations import DEGRADATIONS
from ldm_jax.data.maker import Maker, taken
from ldm_jax.data.masks import MASKS


@dataclasses.dataclass(frozen=True)
class Segmentation(Maker):
    """The class of each pixel: map int32 [H, W]."""

    gives: ClassVar[tuple[str, ...]] = ("map",)

    def __call__(self, record: Mapping, rng) -> dict[str, np.ndarray]:
        return {"map": np.asarray(taken(record, "segmentation"), np.int32)}


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


FIELDS = {"captions": captions, "segmentation": Segmentation, "boxes": boxes} | DEGRADATIONS | MASKS
