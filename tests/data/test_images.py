"""Folders of images: the bad-input matrix (rows 21 to 44), made live with Pillow; splits, labels, captions."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from ldm_jax.core.errors import UserError
from ldm_jax.data.decode import read_image
from ldm_jax.data.images import Images

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = COLOUR[..., 0]
SMOOTH = np.stack([*np.meshgrid(np.linspace(20, 230, 32), np.linspace(10, 200, 24)), np.full((24, 32), 90.0)], -1).astype(np.uint8)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def png(array, kind, depth, claim=None):
    """A PNG written by hand: Pillow cannot write 16-bit colour. array [H, W, C]; kind is PNG's colour type; claim: (W, H)."""
    def chunk(tag, data):
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))

    rows = b"".join(b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in array)
    head = struct.pack(">IIBBBBB", *(claim or (array.shape[1], array.shape[0])), depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def on_white(colour, alpha):
    return np.rint(colour * (alpha / 255.0) + 255.0 * (1 - alpha / 255.0))


ALPHA = RNG.integers(0, 256, (6, 9, 1), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (6, 9, 3), dtype=np.uint16)
PALETTE = Image.fromarray(COLOUR[:1, :2]).quantize(2)
KEYED = np.where(GREY == GREY[0, 0], 255, GREY)
EXIF = Image.Exif()
EXIF[0x0112] = 6  # the camera was turned: show it rotated a quarter to the right

READ = {  # name: (bytes, expected [H, W, 3], tolerance in levels)
    "colour": (encoded(COLOUR), COLOUR, 0),
    "grey": (encoded(GREY), GREY[..., None], 0),
    "black and white": (encoded(Image.fromarray(GREY > 99)), (GREY > 99)[..., None] * 255, 0),
    "16-bit grey png": (encoded(DEEP[..., 0]), np.rint(DEEP[..., :1] / 257), 0),
    "16-bit grey tiff": (encoded(DEEP[..., 0], "TIFF"), np.rint(DEEP[..., :1] / 257), 0),
    "16-bit grey ppm": (encoded(DEEP[..., 0], "PPM"), np.rint(DEEP[..., :1] / 257), 0),
    "16-bit colour png": (png(DEEP, 2, 16), DEEP / 257, 1),
    "16-bit transparent png": (png(np.concatenate([DEEP, np.full_like(DEEP[..., :1], 65535)], -1), 6, 16), DEEP / 257, 1),
    "RGBA": (encoded(np.concatenate([COLOUR, ALPHA], -1)), on_white(COLOUR, ALPHA), 1),
    "LA": (encoded(np.concatenate([GREY[..., None], ALPHA], -1)), on_white(GREY[..., None], ALPHA), 1),
    "transparent palette": (encoded(PALETTE, transparency=PALETTE.getpixel((0, 0))), np.stack([[255] * 3, COLOUR[0, 1]])[None], 0),
    "colour key": (encoded(GREY, transparency=int(GREY[0, 0])), KEYED[..., None], 0),
    "CMYK without a profile": (encoded(Image.fromarray(SMOOTH).convert("CMYK"), "TIFF"), SMOOTH, 1),
    "CMYK jpeg": (encoded(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=98), SMOOTH, 8),
    "turned by EXIF": (encoded(SMOOTH, "JPEG", exif=EXIF, quality=98), np.rot90(SMOOTH, -1), 8),
    "webp": (encoded(COLOUR, "WEBP", lossless=True), COLOUR, 0),
    "one pixel": (encoded(COLOUR[:1, :1]), COLOUR[:1, :1], 0),
}


@pytest.mark.parametrize("name", READ)
def test_read_rightly(name):
    """Catches clipped 16-bit, hidden colours under alpha, inverted CMYK, ignored rotation."""
    data, expected, tolerance = READ[name]
    image = read_image(data, 3, name)
    assert image.dtype == np.uint8 and image.shape == (*expected.shape[:2], 3)
    assert np.abs(image.astype(float) - expected).max() <= tolerance


def test_cmyk_profiles_are_used(tmp_path, monkeypatch):
    """Pillow ships no CMYK profile, so the conversion is watched: catches a profile that is ignored or applied backwards."""
    seen = {}

    def convert(image, source, target, intent, mode):
        seen.update(mode=image.mode, target=ImageCms.getProfileName(target), wanted=mode)
        return Image.new("RGB", image.size, (1, 2, 3))

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encoded(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", icc_profile=profile)
    with pytest.raises(UserError, match="colour profile"):  # an RGB profile on a CMYK image
        read_image(data, 3, "x.jpg")
    monkeypatch.setattr(ImageCms, "profileToProfile", convert)
    assert read_image(data, 3, "x.jpg")[0, 0].tolist() == [1, 2, 3]
    assert seen["mode"] == "CMYK" and "sRGB" in seen["target"] and seen["wanted"] == "RGB"


def test_one_channel_is_luma():
    assert np.abs(read_image(encoded(COLOUR), 1, "x")[..., 0] - COLOUR @ [0.299, 0.587, 0.114]).max() <= 1
    for name in ("16-bit grey png", "LA", "CMYK without a profile"):
        assert read_image(READ[name][0], 1, "x").shape == (*READ[name][1].shape[:2], 1)


def moving(array, kind):
    return encoded(array, kind, save_all=True, append_images=[Image.fromarray(255 - array)])


def broken_png():
    data = bytearray(encoded(SMOOTH))
    data[data.index(b"IDAT") + 40] ^= 4
    return bytes(data)


def text_bomb():
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 70_000_000, zip=True)
    return encoded(COLOUR, pnginfo=info)


REFUSED = {  # name: (bytes, what the message says)
    "zero bytes": (lambda: b"", "the file is empty"),
    "text": (lambda: b"<html>not found</html>", "not an image"),
    "truncated jpeg": (lambda: encoded(SMOOTH, "JPEG")[:-200], "damaged or cut short"),
    "jpeg less 2 bytes": (lambda: encoded(SMOOTH, "JPEG")[:-20], "damaged or cut short"),
    "truncated png": (lambda: encoded(SMOOTH)[:-60], "damaged or cut short"),
    "flipped bit png": (broken_png, "damaged or cut short"),
    "text bomb": (text_bomb, "damaged or cut short"),
    "bomb": (lambda: png(np.zeros((1, 9, 1), np.uint8), 0, 8, claim=(30000, 30000)), "89 Mpx"),
    "90 Mpx": (lambda: encoded(Image.new("1", (9500, 9500))), "89 Mpx"),
    "190 Mpx": (lambda: encoded(Image.new("1", (13800, 13800))), "89 Mpx"),
    "32-bit tiff": (lambda: encoded(GREY.astype(np.int32), "TIFF"), "32-bit or signed"),
    "float tiff": (lambda: encoded(GREY.astype(np.float32), "TIFF"), "floating-point"),
    "animated gif": (lambda: moving(GREY, "GIF"), "2 frames"),
    "animated webp": (lambda: moving(COLOUR, "WEBP"), "2 frames"),
    "animated png": (lambda: moving(COLOUR, "PNG"), "2 frames"),
    "pages": (lambda: moving(GREY, "TIFF"), "2 frames"),
    "LAB": (lambda: encoded(Image.new("LAB", (4, 4)), "TIFF"), "LAB"),
    "postscript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name, tmp_path):
    """Catches a picture that is silently grey, half, first of many or gone, and a message that does not name the file."""
    make, message = REFUSED[name]
    (tmp_path / "good.png").write_bytes(encoded(COLOUR))
    (tmp_path / "the bad one.png").write_bytes(make())
    source = Images("train", str(tmp_path), held_out=0.0)
    assert source[0]["image"].shape == (6, 9, 3)
    with pytest.raises(UserError, match=message) as caught:
        source[1]
    assert "the bad one.png" in str(caught.value) and "\n" not in str(caught.value)


def folder(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8), "WEBP" if name.endswith("p") else "PNG"))
    return str(root)


