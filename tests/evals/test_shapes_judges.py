"""The judges of the shapes world on pictures whose verdict is known: the truth, and what was moved, recoloured, swapped, left out."""

import dataclasses

import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.data.degradations import Bicubic
from ldm_jax.data.shapes_world import Ground, Scene, Shapes, Thing, draw
from ldm_jax.data.transforms import resize
from ldm_jax.evals.shapes_judges import AGREES, JUDGES, OF_FIELD
from ldm_jax.evals.shapes_reading import LOOSE, MISFIT, Held, Measure, Shown, faults
from ldm_jax.evals.shapes_summary import MAIN

N = 40
SOURCE = Shapes("test")
SCENES = [SOURCE.scene(i) for i in range(N)]
IMAGES = np.stack([SOURCE[i]["image"] for i in range(N)])
THINGS = sum(len(scene.things) for scene in SCENES)
ALL = np.ones(N, bool)
PLAIN = Ground(120, 120, 0.0, 0.0)


def made_fields() -> dict:
    """What a held-out batch holds: the map, the small image, and a hole over the lower half of the first thing."""
    holes = np.zeros((N, 32, 32), np.float32)
    for hole, scene in zip(holes, SCENES):
        thing = scene.things[0]
        left, top, right, bottom = (round(32 * x) for x in thing.box)
        hole[round(32 * thing.y):bottom + 2, max(left - 2, 0):right + 2] = 1
    small = np.stack([Bicubic(factor=4)({"image": image}, None)["low_res"] for image in IMAGES])
    return {"map": np.stack([SOURCE[i]["segmentation"] for i in range(N)]).astype(np.int32), "mask": holes, "low_res": small}


HELD = Held(SCENES, IMAGES, made_fields())


def redrawn(change, rows=ALL) -> np.ndarray:
    """The images with the first thing changed, in some of the rows; None leaves it out."""
    images = IMAGES.copy()
    for i in np.flatnonzero(rows):
        scene = SCENES[i]
        first = change(scene.things[0])
        things = (*(() if first is None else (first,)), *scene.things[1:])
        images[i] = draw(Scene(things, scene.ground), 32)[0]
    return images


def judged(task: str, images: np.ndarray, held: Held = HELD) -> dict:
    return {name: measure.of(ALL)[0] for name, measure in JUDGES[task](Shown(images), held).items()}


def recoloured(thing: Thing) -> Thing:
    return dataclasses.replace(thing, colour=(thing.colour + 1) % 6)


def reshaped(thing: Thing) -> Thing:
    return dataclasses.replace(thing, shape=(thing.shape + 1) % 4)


def test_the_truth_is_right_in_every_respect():
    """Catches a judge that finds fault with a true image: a map off by a rounding, a known pixel compared inside the hole."""
    for task in ("text", "class", "layout", "inpainting", "unconditional"):
        found = judged(task, IMAGES)
        shares = {name: value for name, value in found.items() if not name.startswith(("commonest", "one_thing", "box_iou"))}
        assert set(shares.values()) == {1.0}, (task, found)
        assert MAIN[task] in found
    found = judged("map", IMAGES)
    assert min(found.values()) > 0.995 and judged("layout", IMAGES)["box_iou"] > 0.985
    assert judged("super_resolution", IMAGES)["consistency_db"] == 100 and set(OF_FIELD.values()) | {"unconditional"} == set(JUDGES)


@pytest.mark.parametrize("change, falls", [(recoloured, {"colour"}), (reshaped, {"shape"}), (lambda thing: None, {"number"})])
def test_text_tells_what_is_wrong(change, falls):
    """Catches a caption's shares that fall together, one that leaves a missing thing out of the count, and an all_right that forgets
    an attribute. The first thing of 10 images is changed."""
    found = judged("text", redrawn(change, np.arange(N) < 10))
    assert found["all_right"] == 0.75
    lost = {"colour", "shape", "place", "size_word"} if "number" in falls else falls & {"colour", "shape"}
    for name in ("colour", "shape", "place"):
        assert found[name] == pytest.approx(1 - 10 / THINGS if name in lost else 1.0), name
    assert found["number"] == (0.75 if "number" in falls else 1.0)


