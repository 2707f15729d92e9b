"""The tables of the shapes world: columns, verdicts of a sweep, and which records, fields and seeds a model is measured with."""

import json
import types

import numpy as np
import pytest

from ldm_jax import shapes_tasks
from ldm_jax.core.errors import UserError
from ldm_jax.data.shapes_world import Shapes
from ldm_jax.evals.report import report
from ldm_jax.evals.shapes_picture import picture
from ldm_jax.evals.shapes_reading import Held
from ldm_jax.evals.shapes_summary import evaluate_shapes, shapes_page, sweep_shapes
from ldm_jax.output import Request

N = 20
SOURCE = Shapes("test")
IMAGES = np.stack([SOURCE[i]["image"] for i in range(N)])
HELD = Held([SOURCE.scene(i) for i in range(N)], IMAGES, {"map": np.stack([SOURCE[i]["segmentation"] for i in range(N)]).astype(np.int32)})
SINGLE = int(HELD.single.sum())


def right(number: int) -> np.ndarray:
    """The true images, of which all but the first `number` are those of other records."""
    return np.concatenate([IMAGES[:number], np.roll(IMAGES, 1, axis=0)[number:]])


def test_columns_stand_for_what_they_say():
    """Catches reconstructions in the column of the truth, one-object scenes among the others, and an error of another number."""
    found = evaluate_shapes(right(15), HELD, ("text", "map"), right(10), settings={"steps": 25})
    row, single = found["text/all_right"], HELD.single
    assert row["samples"] == 0.75 and row["first_stage"] == 0.5 and row["truth"] == 1 and row["of"] == N
    assert row["standard_error"] == pytest.approx(np.sqrt(0.75 * 0.25 / N))
    assert row["one_object"] == pytest.approx(single[:15].sum() / SINGLE)
    assert row["one_object_error"] == pytest.approx(np.sqrt(row["one_object"] * (1 - row["one_object"]) / SINGLE))
    assert found["n"] == {"samples": N, "one_object": SINGLE} and found["map/mean_iou"]["truth"] > 0.99
    told = report(json.loads(json.dumps(found)), "title")
    assert "text/all right" in told and "one object error" in told and "steps 25" in told
    with pytest.raises(UserError, match="one for each record"):
        evaluate_shapes(IMAGES[:3], HELD, ("text",))


@pytest.mark.parametrize("rights, best, gain, helps, steady", [
    ((4, 10, 18, 17), 3, 0.4, True, True), ((4, 10, 12, 12), 3, 0.1, False, True), ((4, 10, 18, 4), 3, 0.4, True, False),
    ((4, 20, 20, 20), 1, 0.0, True, True)])
def test_verdicts_of_a_sweep(rights, best, gain, helps, steady):
    """Catches a gain from the first row where weight 1 is another, a fall that is not told, and a share of 95 % that fails because
    nothing can rise above it. Weights 0.5, 1, 3, 4 with so many of 20 right."""
    numbers = iter(rights)
    found = sweep_shapes(lambda scale: right(next(numbers)), (0.5, 1, 3, 4), HELD, ("text",), settings={"steps": 25})
    told = found["verdicts"]["text/all_right"]
    assert (told["best_scale"], told["helps"], told["steady"]) == (best, helps, steady)
    assert told["from_1"] == pytest.approx(gain)
    page = shapes_page(json.loads(json.dumps(found)), "title")
    assert ("DOES NOT HELP" in page) == (not helps) and ("IT FALLS" in page) == (not steady) and "| weight 0.5" in page
    assert [row["measures"]["text/all_right"]["samples"] for row in found["rows"]] == [number / N for number in rights]


def test_no_scale_and_nothing_to_measure():
    """Catches an empty table, and a verdict on a measure that applies to no image."""
    with pytest.raises(UserError, match="at least one"):
        sweep_shapes(right, (), HELD, ("text",))
    whole = Held(HELD.scenes, IMAGES, {"mask": np.ones((N, 32, 32))})
    found = sweep_shapes(lambda scale: IMAGES, (1, 2), whole, ("inpainting",))
    assert found["rows"][0]["measures"]["inpainting/consistent"]["samples"] is None and "nothing to measure" in shapes_page(found)


def test_the_picture_holds_every_part():
    """Catches samples in the wrong row, and a column that is missing: condition, two samples, truth; each cell is 4 times the image."""
    made = picture(np.stack([IMAGES[:3], IMAGES[3:6]], axis=1), HELD.part(np.arange(3)), ("text", "map"), "title")
    assert made.dtype == np.uint8 and made.shape[1] == 10 + 5 * 138
    large = np.repeat(np.repeat(IMAGES, 4, axis=1), 4, axis=2)
    column = made[:, 10 + 4 * 138:][:, :128]
    rows = [y for y in range(made.shape[0] - 128) if any(np.array_equal(column[y:y + 128], image) for image in large[:3])]
    for i, top in enumerate(rows):
        for column, image in ((2, large[i]), (3, large[3 + i]), (4, large[i])):
            assert (made[top:top + 128, 10 + column * 138:][:, :128] == image).all(), (i, column)
    assert len(rows) == 3