def test_names_in_order_any_case_and_any_depth(tmp_path):
    """Catches case-sensitive extensions, directory order, and names that cannot be printed or encoded."""
    names = ["B.PNG", "a.JpG", "deep/er/x.webp", "zebra\n.png", "-dash.png", "é" * 60 + ".png", "liar.jpg"]
    made = folder(tmp_path, *names)
    with open(os.fsencode(made) + b"/\xff.png", "wb") as file:
        file.write(encoded(COLOUR))
    folder(tmp_path, ".hidden.png", ".cache/x.png")
    (tmp_path / "notes.txt").write_text("not an image")
    source = Images("train", made, held_out=0.0)
    assert source.files == sorted([*names, os.fsdecode(b"\xff.png")]) and len(source.fingerprint()["digest"]) == 16
    assert all(source[i]["image"].shape[2] == 3 and source[i]["file"].isprintable() for i in range(len(source)))


def test_missing_and_empty_folders_say_what_was_looked_for(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"x")
    for path, message in ((tmp_path / "none", "does not exist"), (tmp_path / "a.bin", "not a directory"),
                          (tmp_path, r"no images; looked at any depth for \.png .* found 1 \.bin"), ("", "expected the path")):
        with pytest.raises(UserError, match=message):
            Images("train", str(path))
    for name, kind in (("photo.HEIC", "HEIC"), ("logo.svg", "SVG")):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(UserError, match=f"{name}.*{kind} cannot be read"):
            Images("train", str(tmp_path))
        (tmp_path / name).unlink()


def test_links(tmp_path):
    """Catches a walk that never ends, images met twice through a loop, and links out of the folder."""
    inside, outside = tmp_path / "in", tmp_path / "in and out"
    folder(inside, "a/1.png", "b/2.png")
    folder(outside, "3.png")
    (inside / "a" / "loop").symlink_to(inside)
    assert Images("train", str(inside), held_out=0.0).files == ["a/1.png", "b/2.png"]
    (inside / "out").symlink_to(outside)
    with pytest.raises(UserError, match="leads out of the folder"):
        Images("train", str(inside))
    assert Images("train", str(inside), held_out=0.0, links="anywhere").files == ["a/1.png", "b/2.png", "out/3.png"]
    (inside / "gone.png").symlink_to(inside / "nowhere.png")
    with pytest.raises(UserError, match="does not exist"):
        Images("train", str(inside), links="anywhere")


