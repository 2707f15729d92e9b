"""Resizing and blurring of float images [H, W, C] in numpy, as the published degradations do them with OpenCV, MATLAB and SciPy.

Between the centres of pixels. "linear", "cubic" (a = -0.75) and "area" are OpenCV's: the first two have no low pass, so that reducing
aliases, as their users' photos do; "antialiased" is MATLAB's imresize (cubic, a = -0.5, as wide as the reduction, edges mirrored).
"""

import functools

import numpy as np

OPENCV = ("linear", "cubic", "area")
KINDS = (*OPENCV, "antialiased")


def resized(image: np.ndarray, height: int, width: int, kind: str) -> np.ndarray:
    """float32 [H, W, C] -> float32 [height, width, C], one of KINDS; cubic weights overshoot the image's range."""
    down, across = weights(image.shape[0], height, kind), weights(image.shape[1], width, kind)
    return np.einsum("hH,HWC,wW->hwC", down, image, across, optimize=True)


@functools.lru_cache(maxsize=512)
def weights(old: int, new: int, kind: str) -> np.ndarray:
    """float32 [new, old], rows of sum 1: how much of each old pixel is in each new one."""
    ratio = old / new
    if kind == "area":
        first, pixel = np.arange(new)[:, None] * ratio, np.arange(old)
        covered = np.minimum(first + ratio, pixel + 1) - np.maximum(first, pixel)
        return (np.maximum(covered, 0) / ratio).astype(np.float32)
    stretch = max(ratio, 1.0) if kind == "antialiased" else 1.0
    reach = int(np.ceil(2 * stretch)) + 1
    centre = (np.arange(new) + 0.5) * ratio - 0.5
    taps = np.arange(-reach, old + reach)
    distance = np.abs(centre[:, None] - taps) / stretch
    found = np.maximum(1 - distance, 0) if kind == "linear" else _cubic(distance, -0.5 if kind == "antialiased" else -0.75)
    pixel = np.pad(np.arange(old), reach, "symmetric" if kind == "antialiased" else "edge")
    table = np.zeros((new, old))
    np.add.at(table, (slice(None), pixel), found)
    return (table / table.sum(1, keepdims=True)).astype(np.float32)


def _cubic(t: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution at distances t >= 0."""
    near, far = ((a + 2) * t - (a + 3)) * t * t + 1, a * (((t - 5) * t + 8) * t - 4)
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def blurred(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolution of float32 [H, W, C] with a kernel [k, k], k odd, that keeps its size; beyond its last pixels the image is mirrored."""
    pad = len(kernel) // 2
    wide = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), "reflect")
    size = wide.shape[:2]
    spectrum = np.fft.rfft2(wide, axes=(0, 1)) * np.fft.rfft2(kernel.astype(np.float32), s=size)[..., None]
    return np.fft.irfft2(spectrum, s=size, axes=(0, 1))[2 * pad:, 2 * pad:].astype(np.float32)


def gaussian(size: int, first: float, second: float, angle: float) -> np.ndarray:
    """float64 [size, size] of sum 1: variances, in pixels squared, along a direction (angle from the x axis) and across it."""
    places = np.arange(size) - (size - 1) / 2
    y, x = places[:, None], places[None]
    along, across = x * np.cos(angle) + y * np.sin(angle), x * np.sin(angle) - y * np.cos(angle)
    kernel = np.exp(-0.5 * (along**2 / max(first, 1e-6) + across**2 / max(second, 1e-6)))
    return kernel / kernel.sum()


def before_steps(step: int, deviation: float, size: int = 25) -> np.ndarray:
    """The Gaussian to blur with before every step-th pixel is taken, from the first on: float64 [size, size] of sum 1.

    Moved by (step - 1) / 2, so that what is taken shows the middle of its step x step.
    """
    places = np.arange(size) - (size - 1) / 2
    bell = np.exp(-0.5 * (places / max(deviation, 1e-3)) ** 2)
    moved = np.interp(np.clip(places + (step - 1) / 2, places[0], places[-1]), places, bell)
    return np.outer(moved, moved) / moved.sum() ** 2