def test_text_knows_places_and_additions():
    """Catches a place that is not asked for (pictures mirrored), and a thing too many that passes for right."""
    mirrored = judged("text", IMAGES[:, :, ::-1])  # all shapes look so too
    middle = [[thing.place % 3 == 1 for thing in scene.things] for scene in SCENES]
    assert mirrored["colour"] == mirrored["shape"] == mirrored["number"] == 1 and mirrored["place"] < 0.7
    assert mirrored["all_right"] == np.mean([all(places) for places in middle])
    single = [i for i in range(N) if len(SCENES[i].things) == 1]
    images = IMAGES.copy()
    for i in single:
        box, added = SCENES[i].things[0].box, Thing(1, 0, 0.13, 0.13, 0.2)
        corner = next((x, y) for x in (0.13, 0.87) for y in (0.13, 0.87) if max(x - box[2], box[0] - x, y - box[3], box[1] - y) > 0.17)
        images[i] = draw(Scene((SCENES[i].things[0], dataclasses.replace(added, x=corner[0], y=corner[1])), SCENES[i].ground), 32)[0]
    found = judged("text", images)
    assert found["all_right"] == found["number"] == 1 - len(single) / N and found["colour"] == 1


def test_class_is_of_the_first_thing():
    """Catches a class that is read from any thing of the image, or from the last."""
    found = judged("class", redrawn(recoloured, np.arange(N) < 10))
    assert found["class_right"] == found["colour"] == 0.75 and found["shape"] == 1
    later = IMAGES.copy()
    for i, scene in enumerate(SCENES):
        if len(scene.things) == 2:
            later[i] = draw(Scene((scene.things[0], recoloured(scene.things[1])), scene.ground), 32)[0]
    assert judged("class", later)["class_right"] == 1


def test_the_map_is_measured_by_pixels_and_classes():
    """Catches IoU that counts absent classes, or leaves out those that only the sample has: with the only thing recoloured, the ground
    is right and two classes are not: 1/3. Catches a region drawn as its reading says and not as it is: half of a thing is cut away."""
    single = HELD.part(np.flatnonzero(HELD.single))
    shown = Shown(redrawn(recoloured)[HELD.single])
    found = JUDGES["map"](shown, single)
    np.testing.assert_allclose(found["mean_iou"].value, 1 / 3, atol=0.004)
    assert not found["mean_iou_things"].value.any()
    square = Scene((Thing(1, 0, 0.5, 0.5, 0.375),), PLAIN)
    image, told = draw(square, 32)
    cut = image.copy()
    cut[:, 16:] = 120
    found = JUDGES["map"](Shown(cut[None]), Held([square], image[None], {"map": told[None].astype(np.int32)}))
    inside, side = 32 * 32 - 144, 144
    # half of the square is the ground's now, and its rest is read as some red thing or as the square
    assert found["pixels"].value[0] in (pytest.approx(1 - side / 2 / 1024), pytest.approx(1 - side / 1024))
    assert found["mean_iou"].value[0] <= (inside / (inside + side / 2) + 0.5) / 2 + 1e-9
    with pytest.raises(UserError, match="one size"):
        JUDGES["map"](Shown(image[None]), Held([square], image[None], {"map": np.zeros((1, 16, 16), np.int32)}))


def test_the_dataset_iou_sums_over_images():
    """Catches a mean of the images' own IoU under that name: of two images of one class, one is right and one is empty: intersections
    over unions of the thing are a / (a + b), and not 1/2."""
    scenes = [Scene((Thing(1, 0, 0.5, 0.5, size),), PLAIN) for size in (0.25, 0.4375)]
    images, maps = zip(*(draw(scene, 32) for scene in scenes))
    shown = np.stack([images[0], draw(Scene((), PLAIN), 32)[0]])
    found = JUDGES["map"](Shown(shown), Held(scenes, np.stack(images), {"map": np.stack(maps).astype(np.int32)}))
    ground, a, b = 2048 - 64 - 196, 64, 196
    assert found["dataset_iou"].of(np.ones(2, bool))[0] == pytest.approx((ground / (ground + b) + a / (a + b)) / 2)
    assert found["dataset_iou"].of(np.array([True, False]))[0] == 1.0


