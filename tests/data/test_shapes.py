"""The shapes world: purity, its promises, and that its oracle reads it back."""

import dataclasses
import hashlib

import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.data import shapes_world as world
from ldm_jax.data.shapes_oracle import agrees, overlap, read_scene, regions
from ldm_jax.data.shapes_world import Shapes, Thing, coverage, parse_caption

WORLD_1 = "91dedbc7e403c21d"  # sha256 of the first 64 training images; provenance: this code at version 1


def test_a_record_is_a_function_of_seed_split_and_index():
    """Catches a generator that is shared between records, and splits or seeds that overlap."""
    forwards, backwards = Shapes("train"), Shapes("train")
    backwards[500], backwards[3]
    for i in (0, 7, 3):
        one, two = forwards[i], backwards[i]
        assert all(np.array_equal(one[key], two[key]) for key in one)
    seen = [{Shapes(split, world=seed)[i]["image"].tobytes() for i in range(200)} for split in ("train", "test") for seed in (0, 1)]
    assert len(set().union(*seen)) == 800


def test_the_standard_world_has_not_moved():
    """Catches any change of a pixel without a new version: measurements stand on this world."""
    source = Shapes("train")
    digest = hashlib.sha256(b"".join(source[i]["image"].tobytes() for i in range(64))).hexdigest()[:16]
    assert source.version == "1" and digest == WORLD_1


def test_its_promises():
    """Catches things that touch, leave the image, or share a place; and an absent shape, colour, place or count."""
    source, counts = Shapes("train"), set()
    for i in range(1000):
        scene = source.scene(i)
        counts |= {("count", len(scene.things)), ("plain", scene.ground.first == scene.ground.last)}
        for thing in scene.things:
            assert 0.2 <= thing.size <= 0.45 and min(thing.box) > 0 and max(thing.box) < 1
            counts |= set(zip(("size", "colour", "shape", "place"), thing.words))
        if len(scene.things) == 2:
            a, b = scene.things
            assert a.place < b.place and overlap(a.box, b.box) == 0
    assert len(counts) == 2 + 2 + 3 + 6 + 4 + 9


def test_captions_parse_back():
    source = Shapes("test")
    for i in range(300):
        assert parse_caption(source[i]["caption"]) == tuple(t.words for t in source.scene(i).things)
    assert parse_caption("a small red circle at the top left and a blue square in the centre") == (
        ("small", "red", "circle", "at the top left"), ("", "blue", "square", "in the centre"))
    for wrong in ("", "a red circle", "a red circle at the top and", "a pink circle at the top", "x and y and z"):
        with pytest.raises(UserError, match="caption"):
            parse_caption(wrong)


def test_the_oracle_is_right_on_clean_pictures():
    """500 records; all of 2000 were right when it was written. Catches a drawing or a reading that is off by half a pixel."""
    source = Shapes("test")
    right = sum(agrees(read_scene(source[i]["image"]), source.scene(i)) for i in range(500))
    assert right >= 0.995 * 500


def test_the_oracle_sees_what_is_wrong():
    """Catches an oracle that agrees with anything: a moved, recoloured, added or missing thing is not right."""
    source = Shapes("test")
    index = next(i for i in range(100) if len(source.scene(i).things) == 2)
    scene, image = source.scene(index), source[index]["image"]
    seen = read_scene(image)
    assert agrees(seen, scene)
    assert not agrees(read_scene(np.rot90(image)), scene)
    first, second = scene.things
    for change in (dict(colour=(first.colour + 1) % 6), dict(shape=(first.shape + 1) % 4)):
        other = dataclasses.replace(scene, things=(dataclasses.replace(first, **change), second))
        assert not agrees(read_scene(world.draw(other, 32)[0]), scene)
    assert not agrees(seen[:1], scene)
    assert read_scene(np.full((32, 32, 3), 90, np.uint8)) == ()


def test_boxes_and_segmentation_fit_the_picture():
    """Catches boxes in (y, x) order or in pixels, and a map whose numbers are not 1 + class."""
    source = Shapes("train", resolution=128)
    for i in range(20):
        record = source[i]
        assert record["label"] == record["box_labels"][0] and record["boxes"].dtype == np.float32
        assert set(np.unique(record["segmentation"])) == {0} | {1 + c for c in record["box_labels"]}
        for mark, box in zip(record["box_labels"] + 1, record["boxes"]):
            down, across = np.nonzero(record["segmentation"] == mark)
            pixels = (across.min(), down.min(), across.max() + 1, down.max() + 1)
            if len(set(record["box_labels"])) == len(record["box_labels"]):
                assert np.abs(np.array(pixels) / 128 - box).max() < 2 / 128


def test_resolutions_show_one_scene():
    """The 128-pixel picture, averaged down, is the 32-pixel one: catches lengths in pixels."""
    small, large = Shapes("train"), Shapes("train", resolution=128)
    for i in range(10):
        averaged = large[i]["image"].reshape(32, 4, 32, 4, 3).mean((1, 3))
        difference = np.abs(averaged - small[i]["image"])
        assert difference.max() < 20 and difference.mean() < 0.6


@pytest.mark.parametrize("shape, area", list(enumerate((np.pi / 4, 1, 1 / 2, 5 / 9))))
def test_areas_of_the_shapes(shape, area):
    drawn = coverage(shape, 0.41, 0.53, 0.37, 256)
    assert drawn.mean() == pytest.approx(area * 0.37**2, rel=0.01)


def test_regions_against_a_flood_fill():
    """Oracle: a plain flood fill. Catches marks that stop spreading before a winding region is one."""
    mask = np.random.default_rng(0).random((40, 40)) < 0.45
    todo, found = {tuple(p) for p in np.argwhere(mask)}, set()
    while todo:
        pending, region = [todo.pop()], set()
        while pending:
            y, x = pending.pop()
            region.add((y, x))
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & todo
            todo -= near
            pending += near
        found.add(frozenset(region))
    assert {frozenset(map(tuple, np.argwhere(r).tolist())) for r in regions(mask)} == found


def test_bad_arguments_and_size_words():
    with pytest.raises(UserError, match="resolution"):
        Shapes("train", resolution=2)
    with pytest.raises(UserError, match="world"):
        Shapes("train", world=-1)
    with pytest.raises(IndexError):
        Shapes("train", records=3)[3]
    with pytest.raises(UserError, match="uint8"):
        read_scene(np.zeros((32, 32, 3), np.float32))
    words = [Thing(0, 0, 0.5, 0.5, size).words[0] for size in (0.2, 0.27, 0.29, 0.36, 0.38, 0.45)]
    assert words == ["small", "small", "", "", "large", "large"] and len(world.PLACES) == 9
