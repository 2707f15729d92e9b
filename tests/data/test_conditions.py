"""What lies beside the images of a folder: maps of classes, boxes, depths; how it follows the transforms, and what is told of sizes."""

import io
import json
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ldm_jax import data_choices
from ldm_jax.core.errors import UserError
from ldm_jax.data.batches import in_order, stream
from ldm_jax.data.box_file import read_boxes
from ldm_jax.data.fields import Depth, Segmentation, Sizes
from ldm_jax.data.images import Images
from ldm_jax.data.maps import read_classes, read_depth
from ldm_jax.data.transforms import CropResize, Flip, RandomResizedCrop, SquareCrop
from ldm_jax.models.size_condition import Sizes as SizesConditioner
from ldm_jax.models.spatial_condition import SemanticMap

RNG = np.random.default_rng(0)
NUMBERS = RNG.integers(0, 16, (6, 10), dtype=np.uint8)
WIDE, HIGH = 96, 64  # of the images


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def narrow(numbers, depth):
    """A grey PNG of 2 or 4 bits, which Pillow cannot write."""
    def chunk(tag, data):
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))

    bits = np.unpackbits(numbers[..., None], axis=-1)[..., 8 - depth:].reshape(len(numbers), -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)
    head = struct.pack(">IIBBBBB", numbers.shape[1], numbers.shape[0], depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def paletted(numbers, colours=16):
    image = Image.fromarray(numbers, "L").convert("P")
    image.putdata(numbers.ravel().tolist())
    image.putpalette(RNG.integers(0, 256, 3 * colours).tolist())
    return image


def test_maps_are_read_as_the_numbers_they_store():
    """Mistake: the colours of a palette in the place of its indices; grey of 2 and 4 bits spread over 0..255, as Pillow does; 16 bits
    cut to 8.
    """
    for data in (encoded(NUMBERS), encoded(paletted(NUMBERS)), encoded(paletted(NUMBERS), bits=4), narrow(NUMBERS, 4)):
        found = read_classes(data, "x")
        assert found.dtype == np.uint8 and np.array_equal(found, NUMBERS)
    assert np.array_equal(read_classes(narrow(NUMBERS % 4, 2), "x"), NUMBERS % 4)
    assert np.array_equal(read_classes(encoded(Image.fromarray(NUMBERS > 7)), "x"), NUMBERS > 7)
    deep = NUMBERS.astype(np.uint16) * 4000
    assert read_classes(encoded(deep), "x").dtype == np.uint16 and np.array_equal(read_classes(encoded(deep), "x"), deep)
    assert read_depth(encoded(deep), "x").dtype == np.float32 and np.array_equal(read_depth(encoded(deep), "x"), deep)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert np.array_equal(read_classes(encoded(NUMBERS, exif=exif), "x"), np.rot90(NUMBERS, -1))


@pytest.mark.parametrize("read, data, message", [
    (read_classes, encoded(np.zeros((4, 4, 3), np.uint8)), "colour mode RGB: expected one number a pixel.* or one with a palette"),
    (read_classes, encoded(np.zeros((4, 4, 2), np.uint8)), "colour mode LA"), (read_depth, encoded(paletted(NUMBERS)), "colour mode P"),
    (read_classes, encoded(NUMBERS, "JPEG"), "expected one of PNG"), (read_classes, b"", "the file is empty"),
    (read_classes, encoded(NUMBERS)[:-30], "damaged or cut short"),
], ids=["colour", "transparent", "depth of a palette", "jpeg", "empty", "cut"])
def test_what_is_no_map_is_refused(read, data, message):
    """Mistake: a coloured picture taken for classes by its luma; a JPEG, whose numbers are not those that were drawn."""
    with pytest.raises(UserError, match=f"'m.png': .*{message}"):
        read(data, "m.png")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """24 images: a rectangle, bright in green, class 300, on a ground of class 5; red rises to the right, and depth is 257 red."""
    root = tmp_path_factory.mktemp("scenes")
    lines = []
    for i in range(24):
        rng = np.random.default_rng(i)
        left, top = int(rng.integers(0, 60)), int(rng.integers(0, 30))
        right, bottom = left + int(rng.integers(16, 36)), top + int(rng.integers(16, 34))
        image = np.zeros((HIGH, WIDE, 3), np.uint8)
        image[..., 0] = np.linspace(20, 230, WIDE)
        image[top:bottom, left:right, 1] = 255
        name = f"{'ab'[i % 2]}/{i}"
        for folder, array in (("images/", image), ("maps/", np.where(image[..., 1] > 0, 300, 5).astype(np.uint16)),
                              ("depth/", image[..., 0].astype(np.uint16) * 257)):
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / folder / f"{name}.png")
        box = [left, top, right, bottom] if i % 3 else [left / WIDE, top / HIGH, right / WIDE, bottom / HIGH]
        lines.append(json.dumps({"file_name": f"{name}.png", "boxes": [box], "labels": [("cat", "dog")[i % 2]]}
                                | ({} if i % 3 else {"unit": "shares"})))
    (root / "boxes.jsonl").write_text("\n".join(lines))
    return root