def test_layout_against_shifted_boxes():
    """Catches an overlap of other boxes than the told one, and a class that counts where no box meets. A thing of side s moved by d
    overlaps by (s - d) / (s + d)."""
    single = HELD.part(np.flatnonzero(HELD.single))
    for moved in (0.0, 0.05, 0.1):
        left = np.array([scene.things[0].x > 0.5 for scene in single.scenes])
        shown = redrawn(lambda t, d=moved: dataclasses.replace(t, x=t.x - d if t.x > 0.5 else t.x + d))[HELD.single]
        found = JUDGES["layout"](Shown(shown), single)
        sizes = np.array([scene.things[0].size for scene in single.scenes])
        expected = (sizes - moved) / (sizes + moved)
        np.testing.assert_allclose(found["box_iou"].value, expected, atol=0.05)
        sure = np.abs(expected - 0.7) > 0.05
        np.testing.assert_array_equal(found["object_right"].value[sure], (expected >= 0.7)[sure])
        assert found["class_right"].of(np.ones(len(left), bool))[0] == 1
    mirrored = JUDGES["layout"](Shown(single.images[:, :, ::-1]), single)["class_right"].value
    np.testing.assert_array_equal(mirrored, [2 * abs(scene.things[0].x - 0.5) < scene.things[0].size for scene in single.scenes])
    found = judged("layout", redrawn(recoloured))
    assert found["class_right"] == found["object_right"] == pytest.approx(1 - N / THINGS) and found["box_iou_0.7"] == 1
    assert judged("layout", redrawn(lambda thing: None))["box_iou"] == pytest.approx(0.99 * (1 - N / THINGS), abs=0.01)


def test_super_resolution_by_known_errors():
    """Catches a gain over something else than the enlarged small image, and a consistency measured against the true image: every pixel
    off by 10 levels is 28.13 dB from the truth and from what was told."""
    images = np.where(IMAGES > 127, IMAGES - 10, IMAGES + 10).astype(np.uint8)
    small = np.rint((HELD.fields["low_res"] + 1) * 127.5).astype(np.uint8)
    enlarged = np.stack([resize(image, 32, 32, "bicubic") for image in small])
    found, plain = judged("super_resolution", images), judged("super_resolution", enlarged)
    assert found["psnr_db"] == pytest.approx(20 * np.log10(25.5)) and plain["psnr_gain_db"] == 0
    assert found["psnr_gain_db"] == pytest.approx(found["psnr_db"] - plain["psnr_db"]) and plain["bicubic_db"] == plain["psnr_db"]
    told = {"low_res": np.full((1, 8, 8, 3), 110 / 127.5 - 1)}
    flat = Held([Scene((Thing(1, 0, 0.5, 0.5, 0.3),), PLAIN)], np.full((1, 32, 32, 3), 120, np.uint8), told)
    assert JUDGES["super_resolution"](Shown(flat.images), flat)["consistency_db"].value[0] == pytest.approx(20 * np.log10(25.5))


def filled(images: np.ndarray) -> np.ndarray:
    return HELD.pasted(images)


def test_inpainting_sees_what_does_not_continue():
    """Catches a hole filled with ground, another colour or another record that passes; a cut thing that is forgotten; a changed pixel
    outside the hole; a known pixel counted where the mask is. Of the truth all pass, though its boxes are told to nobody."""
    empty = filled(np.stack([draw(Scene((), scene.ground), 32)[0] for scene in SCENES]))
    cut = JUDGES["inpainting"](Shown(IMAGES), HELD)["consistent"].of(ALL)
    assert cut[2] >= 35 and cut[0] == 1
    for wrong in (empty, filled(redrawn(recoloured)), filled(np.roll(IMAGES, 1, axis=0))):
        found = judged("inpainting", wrong)
        assert found["consistent"] < 0.2 and found["known_pixels"] == 1 and found["valid"] < 0.7  # the top of a triangle is one
    assert judged("inpainting", redrawn(recoloured))["consistent"] < 0.2  # whole, in another colour
    touched = IMAGES.copy()
    touched[0, 0, 0, 0] += 1
    assert judged("inpainting", touched)["known_pixels"] == 1 - 1 / N


def test_any_shape_that_looks_so_beside_the_hole_continues():
    """Catches a measure that asks for the true shape where what is seen fits another (a cross continues the square that its upper arm
    was), and one that lets a completion pass which disagrees with the visible part."""
    square, cross = Thing(1, 0, 0.5, 0.2, 0.15), Thing(3, 0, 0.5, 0.35, 0.45)
    told, other = Scene((square,), PLAIN), Scene((cross,), PLAIN)
    hole = np.zeros((1, 32, 32))
    hole[:, 7:] = 1
    held = Held([told], draw(told, 32)[0][None], {"mask": hole})
    found = JUDGES["inpainting"](Shown(draw(other, 32)[0][None]), held)
    assert (found["consistent"].value[0], found["same_shape"].value[0]) == (1, 0)
    for wrong in (dataclasses.replace(cross, x=0.45), dataclasses.replace(cross, size=0.6, y=0.425)):
        assert JUDGES["inpainting"](Shown(draw(Scene((wrong,), PLAIN), 32)[0][None]), held)["consistent"].value[0] == 0
    held.fields["mask"][:, 4:] = 1  # less than a fifth of it is seen
    assert JUDGES["inpainting"](Shown(draw(other, 32)[0][None]), held)["consistent"].weight[0] == 0
    assert 0.05 < AGREES < 0.3 and 0.05 < MISFIT < 0.164


