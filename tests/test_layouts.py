"""What is drawn for a model to follow, from files and from the API: maps, boxes, small pictures, masks and borders to paint."""

import json
import types

import numpy as np
import pytest
from PIL import Image

from ldm_jax import layouts, output
from ldm_jax import told as told_module
from ldm_jax.core.errors import UserError
from ldm_jax.data.boxes import boxes_tokens
from ldm_jax.models.bert_text import BertSpec
from ldm_jax.pictures import Pictures, named, read_mask, size_of
from ldm_jax.said import Said
from tests.test_told import TRANSFORMER, make_model  # noqa: F401  (a fixture)

READER = types.SimpleNamespace(specs={"boxes_tokens": BertSpec(8, 1, vocabulary=100, length=8, bos=-1, eos=-1)})  # two objects
BOXES, LABELS = [(0.1, 0.2, 0.5, 0.6), (0.0, 0.0, 1.0, 1.0)], [3, 4]


def fake(resolution=32, channels=1, factor=4, step=2, fields=()):
    """A model as far as files are read for it."""
    parts = {"facts": types.SimpleNamespace(resolution=resolution, channels=channels), "autoencoder": types.SimpleNamespace(factor=factor),
             "network": types.SimpleNamespace(factor=step), "conditioner": types.SimpleNamespace(fields=fields)}
    return types.SimpleNamespace(experiment=types.SimpleNamespace(**parts))


def save(path, pixels, mode=None, palette=None):
    image = Image.fromarray(pixels) if mode is None else Image.fromarray(pixels, mode)
    if palette is not None:
        image.putpalette(palette)
    image.save(path)
    return str(path)


def test_boxes_become_the_ids_that_training_reads():
    """Mistake: one layout read as two of one box each; the crop of the first for all; a label for all boxes; ids of 30 objects."""
    whole = boxes_tokens(BOXES, LABELS, objects=2, vocabulary=100)
    for boxes, labels in ((BOXES, LABELS), (np.asarray(BOXES), np.asarray(LABELS)), ([BOXES], [LABELS])):
        assert np.array_equal(layouts.layout_tokens(READER, {"boxes": boxes, "box_labels": labels}), whole[None])
    crops = [(0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0)]
    found = layouts.layout_tokens(READER, {"boxes": [BOXES], "box_labels": [LABELS], "crop": crops})
    assert np.array_equal(found, [boxes_tokens(BOXES, LABELS, crop, 2, 100) for crop in crops])
    found = layouts.layout_tokens(READER, {"boxes": [BOXES[:1], []], "box_labels": [[5], []]})
    assert np.array_equal(found, [boxes_tokens(*one, objects=2, vocabulary=100) for one in ((BOXES[:1], [5]), ([], np.zeros(0, int)))])
    assert found.dtype == np.int32


@pytest.mark.parametrize("given, told", [
    ({"boxes": [(0.2, 0.2, 1.2, 0.4)]}, r"boxes\[0\]\[0\]=\(0.2, 0.2, 1.2, 0.4\): it is outside of the image"),
    ({"boxes": [(-0.1, 0.2, 0.3, 0.4)]}, "outside of the image"), ({"boxes": [(10, 10, 50, 60)]}, "outside of the image"),
    ({"boxes": [(0.2, 0.2, 0.2, 0.4)]}, r"boxes\[0\]\[0\]=.* it has no area"), ({"boxes": [(0.2, 0.5, 0.4, 0.4)]}, "it has no area"),
    ({"boxes": [(0.2, float("nan"), 0.4, 0.4)]}, "expected left, top, right, bottom"), ({"boxes": [(0.2, 0.4, 0.4)]}, "expected left, top"),
    ({"crop": (0.5, 0.5, 0.5, 1.0)}, r"crop\[0\]=.* it has no area"), ({"crop": (0, 16)}, r"crop\[0\]=\(0.0, 16.0\): expected left"),
    ({"boxes": BOXES}, "boxes, example 0: boxes: 2 and 1 labels"), ({"boxes": BOXES * 2, "box_labels": [1] * 4}, "up to 2 objects"),
    ({"box_labels": [99]}, "whole numbers from 0 to 98"), ({"box_labels": [0.5]}, "whole numbers from 0 to 98"),
    ({"boxes": [BOXES[:1]] * 2, "box_labels": [[1]] * 3}, "boxes of 2, box_labels of 3 and crop of 1 examples"),
    ({"boxes_tokens": np.zeros((1, 8), int)}, "belong together, in the place of boxes_tokens")])