class Stand:
    """In the place of a Model: "samples" the true image of the record whose number its seed is; what it was told is kept."""

    def __init__(self, *fields, **data):
        source = {"name": "shapes", "resolution": 32, "records": 0, "world": 0}
        section = {"source": source, "transforms": (), "resolution": 32, "fields": {}}
        self.manifest = types.SimpleNamespace(config=json.dumps({"data": section | data}))
        conditioner = types.SimpleNamespace(fields=fields, drop=0.1)
        self.experiment = types.SimpleNamespace(conditioner=conditioner, autoencoder=types.SimpleNamespace(factor=4))
        self.tokenizers, self.asked = (), []

    def encode(self, images):
        return images

    decode = encode

    def sample(self, condition, *, seeds, batch_size, progress=None, **asked):
        self.asked.append((condition, list(seeds), asked))
        return np.stack([SOURCE[seed % 1000]["image"] for seed in seeds])


@pytest.fixture
def told(monkeypatch):
    monkeypatch.setattr(shapes_tasks, "told_fields", lambda model, fields, number: {name: len(value) for name, value in fields.items()})
    monkeypatch.setattr(shapes_tasks, "from_json", json.loads)
    monkeypatch.setattr(shapes_tasks, "NUMBER", 64)


def test_a_model_is_asked_for_its_own_records(told):
    """Catches seeds that are not those of the records, fields that its makers did not give, a task that the fields do not say, and
    training records in the place of held-out ones."""
    model = Stand("map", fields={"map": {"name": "segmentation"}})
    found = shapes_tasks.evaluate(model, Request(12, 0, sampling={"guidance": 2.0}))
    assert found["map/mean_iou"]["samples"] > 0.99 and found["n"]["samples"] == 12 and "text/all_right" not in found
    condition, seeds, asked = model.asked[0]
    assert condition["map"] == 12 and seeds == list(range(12)) and asked["guidance"] == 2.0
    assert shapes_tasks.evaluate(Stand("map", fields={"map": {"name": "segmentation"}}), Request(12, 1))["map/mean_iou"]["samples"] < 0.6
    plain = Stand()
    assert shapes_tasks.evaluate(plain, Request(8))["unconditional/valid"]["samples"] == 1 and plain.asked[0][0] is None


def test_known_pixels_are_pasted_around_the_hole(told):
    """Catches samples that are judged with another picture around the hole than the given one."""
    model = Stand("image", "mask", fields={"mask": {"name": "box_mask"}})
    found = shapes_tasks.evaluate(model, Request(12, 1))  # another record's image
    assert found["inpainting/known_pixels"]["samples"] == 1 and found["inpainting/consistent"]["samples"] < 1
    assert found["inpainting/consistent"]["truth"] == found["inpainting/known_pixels"]["first_stage"] == 1


def test_a_first_stage_is_read_back(told):
    """Catches reconstructions that are not what is read: of one that gives back other records' images nothing is right."""
    same, other = Stand(), Stand()
    other.decode = lambda images: np.roll(images, 1, axis=0)
    found, wrong = shapes_tasks.of_first_stage(same), shapes_tasks.of_first_stage(other)
    assert found["oracle/text/all_right"] == found["oracle/unconditional/valid"] == 1 and found["oracle/map/mean_iou"] > 0.99
    assert wrong["oracle/text/all_right"] < 0.05 and wrong["oracle/layout/box_iou"] < 0.2 and wrong["oracle/unconditional/valid"] == 1


def test_what_cannot_be_measured_is_refused(told, tmp_path):
    """Catches a measure of pictures that the oracle was not made for, of a condition without one, and a picture that fails at the end."""
    with pytest.raises(UserError, match="sizes, and the shapes have a measure of tokens"):
        shapes_tasks.evaluate(Stand("sizes"), Request(2))
    with pytest.raises(UserError, match="told nothing that could be weighed"):
        shapes_tasks.sweep(Stand(), Request(2), (1, 2))
    cropped = ({"name": "crop_resize", "crop": "centre", "filter": "bicubic", "enlarge": True},)
    with pytest.raises(UserError, match="as the world draws them"):
        shapes_tasks.evaluate(Stand(resolution=48, transforms=cropped), Request(2))
    small = Stand(source={"name": "shapes", "resolution": 32, "records": 40, "world": 0})
    held = shapes_tasks.default_number(small)
    assert 0 < held < 64 == shapes_tasks.default_number(Stand())
    with pytest.raises(UserError, match=f"--num_samples=64: .* the test split has {held}"):
        shapes_tasks.evaluate(small, Request(64))
    for path in (tmp_path, tmp_path / "none" / "x.png", tmp_path / "x.jpeg"):
        with pytest.raises(UserError, match="a .png file"):
            shapes_tasks.check_picture(str(path))


def test_a_picture_of_what_was_measured(told, tmp_path):
    """Catches samples of other seeds than the measured ones in the first column."""
    model = Stand("map", fields={"map": {"name": "segmentation"}})
    shapes_tasks.write_picture(model, Request(1000, 3), str(tmp_path / "x.png"), "title")
    assert (tmp_path / "x.png").stat().st_size > 1000
    assert model.asked[0][1][:8] == [3, 1003, 2003, 3003, 4, 1004, 2004, 3004] and model.asked[0][0]["map"] == 24