def test_splits_are_disjoint_whole_and_stable(tmp_path):
    """Catches a test image that is trained on, and a split that a new file reshuffles."""
    made = folder(tmp_path, *(f"{i}.png" for i in range(40)))
    train, test = (Images(split, made, held_out=0.1) for split in ("train", "test"))
    assert len(test) == 4 and sorted(train.files + test.files) == sorted(f"{i}.png" for i in range(40))
    assert train.fingerprint() != test.fingerprint()
    folder(tmp_path, "new.png")
    assert len(set(Images("test", made, held_out=0.1).files) & set(test.files)) >= 3
    with pytest.raises(UserError, match="leave none for split 'test'"):
        Images("test", made, held_out=0.0)


def test_ready_splits(tmp_path):
    made = folder(tmp_path, "train/cat/1.png", "train/dog/2.png", "test/dog/3.png")
    train, test = (Images(split, made, labels="folders") for split in ("train", "test"))
    assert train.files == ["cat/1.png", "dog/2.png"] and test.files == ["dog/3.png"]
    assert train.class_names == test.class_names == ("cat", "dog") and test[0]["label"] == 1 and test.classes == 2


def test_labels_from_folders(tmp_path):
    """Catches labels numbered by order of reading, and a loose image that gets a class of its own."""
    made = folder(tmp_path, "dog/a.png", "cat/deep/b.png", "eel/c.png")
    source = Images("train", made, labels="folders", held_out=0.0)
    assert [source[i]["label"] for i in range(3)] == [0, 1, 2] and source.files[0] == "cat/deep/b.png"
    assert Images("train", made, held_out=0.0).classes == 0 and "label" not in Images("train", made, held_out=0.0)[0]
    folder(tmp_path, "loose.png")
    with pytest.raises(UserError, match="1 images lie in no class folder: .*loose.png"):
        Images("train", made, labels="folders")


CAPTIONS = {
    "captions.txt": "\ufeffa.png\ta cat, sitting\r\n\r\nb/c.png\tein Bär\r\n",
    "captions.csv": 'file_name,text\r\na.png,"a cat, sitting"\r\nb/c.png,ein Bär\r\n',
    "captions.jsonl": '{"file_name": "a.png", "text": "a cat, sitting"}\n\n{"file": "./b/c.png", "caption": "ein Bär"}\n',
}


@pytest.mark.parametrize("name", CAPTIONS)
def test_captions(name, tmp_path):
    made = folder(tmp_path, "a.png", "b/c.png")
    (tmp_path / name).write_bytes(CAPTIONS[name].encode())
    source = Images("train", made, captions=name, held_out=0.0)
    assert [source[i]["caption"] for i in range(2)] == ["a cat, sitting", "ein Bär"]
    before = source.fingerprint()
    (tmp_path / name).write_bytes(CAPTIONS[name].replace("sitting", "running").encode())
    assert Images("train", made, captions=name, held_out=0.0).fingerprint() != before


@pytest.mark.parametrize("name, text, message", [
    ("c.txt", b"a.png\tx\n", "1 of 2 images have none, first 'b/c.png'"),
    ("c.txt", b"a.png x\n", "line 1: expected path, tab, caption"),
    ("c.txt", b"a.png\tx\nz.png\ty\n", "line 2: 'z.png' is not an image of the folder"),
    ("c.txt", b"a.png\tx\na.png\ty\n", "line 2: 'a.png' has a caption already"),
    ("c.txt", b"a.png\t \n", "line 1: a caption of 0 characters"),
    ("c.txt", b"a.png\t" + b"x" * 1_000_000, "a caption of 1000000 characters"),
    ("c.txt", b"a.png\t\xff\n", "not UTF-8 at byte 6"),
    ("c.csv", b"name,text\n", "expected one of file_name or file, found name, text"),
    ("c.csv", b"file,text\na.png,a cat, sitting\n", "line 2: too many columns"),
    ("c.csv", b"file,text\na.png\n", "line 2: too few columns"),
    ("c.jsonl", b'{"file": "a.png", "text": "x"}\n{"file": \n', "line 2: not JSON"),
    ("c.jsonl", b'{"file": "a.png", "text": ["x"]}\n', "line 1: file_name and text must be strings"),
    ("c.xml", b"", "ends with .txt, .csv, .jsonl"),
])
def test_bad_captions(name, text, message, tmp_path):
    made = folder(tmp_path, "a.png", "b/c.png")
    (tmp_path / name).write_bytes(text)
    with pytest.raises(UserError, match=message):
        Images("train", made, captions=name)


def test_absent_captions_file(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        Images("train", folder(tmp_path, "a.png"), captions="c.txt")