def test_what_is_no_layout_is_refused(given, told):
    """Mistake: boxes in pixels, of width and height, or without an area, which are ids like any other; a label that says "absent",
    or a class that the data has not; the images' classes taken for those of boxes that are numbered apart."""
    with pytest.raises(UserError, match=told):
        layouts.layout_tokens(READER, {"boxes": BOXES[:1], "box_labels": [3]} | given)
    right = {"boxes": [BOXES, BOXES], "box_labels": [[3, 23], [0, 1]]}
    assert np.array_equal(layouts.layout_tokens(READER, right, 24), layouts.layout_tokens(READER, right))
    with pytest.raises(UserError, match="box_labels: 24, 40: the model's data has no such class; expected 0 to 23"):
        layouts.layout_tokens(READER, right | {"box_labels": [[3, 40], [24, 1]]}, 24)
    for name, classes in (("shapes", 24), ("folder", 0)):
        experiment = types.SimpleNamespace(facts=types.SimpleNamespace(classes=24))
        manifest = types.SimpleNamespace(config={"data": {"source": {"name": name}}})
        assert layouts.classes_of_boxes(types.SimpleNamespace(experiment=experiment, manifest=manifest)) == classes
    for one in ("boxes", "box_labels"):
        with pytest.raises(UserError, match="boxes and box_labels belong together"):
            layouts.layout_tokens(READER, {one: LABELS})


def test_the_model_is_told_what_is_drawn(make_model):  # noqa: F811
    """Mistake: boxes that the conditioner never sees, or the null too; a map that is not spread over the layouts."""
    section = {"name": "several", "parts": (dict(name="semantic_map", classes=5, halvings=0, channels=3), dict(
        name="bert_text", reads="boxes_tokens", width=8, layers=1, heads=1, vocabulary=100, length=8, bos=-1, eos=-1))}
    model = make_model(section, **{"network.levels": TRANSFORMER})
    drawn = np.random.default_rng(0).integers(0, 5, (1, 32, 32))
    told = model.condition(map=drawn, boxes=[BOXES, BOXES[:1]], box_labels=[LABELS, [7]], crop=(0, 0, 0.5, 1))
    ids = [boxes_tokens(b, n, (0, 0, 0.5, 1), 2, 100) for b, n in ((BOXES, LABELS), (BOXES[:1], [7]))]
    wanted = model.condition(map=drawn, boxes_tokens=ids)
    for found, other in ((told.given, wanted.given), (told.null, wanted.null)):
        assert np.array_equal(found.tokens, other.tokens) and np.array_equal(found.image, other.image) and len(found.image) == 2
    assert np.abs(told.given.tokens - told.null.tokens).max() > 0.01
    for given, words in (({}, "map: this model must be told it; give map= to model.condition, or --map to sample.py"),
                         ({"map": drawn, "boxes": [(0, 0, 2, 1)], "box_labels": [1]}, "outside of the image"),
                         ({"map": drawn, "box_labels": [1]}, "boxes and box_labels belong together"),
                         ({"map": drawn + 3}, r"map 0: class 5, 6, 7 in \d+ of 1024 pixels: expected 0 to 4")):
        with pytest.raises(UserError, match=words):
            model.condition(**given)


def test_maps_are_numbers_of_classes(tmp_path):
    """Mistake: a palette's colours or luma read for its numbers; 16 bits cut to 8; width and height exchanged; file i for image i alone."""
    classes = np.random.default_rng(1).integers(0, 5, (16, 32)).astype(np.uint8)
    grey = save(tmp_path / "grey.png", classes)
    palette = save(tmp_path / "palette.png", 4 - classes, "P", list(range(255, -1, -1)) * 3)
    wide = save(tmp_path / "wide.png", classes.astype(np.uint16) + 300)
    assert np.array_equal(layouts.read_map(grey, (32, 16)), classes) and np.array_equal(layouts.read_map(palette, (32, 16)), 4 - classes)
    assert np.array_equal(layouts.read_map(wide, (32, 16)) - 300, classes)
    found = layouts.drawn(fake(), (32, 16), {"map": (grey, palette)}, 3)["map"]
    assert found.dtype == np.int32 and np.array_equal(found, [classes, 4 - classes, classes])
    assert len(layouts.drawn(fake(), (32, 16), {"map": (grey,)}, 3)["map"]) == 1 and not layouts.drawn(fake(), None, {}, 3)
    colour = save(tmp_path / "colour.png", np.zeros((16, 32, 3), np.uint8))
    for path, size, told in ((colour, (32, 16), "a picture in colour or with transparency"), (__file__, (1, 1), "not a picture"),
                             (str(tmp_path / "none.png"), (1, 1), "no such file"),
                             (grey, (16, 32), "it is 32x16; this model makes images of 16x32")):
        with pytest.raises(UserError, match=f"--map={path}: .*{told}"):
            layouts.read_map(path, size)


