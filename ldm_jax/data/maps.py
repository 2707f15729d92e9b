"""Maps beside images: PNG files that hold a number for each pixel, its class or its depth, and are read as the numbers they store."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from ldm_jax.core.errors import UserError
from ldm_jax.data.decode import decoded

STRETCHED = {"L;2": 85, "L;4": 17}  # Pillow spreads the numbers of a grey PNG of 2 or 4 bits over 0 to 255
WIDE = ("I;16", "I;16B", "I")
SHOWN = 5  # names printed in one message


def read_classes(file: str | bytes, where: str) -> np.ndarray:
    """The class of each pixel: uint8 [H, W], or uint16 of a 16-bit file.

    Of a grey PNG (of 1 to 16 bits) its numbers, of one with a palette its indices, whatever colours they stand for. Turned upright by
    its EXIF orientation, as images are.

    Args:
      file: a path, or the encoded bytes. where: its name, for messages.

    Raises:
      UserError: no PNG, a coloured or transparent one, or as `read_image`.
    """
    return decoded(file, where, lambda image: _numbers(image, ("1", "L", "P")), ("PNG",))


def read_depth(file: str | bytes, where: str) -> np.ndarray:
    """The depth of each pixel as the grey PNG stores it, 8 or 16 bits: float32 [H, W]. Arguments and errors as of `read_classes`."""
    return decoded(file, where, lambda image: _numbers(image, ("L",)), ("PNG",)).astype(np.float32)


def fitting(found: np.ndarray, image: np.ndarray, where: str) -> np.ndarray:
    """The map [H, W] itself. Raises UserError: it is of another size than its image [H, W, C]."""
    if found.shape != image.shape[:2]:
        raise UserError(f"{where!r}: it is {found.shape[1]}x{found.shape[0]} and its image, upright, {image.shape[1]}x{image.shape[0]}: "
                        "expected a number for each pixel of the image")
    return found


def of_images(found: Sequence[str], files: Sequence[str], where: str) -> dict[str, str]:
    """{image: its map}, by the same relative name with .png; maps of no image are passed over.

    Args:
      found: relative paths of the maps. files: of the images. where: key and folder of the maps, for messages.

    Raises:
      UserError: a file that is no PNG, an image without a map, two images that one map would be of.
    """
    odd = [file for file in found if not file.lower().endswith(".png")]
    if odd:
        raise UserError(f"{where}: {odd[0]!r} is no PNG; expected PNG files, which keep each pixel's number as it is")
    maps, owners = {_stem(file): file for file in found}, {}
    for file in files:
        if owners.setdefault(_stem(file), file) != file:
            raise UserError(f"{where}: {_stem(file) + '.png'!r} would be of both {owners[_stem(file)]!r} and {file!r}; rename one image")
    missing = [file for file in files if _stem(file) not in maps]
    if missing:
        raise UserError(f"{where}: {len(missing)} of {len(files)} images have none, first "
                        + ", ".join(f"{file!r} ({_stem(file)}.png)" for file in missing[:SHOWN]))
    return {file: maps[_stem(file)] for file in files}


def _stem(file: str) -> str:
    return os.fspath(pathlib.PurePosixPath(file).with_suffix(""))


def _numbers(image: Image.Image, modes: tuple[str, ...]) -> np.ndarray:
    """modes: of Pillow, that may be beside the 16-bit ones."""
    stretched = STRETCHED.get(image.tile[0][3] if image.tile else "", 1)
    image.load()
    if image.mode not in (*modes, *WIDE):
        raise UserError(f"colour mode {image.mode}: expected one number a pixel, a grey PNG of 8 or 16 bits"
                        + " or one with a palette" * ("P" in modes))
    numbers = np.asarray(ImageOps.exif_transpose(image))
    return numbers.astype(np.uint16) if image.mode in WIDE else numbers.astype(np.uint8) // np.uint8(stretched)
