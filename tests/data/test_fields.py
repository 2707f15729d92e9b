"""Fields of a batch beside image and label: what lies on an image goes where its transforms take it."""

import itertools

import numpy as np
import pytest

from ldm_jax import data_choices
from ldm_jax.core.errors import UserError
from ldm_jax.data.batches import fingerprint, in_order, stream
from ldm_jax.data.boxes import boxes_tokens
from ldm_jax.data.fields import Boxes, Segmentation
from ldm_jax.data.shapes_oracle import overlap, read_scene
from ldm_jax.data.shapes_world import Shapes
from ldm_jax.data.transforms import CropResize, Flip, RandomResizedCrop
from ldm_jax.models.bert_text import BertSpec

WORLD = Shapes("train", records=24, resolution=64)


class Shown:
    """What the makers see, whole."""

    gives = ("boxes", "window")

    def __call__(self, record, rng):
        boxes = np.zeros((2, 4), np.float32)
        boxes[:len(record["boxes"])] = record["boxes"]
        return {"boxes": boxes, "window": np.asarray(record["window"], np.float32), "draw": np.float32(rng.random())}


def rows(transforms, **more):
    fields = {"map": Segmentation(), "boxes": Shown()}
    return next(stream(WORLD, transforms, seed=3, batch=24, resolution=32, fields=fields, **more))


CROP = RandomResizedCrop(32, smallest=0.6, aspect=1.0)


@pytest.mark.parametrize("transforms", [(CropResize(32),), (CROP, Flip(0.5)), (Flip(1.0), CROP, Flip(0.5))],
                         ids=["resized", "cropped", "mirrored"])
def test_maps_and_boxes_lie_on_the_image(transforms):
    """Mistake: another draw for the map than for the image; boxes mirrored on the wrong side, or not at all; a window before the mirror."""
    batch, found = rows(transforms), 0
    for i in range(24):
        image = np.round((batch["image"][i] + 1) * 127.5).astype(np.uint8)
        coloured = (image.max(-1).astype(int) - image.min(-1)) > 90
        assert np.mean(coloured == (batch["map"][i] > 0)) > 0.95
        left, top, right, bottom, _ = batch["window"][i]
        side = right - left
        boxes = (batch["boxes"][i] - [left, top, left, top]) / side  # of the picture as shown
        whole = [box for box in boxes if min(box) > 0.02 and max(box) < 0.98 and box[2] - box[0] > 0.1]
        seen = [s.thing.box for s in read_scene(image)] if abs(bottom - top - side) < 1e-6 else []
        for box in whole if seen else ():
            found += 1
            assert max(overlap(box, other) for other in seen) > 0.8
    assert found > 2


def test_a_field_is_of_its_record_and_its_draw():
    """Mistake: a mask that depends on the batch, or one that changes from one evaluation to the next; training's from the record alone."""
    fields = {"boxes": Shown()}
    one, two = (np.concatenate([b["draw"] for b in in_order(WORLD, batch=batch, fields=fields)])[:24] for batch in (4, 24))
    assert np.array_equal(one, two) and len(set(one.tolist())) == 24
    epochs = [b["draw"] for b in itertools.islice(stream(WORLD, seed=0, batch=24, fields=fields), 2)]
    assert len(set(np.concatenate(epochs).tolist())) == 48
    again = next(stream(WORLD, seed=0, batch=24, fields=fields, start=1))["draw"]
    assert np.array_equal(again, epochs[1])


def test_boxes_are_ids_of_the_whole_image_and_the_crop():
    """Mistake: boxes of the crop in the place of the whole image's; the smallest objects kept in the place of the largest."""
    record = {"boxes": np.array([[0.1, 0.1, 0.2, 0.2], [0.3, 0.3, 0.9, 0.9], [0.0, 0.5, 0.4, 0.9]], np.float32),
              "box_labels": np.array([3, 4, 5]), "window": (0.25, 0.0, 1.0, 0.75, False)}
    made = Boxes(objects=2, vocabulary=8192)(record, None)["boxes_tokens"]
    wanted = boxes_tokens(record["boxes"][1:], [4, 5], (0.25, 0.0, 1.0, 0.75), 2)
    assert np.array_equal(made, wanted)


def test_what_data_cannot_tell_is_said():
    """Mistake: a KeyError of a record; a section named after what its maker does not make; a maker twice."""
    with pytest.raises(UserError, match="the record has no segmentation, and config.data.fields asks for it"):
        Segmentation()({"image": None}, None)
    reads = type("Reads", (), {"specs": {"boxes_tokens": BertSpec(width=8, layers=1, heads=1, vocabulary=100, length=8, bos=-1, eos=-1)}})()

    def made(**sections):
        return data_choices.fields_of({"data": {"fields": sections, "resolution": 32}}, reads, 4)

    assert made(boxes_tokens={"name": "boxes"})["boxes_tokens"] == Boxes(2, 100)
    for sections, told in (({"mask": {"name": "segmentation"}}, "'segmentation' makes map; name the section so"),
                           ({"map": {"name": "segments"}}, "config.data.fields.map.name='segments': expected one of segmentation"),
                           ({"map": {"name": "segmentation", "sides": 2}}, "does not take sides")):
        with pytest.raises(UserError, match=told):
            made(**sections)


@pytest.mark.parametrize("keys, told", [(dict(other=3), "other=3: expected -1, for classes=0"), (dict(other=4, classes=4), "from 0 to 3")])
def test_another_class_must_be_one_that_is_used(keys, told):
    """Mistake: `other` given and ignored, or a class that the conditioner has not."""
    with pytest.raises(UserError, match=told):
        Segmentation(**keys)


def test_fields_are_in_the_fingerprint():
    """Mistake: a run resumed with other masks or tokens than it was trained on."""
    plain, told = (fingerprint(WORLD, seed=0, batch=4, fields=fields) for fields in ({}, {"boxes_tokens": Boxes(2, 100)}))
    assert "fields" not in plain and told["fields"] == {"boxes_tokens": {"maker": "Boxes", "version": 1, "objects": 2, "vocabulary": 100}}