def test_small_pictures_have_a_size_that_fits(tmp_path):
    """Mistake: a picture of the images' own size to be enlarged into them; colour for a grey model; pictures of two sizes in one call."""
    small, odd, full = (save(tmp_path / f"{n}.png", np.full((n, 8, 3), 40 + n, np.uint8)) for n in (8, 7, 32))
    found = layouts.drawn(fake(), None, {"low_res": (small,), "depth": (small, small)}, 2)
    assert found["low_res"].shape == (1, 8, 8, 1) and found["depth"].shape == (2, 8, 8) and found["depth"].dtype == np.float32
    assert layouts.drawn(fake(channels=3), (32, 32), {"low_res": (small, small)}, 3)["low_res"].shape == (3, 8, 8, 3)
    for size, files, told in ((None, (odd,), "it is 8x7; this model reads sides that are multiples of 2; nearest: 8x8"),
                              ((32, 32), (full,), "it is 8x32; for --size=32x32 it must be 8x8"),
                              (None, (small, full), "it is 8x32; this model makes images of 32x32 from 8x8, .*--size=32x128")):
        with pytest.raises(UserError, match=f"--low_res=.*{told}"):
            layouts.drawn(fake(), size, {"low_res": files}, 2)
    with pytest.raises(UserError, match="--depth_image=.*it is 8x32, and .*8.png is 8x8: pictures of one call are of one size"):
        layouts.drawn(fake(), None, {"depth": (small, full)}, 2)


def test_pictures_of_one_call_are_for_images_of_one_size():
    """Mistake: a traceback from the network, where a map and a small picture do not lie on each other; colour told to a grey model."""
    part = types.SimpleNamespace
    reads = part(parts=(part(fields=("map",), halvings=2), part(fields=("low_res",)), part(fields=("image", "mask"))))
    right = {"map": np.zeros((1, 16, 32)), "low_res": np.zeros((1, 4, 8, 3)), "mask": np.zeros((1, 16, 32))}
    told_module._check_sizes(reads, right, 4)
    with pytest.raises(UserError, match="low_res for 64x64, map for 32x16, mask for 32x16: the pictures of a call are for images of one"):
        told_module._check_sizes(reads, right | {"low_res": np.zeros((1, 16, 16, 3))}, 4)
    model = fake()
    model.experiment.conditioner.fields = ("low_res",)
    with pytest.raises(UserError, match=r"low_res: expected pictures of 1 channels, got \[1, 8, 8, 3\]"):
        told_module._fields(model, {"low_res": np.zeros((1, 8, 8, 3), np.uint8)})


@pytest.mark.parametrize("text, told", [
    ("{", "not JSON that can be read"), ("[]", "it holds no layout"), ("3", "layout 0: it is no object"),
    ('{"boxes": []}', "it has no labels"),
    ('{"boxes": [], "labels": [], "size": 3}', "it has size"), ('{"boxes": [[0, 0, 1]], "labels": [1]}', "no list of four numbers each"),
    ('{"boxes": {"a": 1}, "labels": [1]}', "no list of four numbers"), ('{"boxes": [[0, 0, 1, "1"]], "labels": [1]}', "four numbers"),
    ('[{"boxes": [], "labels": []}, {"boxes": [[0, 0, 1, 1]], "labels": [true]}]', "layout 1: labels are no list of whole numbers"),
    ('{"boxes": [[0, 0, 1, 1]], "labels": [1], "crop": [0, 0]}', "crop is no list of four numbers"), ("\xff", "not JSON"),
    ("[" * 9999, "JSON")])
def test_files_of_layouts_are_refused(text, told, tmp_path):
    """Mistake: a traceback of a JSON file; a misspelt key that is passed over."""
    (tmp_path / "layout.json").write_text(text, "latin-1")
    with pytest.raises(UserError, match=told) as error:
        layouts.read_layouts(str(tmp_path / "layout.json"))
    assert "\n" not in str(error.value)


