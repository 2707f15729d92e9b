"""Distances between two batches of uint8 images, one number an image, float64 on the host.

Every function takes uint8 [B, H, W, C] twice, so that what is measured is what would be written to disk, and returns
[B]. The mean over images is taken by the caller: the PSNR of a set is the mean of its images' PSNR.
"""

import numpy as np

from ldm_jax.core.errors import UserError

RANGE = 255.0
PSNR_CAP = 100.0  # dB: identical images have no noise, and one infinite image must not hide the others in a mean
WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03  # Wang et al. 2004, section III.C


def psnr(image: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Peak signal to noise ratio [B] in dB, 10 log10(255^2 / mean squared error), at most 100 dB (identical images)."""
    a, b = _pair(image, reference)
    error = np.mean(np.square(a - b), axis=(1, 2, 3))
    floor = RANGE**2 / 10 ** (PSNR_CAP / 10)
    return 10.0 * np.log10(RANGE**2 / np.maximum(error, floor))


def ssim(image: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Structural similarity [B] in [-1, 1] (Wang et al. 2004, equation 13): one an image, the mean over channels.

    The window is an 11x11 Gaussian of sigma 1.5, moments are the window's own (divided by N, not N - 1), and the mean is
    over the positions where the whole window lies inside the image.

    Raises:
      UserError: images smaller than the window.
    """
    a, b = _pair(image, reference)
    if min(a.shape[1:3]) < WINDOW:
        raise UserError(f"ssim: images are {a.shape[2]}x{a.shape[1]}, the window needs at least {WINDOW}x{WINDOW} pixels")
    mean_a, mean_b = _window_mean(a), _window_mean(b)
    variance_a = _window_mean(a * a) - mean_a**2
    variance_b = _window_mean(b * b) - mean_b**2
    covariance = _window_mean(a * b) - mean_a * mean_b
    c1, c2 = (K1 * RANGE) ** 2, (K2 * RANGE) ** 2
    over = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    under = (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    return np.mean(over / under, axis=(1, 2, 3))


def l1(image, reference) -> np.ndarray:
    """Mean absolute difference [B] over H, W, C, in the units of its two float inputs [B, H, W, C]."""
    a, b = np.asarray(image, np.float64), np.asarray(reference, np.float64)
    _same_shape(a, b)
    return np.mean(np.abs(a - b), axis=(1, 2, 3))


def _pair(image, reference) -> tuple[np.ndarray, np.ndarray]:
    for name, array in (("image", image), ("reference", reference)):
        if np.asarray(array).dtype != np.uint8:
            raise UserError(f"{name}: expected uint8 0..255, got {np.asarray(array).dtype}; ops.images.to_uint8 makes it of [-1, 1]")
    a, b = np.asarray(image, np.float64), np.asarray(reference, np.float64)
    _same_shape(a, b)
    return a, b


def _same_shape(a, b) -> None:
    if a.ndim != 4 or a.shape != b.shape:
        raise UserError(f"expected two arrays [B, H, W, C] of one shape, got {list(a.shape)} and {list(b.shape)}")


def _window_mean(x: np.ndarray) -> np.ndarray:
    """Gaussian-weighted mean of each whole window of x [B, H, W, C], [B, H - 10, W - 10, C]."""
    weights = np.exp(-0.5 * (np.arange(WINDOW) - WINDOW // 2) ** 2 / SIGMA**2)
    weights /= weights.sum()
    rows = sum(w * x[:, i : x.shape[1] - WINDOW + 1 + i] for i, w in enumerate(weights))
    return sum(w * rows[:, :, i : x.shape[2] - WINDOW + 1 + i] for i, w in enumerate(weights))