def opened(root, **more):
    beside = dict(maps="../maps", boxes="../boxes.jsonl", depths="../depth")
    return Images("train", str(root / "images"), held_out=0.0, **beside | more)


class Shown:
    """What the makers see of a scene."""

    gives = ("box", "label", "window", "map", "depth", "sizes")

    def __call__(self, record, rng):
        return {"box": record["boxes"][0], "label": record["box_labels"][0], "window": np.float32(record["window"]),
                **Segmentation()(record, rng), **Depth()(record, rng), **Sizes()(record, rng)}


@pytest.mark.parametrize("transforms", [
    (CropResize(32, crop="random"), Flip(0.5)), (SquareCrop(32), Flip(0.5)),
    (Flip(0.5), RandomResizedCrop(32, smallest=0.5, enlarge=True))], ids=["resized", "square", "mirrored first"])
def test_all_that_lies_on_an_image_goes_with_it(scenes, transforms):
    """Mistake: classes or depths that are mixed, mirrored or cropped otherwise than the image; pixels taken for shares or the other way
    round; a crop's corner in the pixels of the image before it was resized.
    """
    batch = next(stream(opened(scenes), transforms, seed=1, batch=48, resolution=32, fields={"shown": Shown()}, threads=0))
    mirrored = 0
    for i in range(48):
        image = (batch["image"][i] + 1) * 127.5
        inside = image[..., 1] > 127
        assert set(np.unique(batch["map"][i])) <= {5, 300} and np.mean((batch["map"][i] == 300) == inside) > 0.94
        assert np.abs(batch["depth"][i] / 257 - image[..., 0]).max() < 7
        left, top, right, bottom, flipped = batch["window"][i].tolist()
        mirrored += flipped
        across = (np.arange(32) + 0.5) / 32 * (right - left) + left
        down = (np.arange(32) + 0.5) / 32 * (bottom - top) + top
        box = batch["box"][i]
        drawn = ((across > box[0]) & (across < box[2])) & ((down > box[1]) & (down < box[3]))[:, None]
        assert np.mean(drawn == inside) > 0.92 and batch["label"][i] == int(batch["record"][i] >= 12)
        rising = np.interp(1 - across if flipped else across, [0, 1], [20, 230])
        assert np.abs(image[..., 0].mean(0) - rising).max() < 8
        height, width, y, x, *target = batch["sizes"][i].tolist()
        assert [height, width, *target] == [HIGH, WIDE, 32, 32]
        assert abs(x - left * 32 / (right - left)) < 0.51 and abs(y - top * 32 / (bottom - top)) < 0.51
    assert 10 < mirrored < 40


def test_sizes_are_of_the_resized_image():
    """Mistake: width before height; the corner in pixels of the image that was given, which is four times as large."""
    record = {"image": np.zeros((32, 32, 3)), "size": (256, 128), "window": (0.25, 0.0, 0.75, 1.0, False)}
    assert Sizes()(record, None)["sizes"].tolist() == [128, 256, 0, 16, 32, 32]
    with pytest.raises(UserError, match="reads 5 numbers of an image"):
        data_choices.fields_of({"data": {"fields": {"sizes": {"name": "sizes"}}, "resolution": 32}}, SizesConditioner(count=5), 4)


def test_a_square_crop_is_of_the_shorter_side():
    """Mistake: the share of the longer side or of the area; a square that cannot reach the edge; an evaluation that draws."""
    ramp = np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 60, 0)
    crop = SquareCrop(10, smallest=0.5, largest=1.0)
    windows = [crop.window(60, 200, np.random.default_rng(i)) for i in range(400)]
    sides = np.rint([(right - left) * 200 for left, _, right, _, _ in windows])
    assert np.allclose([(bottom - top) * 60 for _, top, _, bottom, _ in windows], sides)
    assert 30 <= sides.min() < 32 and 58 < sides.max() <= 60 and abs(sides.mean() - 45) < 1.5
    lefts = [left * 200 for left, *_ in windows]
    assert min(lefts) < 3 and max(left + side for left, side in zip(lefts, sides)) > 197
    assert crop.window(60, 200, None) == (0.35, 0.0, 0.65, 1.0, False) and int(crop(ramp, None)[0, 0, 0]) in (72, 73)
    assert SquareCrop(10, smallest=2 / 3, largest=2 / 3).window(60, 200, np.random.default_rng(0))[3] <= 1
    with pytest.raises(UserError, match="a crop of 60x60 of the 200x60 image is smaller than resolution 61"):
        SquareCrop(61)(ramp, None)
    with pytest.raises(UserError, match="shares of the shorter side in order"):
        SquareCrop(8, smallest=0.9, largest=0.5)