def test_layouts_go_round_as_labels_do(tmp_path):
    """Mistake: the first layout for all images; a crop of one layout for the others; samples.json without what the image was told."""
    one, two = {"boxes": [[0, 0, 0.5, 1]], "labels": [3]}, {"boxes": [], "labels": [], "crop": [0, 0, 0.5, 1]}
    (tmp_path / "two.json").write_text(json.dumps([one, two]))
    (tmp_path / "one.json").write_text(json.dumps(one))
    maps = tuple(save(tmp_path / f"{i}.png", np.full((32, 32), i, np.uint8)) for i in range(2))
    said = Said(boxes=str(tmp_path / "two.json"), maps=maps)
    found = said.given(output.Request(3), fake())
    assert found["boxes"] == [one["boxes"], [], one["boxes"]] and found["box_labels"] == [[3], [], [3]]
    assert found["crop"] == [(0, 0, 1, 1), [0, 0, 0.5, 1], (0, 0, 1, 1)] and found["map"][:, 0, 0].tolist() == [0, 1, 0]
    entry = {"condition": {"label": None}}
    said.note(3, entry)
    assert entry["condition"] == {"label": None, "map": "1.png", "layout": 1}
    assert said.page["boxes"]["file"] == "two.json" and [x["file"] for x in said.page["map"]] == ["0.png", "1.png"]
    alone = Said(boxes=str(tmp_path / "one.json")).given(output.Request(2), fake())
    assert alone == {"boxes": [one["boxes"]] * 2, "box_labels": [[3]] * 2}
    assert named({"low_res": maps[:1]})["low_res"]["file"] == "0.png" and named({"low_res": ()}) == {}


def test_masks_are_black_and_white(tmp_path):
    """Mistake: a JPEG's grey edges, or a soft mask, cut where nobody said; white kept and black made anew."""
    mask = np.zeros((20, 30), np.uint8)
    mask[:, 10:] = 255
    assert np.array_equal(read_mask(save(tmp_path / "m.png", mask), (30, 20)), mask > 0)
    assert np.array_equal(read_mask(save(tmp_path / "colour.png", np.repeat(mask[..., None], 3, 2)), (30, 20)), mask > 0)
    mask[3:5, :6] = 254
    with pytest.raises(UserError, match=r"--mask=.*12 of 600 pixels \(0.02 of all\) are grey; expected black.*point\(lambda"):
        read_mask(save(tmp_path / "m.png", mask), (30, 20))
    with pytest.raises(UserError, match="--mask=.*it is 30x20; this model makes images of 20x30"):
        read_mask(save(tmp_path / "m.png", mask), (20, 30))


def test_borders_are_painted_around_a_picture(tmp_path):
    """Mistake: left for top; the picture's own pixels made anew; a border of black, which shows in what is encoded beside it."""
    image = np.random.default_rng(2).integers(0, 256, (24, 20)).astype(np.uint8)
    pictures = output.pictures_of(save(tmp_path / "a.png", image), "", None, "8,0,4,16")
    size = size_of(None, pictures)
    assert size == (32, 40) == size_of((32, 40), pictures) and size_of((1, 2), None) == (1, 2)
    assert pictures.page["outpaint"] == [8, 0, 4, 16]
    wishes, told = pictures.wishes(fake(), size), pictures.told(fake(fields=("image", "mask")), size)
    for init, mask in ((wishes["init"][0], wishes["mask"]), (told["image"][0], told["mask"][0])):
        assert np.array_equal(init[:24, 8:28, 0], image) and not mask[:24, 8:28].any() and mask.sum() == 40 * 32 - 24 * 20
        assert (init[:24, :8, 0] == image[:, :1]).all() and (init[24:, 8:28, 0] == image[-1]).all()
    pasted = pictures.wishes(fake(fields=("image", "mask")), size)
    assert pasted.keys() == {"paste"} and all(np.array_equal(a, b) for a, b in zip(pasted["paste"], (told["image"], told["mask"])))
    for ask, words in ((lambda: size_of((32, 32), pictures), "--size=32x32: --init_image with --outpaint is 32x40"),
                       (lambda: output.pictures_of("a.png", "m.png", None, "1,0,0,0"), "--mask and --outpaint: give one of them"),
                       (lambda: Pictures("a.png").told(fake()), "--mask: this model fills in .*or --outpaint")):
        with pytest.raises(UserError, match=words):
            ask()
