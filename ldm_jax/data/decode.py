"""One image file to uint8 [H, W, C], rightly, or a UserError that names the file and says what is wrong with it."""

import functools
import io
import os
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms, ImageOps

from ldm_jax.core.errors import UserError
from ldm_jax.data.transforms import PIXEL_LIMIT

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
UNREADABLE = {".heic": "HEIC", ".heif": "HEIF", ".svg": "SVG", ".jxl": "JPEG XL", ".jp2": "JPEG 2000", ".psd": "Photoshop"}
PERCEPTUAL = 0


def read_image(file: str | bytes, channels: int, where: str) -> np.ndarray:
    """Decodes an image by what it holds, whatever its file name ends with.

    Turned upright by its EXIF orientation. 16-bit grey is scaled by 1/257 and rounded (Pillow keeps the high byte of
    16-bit RGB). Transparency of any kind (RGBA, LA, palette, colour key) is composited on white. CMYK is converted by
    its embedded ICC profile to sRGB if it has one, else by Pillow's plain formula; profiles of RGB images are not
    applied. Grey is repeated for channels=3; colour becomes ITU-R 601 luma for channels=1.

    Args:
      file: a path, or the encoded bytes.
      channels: 1 or 3.
      where: the file's name, for messages.

    Returns: uint8 [H, W, channels].

    Raises:
      UserError: empty, truncated or damaged files, no image, float or 32-bit or 16-bit signed samples, several frames,
        more than 89 Mpx. (A flipped bit inside JPEG data decodes to other pixels: nobody can see that here.)
    """
    return decoded(file, where, lambda image: _array(image, channels), _known())


def decoded(file: str | bytes, where: str, read: Callable, formats: tuple[str, ...]) -> np.ndarray:
    """What `read` makes of an open image, which is checked first; formats: of Pillow, that may be. Otherwise as `read_image`."""
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=formats) as image:
            _refuse(image)
            return read(image)
    except UserError as error:
        raise UserError(f"{where!r}: {error}") from None
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise UserError(f"{where!r}: cannot be opened ({error.strerror})") from None
    except Image.UnidentifiedImageError:
        raise UserError(f"{where!r}: {_what(file)}; expected one of {', '.join(formats)}") from None
    except Image.DecompressionBombError:
        raise UserError(f"{where!r}: more than {PIXEL_LIMIT} pixels (89 Mpx); make it smaller first") from None
    except Exception as error:  # decoders of untrusted bytes raise almost anything
        raise UserError(f"{where!r}: cannot be decoded, it is damaged or cut short ({type(error).__name__}: {error})") from None


@functools.cache
def _known() -> tuple[str, ...]:
    """The formats that this build of Pillow has; no other decoder is ever tried (EPS would start Ghostscript)."""
    Image.init()
    return tuple(kind for kind in FORMATS if kind in Image.OPEN)


def _what(file: str | bytes) -> str:
    empty = not file if isinstance(file, bytes) else os.path.getsize(file) == 0
    return "the file is empty" if empty else "not an image that can be read here"


def _refuse(image: Image.Image) -> None:
    if image.width * image.height > PIXEL_LIMIT:
        raise UserError(f"{image.width}x{image.height} is more than {PIXEL_LIMIT} pixels (89 Mpx); make it smaller first")
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise UserError(f"{image.n_frames} frames or pages: save the one that is meant as a file of its own")
    wide_integer = image.mode == "I" and image.format not in ("PNG", "PPM")
    if image.mode == "F" or wide_integer:
        kind = "floating-point" if image.mode == "F" else "32-bit or signed"
        raise UserError(f"{kind} samples have no agreed white: rescale to 8 or 16 bits unsigned and save again")
    if image.mode in ("LAB", "HSV"):
        raise UserError(f"colour mode {image.mode}: save it as RGB")


def _array(image: Image.Image, channels: int) -> np.ndarray:
    image.load()
    upright = ImageOps.exif_transpose(image)
    wanted = "RGB" if channels == 3 else "L"
    if upright.mode.startswith("I"):
        values = np.asarray(upright).astype(np.uint32)
        grey = np.rint(values / 257.0).astype(np.uint8)
        key = image.info.get("transparency")
        grey = np.where(values == key, np.uint8(255), grey) if isinstance(key, int) else grey
        return np.repeat(grey[..., None], channels, axis=2)
    if upright.mode == "CMYK":
        upright = _from_cmyk(upright, image.info.get("icc_profile"))
    elif upright.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        upright = _on_white(upright)
    pixels = np.asarray(upright.convert(wanted))
    return pixels[..., None] if channels == 1 else pixels


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBa", "La"):
        image = image.convert(image.mode.upper())
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")


def _from_cmyk(image: Image.Image, profile: bytes | None) -> Image.Image:
    if not profile:
        return image.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), PERCEPTUAL, "RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        raise UserError(f"CMYK with a colour profile that cannot be read ({error}): save it as RGB") from None
