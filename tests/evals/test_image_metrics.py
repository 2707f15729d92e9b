"""PSNR, SSIM and L1 against scikit-image, live, and in closed form."""

import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.evals.image_metrics import l1, psnr, ssim


def pictures(seed=0, shape=(3, 24, 31, 3)):
    """Smooth pictures and noisy, shifted copies of them, uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[1], : shape[2]]
    waves = [np.sin(x / rng.uniform(2, 6) + k) * np.cos(y / rng.uniform(2, 6)) for k in range(shape[0] * shape[3])]
    clean = np.stack(waves, -1).reshape(*shape[1:3], shape[0], shape[3]).transpose(2, 0, 1, 3) * 100 + 120
    other = 0.8 * clean + rng.normal(0, 12, shape) + 10
    return clean.clip(0, 255).astype(np.uint8), other.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_equals_scikit_image(channels):
    """Catches a uniform window, N - 1 moments, a border counted in, a luma instead of a channel mean, a range other than 255."""
    metrics = pytest.importorskip("skimage.metrics")
    a, b = pictures(shape=(3, 24, 31, channels))
    wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = [metrics.structural_similarity(x, y, data_range=255, channel_axis=-1, **wang) for x, y in zip(a, b)]
    np.testing.assert_allclose(ssim(a, b), expected, rtol=0, atol=1e-12)
    plain = [metrics.structural_similarity(x, y, data_range=255, channel_axis=-1) for x, y in zip(a, b)]
    assert np.max(np.abs(ssim(a, b) - plain)) > 1e-3, "the test cannot tell the windows apart"


def test_psnr_equals_scikit_image():
    """Catches R = 1 or 2 instead of 255, and a log of the root."""
    metrics = pytest.importorskip("skimage.metrics")
    a, b = pictures()
    expected = [metrics.peak_signal_noise_ratio(x, y, data_range=255) for x, y in zip(a, b)]
    np.testing.assert_allclose(psnr(a, b), expected, rtol=1e-12)


def test_psnr_is_per_image():
    """Catches a PSNR of the pooled error: the mean of the images' PSNR is another number."""
    black = np.zeros((2, 12, 12, 1), np.uint8)
    off = black.copy()
    off[0], off[1] = 1, 100
    np.testing.assert_allclose(psnr(black, off), [20 * np.log10(255), 20 * np.log10(2.55)], rtol=1e-12)


def test_identical_images_are_defined():
    """Catches an infinite PSNR, which would swallow the mean of a split, and a 0 / 0 in SSIM on flat images."""
    flat = np.zeros((2, 16, 16, 1), np.uint8)
    np.testing.assert_array_equal(psnr(flat, flat), [100.0, 100.0])
    np.testing.assert_allclose(ssim(flat, flat), 1.0)


def test_l1_is_in_the_units_given():
    a, b = np.full((2, 4, 4, 1), -1.0), np.full((2, 4, 4, 1), 1.0)
    np.testing.assert_array_equal(l1(a, b), [2.0, 2.0])


def test_doors():
    """Catches floats taken for 0..255 (uint8 differences that wrap, or a PSNR of images in [-1, 1] with R = 255)."""
    a, b = pictures()
    with pytest.raises(UserError, match="expected uint8"):
        psnr(a / 255.0, b)
    with pytest.raises(UserError, match="one shape"):
        ssim(a, b[:2])
    with pytest.raises(UserError, match="at least 11x11"):
        ssim(a[:, :8], b[:, :8])