def test_classes_that_the_conditioner_has_not(scenes):
    """Mistake: 255, a pixel without a class, told as nothing at all; a fingerprint that the check alone changes."""
    def made(**more):
        section = {"data": {"fields": {"map": {"name": "segmentation"} | more}, "resolution": 32}}
        return data_choices.fields_of(section, SemanticMap(classes=40, halvings=2, channels=3), 4)["map"]

    record = {"segmentation": np.array([[0, 39], [255, 1]], np.uint8)}
    with pytest.raises(UserError, match=r"25.0% of its pixels are of classes that the conditioner has not, as 255; expected 0 to 39"):
        made()(record, None)
    assert made(other=7)(record, None)["map"].tolist() == [[0, 39], [7, 1]]
    assert made().describe() == {"maker": "Segmentation", "version": 1} and made(other=7).describe()["other"] == 7
    with pytest.raises(UserError, match="other=40: expected a class from 0 to 39"):
        made(other=40)
    assert Depth("smaller")({"depth": np.float32([[2]])}, None)["depth"] == -2
    with pytest.raises(UserError, match="images record 0 .*the record has no depth"):
        next(iter(in_order(opened(scenes, depths=""), (CropResize(32),), batch=1, fields={"depth": Depth()}, threads=0)))


def test_labels_have_numbers_by_name(scenes):
    """Mistake: names numbered by the order of lines; boxes or maps that the fingerprint does not see."""
    source = opened(scenes, labels="folders")
    assert source.box_names == ("cat", "dog") and source.class_names == ("a", "b") and len(source) == 24
    prints = [opened(scenes, **more).fingerprint()["digest"] for more in ({}, dict(boxes=""), dict(maps=""), dict(depths=""))]
    assert len(set(prints)) == 4


def test_a_changed_box_or_map_is_another_fingerprint(scenes, tmp_path):
    """Mistake: a run resumed with boxes or maps that were changed in between."""
    shutil.copytree(scenes, tmp_path / "scenes")
    before = opened(tmp_path / "scenes").fingerprint()
    (tmp_path / "scenes" / "boxes.jsonl").write_text((scenes / "boxes.jsonl").read_text().replace('"cat"', '"eel"', 1))
    between = opened(tmp_path / "scenes").fingerprint()
    Image.fromarray(NUMBERS).save(tmp_path / "scenes" / "maps" / "a" / "0.png")
    after = opened(tmp_path / "scenes")
    assert before != between != after.fingerprint()
    with pytest.raises(UserError, match="0.png': it is 10x6 and its image, upright, 96x64: expected a number for each pixel"):
        after[0]


def line(**more):
    return json.dumps({"file_name": "a.png", "boxes": [[0, 0, 4, 4]], "labels": [1]} | more)


GOOD = '{"file_name": "b/c.png", "boxes": [], "labels": []}'