def test_what_is_no_scene_is_told_by_its_fault():
    """Catches a rule that is not asked for."""
    def broken(*things, image=None):
        image = draw(Scene(things, PLAIN), 32)[0] if image is None else image
        return faults(image, Shown(image[None]).covers[0])

    one = Thing(1, 2, 0.25, 0.25, 0.25)
    assert broken(one) == set() and broken() == {"number"}
    assert broken(one, Thing(0, 1, 0.75, 0.25, 0.25), Thing(0, 1, 0.25, 0.75, 0.25)) == {"number"}
    assert broken(one, Thing(0, 1, 0.53, 0.25, 0.25)) == {"places"}  # 1/32 apart
    assert "shapes" in broken(Thing(1, 2, 0.05, 0.5, 0.25)) and "sizes" in broken(Thing(1, 2, 0.5, 0.5, 0.6))
    flat = draw(Scene((one,), PLAIN), 32)[0]
    flat[6:10] = 120  # a band of ground through the square
    assert "shapes" in broken(image=flat) or "number" in broken(image=flat)
    ell = draw(Scene((), PLAIN), 32)[0]
    ell[6:14, 6:10] = ell[10:14, 6:16] = (40, 80, 220)
    assert "shapes" in broken(image=ell)
    egg = (np.indices((256, 256)) - 127.5) / 8
    egg = ((egg[0] / 6.4) ** 2 + (egg[1] / 4.9) ** 2 <= 1).reshape(32, 8, 32, 8).mean((1, 3))[..., None]
    image = np.rint(120 + egg * (np.array((40, 80, 220)) - 120)).astype(np.uint8)
    assert broken(image=image) == {"shapes"} and not faults(image, Shown(image[None]).covers[0], LOOSE)
    speck = draw(Scene((one,), PLAIN), 32)[0]
    speck[25:27, 25:27] = (220, 40, 40)  # too small for a thing
    assert broken(image=speck) == {"ground"}
    tinted = draw(Scene((one,), PLAIN), 32)[0]
    tinted[20:, 20:, 0] += 24  # below the oracle's threshold of a thing
    assert broken(image=tinted) == {"ground"}
    found = judged("unconditional", np.concatenate([IMAGES[:30], np.full((10, 32, 32, 3), 90, np.uint8)]))
    assert found["valid"] == found["number"] == 0.75 and found["ground"] == 1
    assert found["one_thing"] == np.mean(HELD.single[:30])


def test_retrieval_beside_chance():
    """Catches a share that is told without what chance would give, and neighbours of the wrong record."""
    near = [[scene, SCENES[0]] for scene in SCENES]
    found = judged("retrieval", IMAGES, dataclasses.replace(HELD, near=near))
    assert found["class_among"] == found["shape_among"] == 1 and found["class_by_chance"] < 0.3
    shifted = judged("retrieval", np.roll(IMAGES, -1, axis=0), dataclasses.replace(HELD, near=near))
    assert shifted["class_by_chance"] < 0.3 and shifted["class_among"] < 0.3
    assert judged("retrieval", np.roll(IMAGES, 1, axis=0))["class_by_chance"] == 1


def test_means_and_errors():
    """Catches an error without the number, a weight that is not one of things, and a mean over images where nothing applies.
    12 of 16: sqrt(0.75 * 0.25 / 16). Two images of 1 and 3 things, with means 1 and 1/3: 1/2, and (1 (1 - 1/2), 3 (1/3 - 1/2)) / 4."""
    assert Measure(np.arange(16) < 12).of(np.ones(16, bool)) == (0.75, pytest.approx(np.sqrt(0.75 * 0.25 / 16)), 16)
    some = Measure(np.array([1, 1 / 3, np.nan]), np.array([1, 3, 0]))
    assert some.of(np.ones(3, bool)) == (pytest.approx(0.5), pytest.approx(np.hypot(0.5, 0.5) / 4), 4)
    assert some.of(np.array([False, False, True])) == (None, None, 0)
