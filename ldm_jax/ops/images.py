"""Images on the host: uint8 and back, grids, PNG files. numpy only."""

import os
import pathlib

import numpy as np

from ldm_jax.core.errors import NumbersWentBad, UserError

ROUNDINGS = ("round", "truncate")


def to_uint8(image, rounding: str = "round") -> np.ndarray:
    """Images in [-1, 1] (any shape; outside is clamped) -> uint8: (x + 1) / 2 * 255, "round"ed, or "truncate"d as CompVis' scripts do.

    Raises:
      NumbersWentBad: a value that is not finite, which would become an arbitrary grey.
      UserError: an unknown rounding.
    """
    if rounding not in ROUNDINGS:
        raise UserError(f"rounding={rounding!r}: expected one of {', '.join(ROUNDINGS)}")
    image = np.asarray(image, np.float32)
    if not np.isfinite(image).all():
        raise NumbersWentBad(f"image: {int((~np.isfinite(image)).sum())} of {image.size} values are not finite")
    levels = np.clip((image + 1.0) * 127.5, 0.0, 255.0)
    return (np.rint(levels) if rounding == "round" else levels).astype(np.uint8)


def from_uint8(image: np.ndarray) -> np.ndarray:
    """uint8 -> float32 in [-1, 1]: x / 127.5 - 1."""
    return image.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def make_grid(images: np.ndarray, columns: int | None = None, gap: int = 2, ground: int = 255) -> np.ndarray:
    """uint8 [N, H, W, C] -> one uint8 picture, row by row, `gap` pixels of `ground` between the images.

    Without `columns` the grid is as square as it can be, wider rather than taller. Empty places have the ground's colour.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[0] == 0 or images.dtype != np.uint8:
        raise UserError(f"grid: expected uint8 images [N >= 1, H, W, C], got {images.dtype} {list(images.shape)}")
    count, height, width, channels = images.shape
    columns = min(columns or int(np.ceil(np.sqrt(count))), count)
    rows = -(-count // columns)
    grid = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), ground, np.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        grid[top:top + height, left:left + width] = image
    return grid


def write_png(path, image: np.ndarray) -> None:
    """Writes uint8 [H, W, C], C = 1, 3 or 4, as PNG; the file appears whole or not at all (temporary name, then rename).

    Raises:
      UserError: another dtype, rank or number of channels.
    """
    from PIL import Image

    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3, 4):
        raise UserError(f"{path}: expected uint8 [H, W, 1, 3 or 4], got {image.dtype} {list(image.shape)}")
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(temporary, format="PNG")
    os.replace(temporary, path)