@pytest.mark.parametrize("text, message", [
    (line(), "1 of 2 images have no line, first 'b/c.png'.*one without boxes has \"boxes\": \\[\\]"),
    (line() + "\n" + line(), "line 2: 'a.png' has its boxes already"), (line(file_name="z.png"), "line 1: 'z.png' is not an image"),
    (GOOD + "\n\n[1]", "line 3: expected an object with file_name, boxes and labels"), (GOOD + "\n{", "line 2: not JSON"),
    (line(boxes=[0, 0, 4, 4]), r"line 1: boxes \[0, 0, 4, 4\]; expected \[\[left, top, right, bottom\]"),
    (line(boxes=[["0", 0, 4, 4]]), "line 1: boxes"), (line(boxes=[[0, 0, float("nan"), 4]]), "line 1: boxes"),
    (line(boxes=None), "line 1: boxes null"),
    (line(labels=[]), r"line 1: labels \[\] for 1 boxes"), (line(labels=3), "line 1: labels 3 for 1 boxes"),
    (line(labels=[1.5]), "line 1: label 1.5; expected a whole number from 0, or a name"), (line(labels=[-1]), "label -1"),
    (line(labels=[True]), "label True"), (line(labels=[" "]), "label ' '"), (line(unit="cm"), "unit 'cm'; expected pixels or shares"),
    (line(boxes=[[0.1, 0.2, 0.5, 1]]), "within the first pixel; if they are shares of the image, write \"unit\": \"shares\""),
    (line(lables=[1]), "line 1: key 'lables'; expected file_name, file, boxes, labels, box_labels, unit"),
])
def test_bad_box_files(text, message, tmp_path):
    """Mistake: a box that is dropped, moved or given to another image without a word; a message without its line."""
    (tmp_path / "boxes.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        read_boxes(tmp_path / "boxes.jsonl", ["a.png", "b/c.png"])


def test_boxes_must_lie_in_their_image(tmp_path):
    """Mistake: a box outside of the image, one of no area, or right before left, cut to something; a rounded one that is refused."""
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    for boxes, message in (([[0, 0, 10, 4]], r"box \[0.0, 0.0, 10.0, 4.0\]: expected left < right and top < bottom, within the 8x6"),
                           ([[4, 0, 4, 4]], "left < right"), ([[5, 0, 4, 4]], "left < right"), ([[8, 0, 8.5, 4]], "left < right")):
        (tmp_path / "boxes.jsonl").write_text(line(boxes=boxes))
        with pytest.raises(UserError, match=f"boxes.jsonl' line 1: .*{message}"):
            Images("train", str(tmp_path), held_out=0.0, boxes="boxes.jsonl")[0]
    (tmp_path / "boxes.jsonl").write_text(line(boxes=[[-0.4, 0, 8.5, 3]]))
    assert Images("train", str(tmp_path), held_out=0.0, boxes="boxes.jsonl")[0]["boxes"].tolist() == [[0, 0, 1, 0.5]]
    (tmp_path / "boxes.jsonl").write_text(line(boxes=[[0, 0, 1, 1.2]], unit="shares"))
    with pytest.raises(UserError, match="top < bottom, within 0 to 1"):
        Images("train", str(tmp_path), held_out=0.0, boxes="boxes.jsonl")[0]
    (tmp_path / "boxes.jsonl").write_text(line(boxes=[[0, 0, 1, 2]] * 2, labels=[1, "one"]))
    with pytest.raises(UserError, match="labels are names, and numbers in .*line 1; expected one or the other in all lines"):
        Images("train", str(tmp_path), held_out=0.0, boxes="boxes.jsonl")


def test_every_image_has_its_map(tmp_path):
    """Mistake: an image without a map trained on as if it were empty; two images that share one; a map folder that is not there."""
    for name in ("a.png", "b.jpg", "maps/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 6)).save(tmp_path / name)
    cases = {"maps": r"1 of 2 images have none, first 'b.jpg' \(b.png\)", "none": "none': does not exist", ".": "the folder of the images"}
    for maps, message in cases.items():
        with pytest.raises(UserError, match=f"maps=.*{message}"):
            Images("train", str(tmp_path), held_out=0.0, maps=maps)
    Image.new("L", (8, 6)).save(tmp_path / "maps" / "b.png")
    Image.new("L", (8, 6)).save(tmp_path / "maps" / "more.png")
    assert Images("train", str(tmp_path), held_out=0.0, maps="maps").files == ["a.png", "b.jpg"]
    Image.new("L", (8, 6)).save(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="'a.png' would be of both 'a.jpg' and 'a.png'"):
        Images("train", str(tmp_path), held_out=0.0, maps="maps")
    (tmp_path / "a.jpg").unlink()
    Image.new("L", (8, 6)).save(tmp_path / "maps" / "b.jpg")
    with pytest.raises(UserError, match="'b.jpg' is no PNG"):
        Images("train", str(tmp_path), held_out=0.0, maps="maps")


def test_ready_splits_have_their_own(tmp_path):
    """Mistake: names of labels numbered in each split by itself; the maps of one split looked for in the other."""
    for split, label in (("train", "dog"), ("test", "cat")):
        (tmp_path / split / "maps").mkdir(parents=True)
        for folder in ("", "maps/"):
            Image.new("L", (8, 6)).save(tmp_path / split / f"{folder}{split}.png")
        (tmp_path / split / "b.jsonl").write_text(line(file_name=f"{split}.png", labels=[label]))
    train, test = (Images(split, str(tmp_path), maps="maps", boxes="b.jsonl") for split in ("train", "test"))
    assert train[0]["box_labels"].tolist() == [1] and test[0]["box_labels"].tolist() == [0] and test[0]["segmentation"].shape == (6, 8)
