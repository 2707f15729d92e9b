"""The size that a sample is made at: as trained, as asked for, or as the condition's image says."""

import re

from ldm_jax.core.errors import UserError
from ldm_jax.diffusion.windows import Window

Size = tuple[int, int]


def parse_size(text: str) -> Size | None:
    """"512x768" -> (512, 768), width and height; None for "".

    Raises:
      UserError: anything else.
    """
    found = re.fullmatch(r"\s*(\d+)\s*[xX]\s*(\d+)\s*", text)
    if text and not found:
        raise UserError(f"--size={text}: expected WIDTHxHEIGHT in pixels, as --size=512x768")
    return (int(found[1]), int(found[2])) if found else None


def parse_window(text: str) -> tuple[int] | tuple[int, float] | None:
    """"32" or "32,0.5" -> the side of a window in latents, and the overlap; None for "".

    Raises:
      UserError: anything else.
    """
    found = re.fullmatch(r"\s*(\d+)\s*(?:,\s*(\d*\.?\d+)\s*)?", text)
    if text and not found:
        raise UserError(f"--window={text}: expected the side in latents, as --window=32, or with the overlap, as --window=32,0.5")
    return ((int(found[1]), float(found[2])) if found[2] else (int(found[1]),)) if found else None


def window_of(given, model, guide=None) -> Window | None:
    """The windows of a sample, of a side, (side, overlap) or a Window.

    Raises:
      UserError: none of them, or what cannot be told or guided by windows.
    """
    if given is None or isinstance(given, Window):
        window = given
    else:
        given = tuple(given) if isinstance(given, tuple | list) else (given,)
        if not 1 <= len(given) <= 2:
            raise UserError(f"window={given!r}: expected the side of a window in latents, as window=32, or (side, overlap)")
        window = Window(*given)
    if window is not None and "boxes_tokens" in model.experiment.conditioner.fields:
        raise UserError("window: this model is told boxes in the whole image's coordinates, which each window would take for its own; "
                        "sample without it")
    for experiment in (m.experiment for m in (model, guide) if window is not None and m is not None):
        if experiment.task == "classifier":
            raise UserError("window: a classifier guides by the whole image, of the size that it was trained at; take another guide")
        window.check(experiment.network.factor)
    return window


def latent_shape(experiment, size: Size | None = None, told=None, divisor: int = 1) -> tuple[int, int, int]:
    """[h, w, c] of the latents of a sample.

    Args:
      size: (width, height) of the images in pixels; None takes the size of `told`, and else the trained one.
      told: an array [.., h, w, k] that the network reads beside the latents, or None.
      divisor: what h and w must be multiples of, beside the network's own.

    Raises:
      UserError: a size that is no multiple of what the networks halve, or not that of `told`.
    """
    side_h, side_w, channels = experiment.latent_shape
    f, step = experiment.autoencoder.factor, max(experiment.network.factor, divisor)
    if size is None:
        side_h, side_w = told.shape[-3:-1] if told is not None else (side_h, side_w)
        size = side_w * f, side_h * f
    elif not (isinstance(size, tuple | list) and len(size) == 2 and all(isinstance(n, int) and not isinstance(n, bool) for n in size)):
        raise UserError(f"size={size!r}: expected (width, height) in pixels, as size=(512, 768)")
    if any(n < 1 or n % (f * step) for n in size):
        fitting = [max(1, round(n / (f * step))) * f * step for n in size]
        raise UserError(f"size {size[0]}x{size[1]}: this model makes sides that are multiples of {f * step}; nearest: "
                        f"{fitting[0]}x{fitting[1]}")
    shape = size[1] // f, size[0] // f, channels
    if told is not None and tuple(told.shape[-3:-1]) != shape[:2]:
        h, w = told.shape[-3:-1]
        raise UserError(f"size {size[0]}x{size[1]}: the condition's image was made for {w * f}x{h * f}; make it at the same size")
    return shape
