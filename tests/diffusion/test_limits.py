"""Limits on the estimate of clean data, against their definitions and diffusers' code."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.core.types import Level
from ldm_jax.diffusion.limits import THRESHOLDS, Clip, Dynamic

RNG = np.random.default_rng(0)
CLEAN = jnp.asarray(RNG.standard_normal((3, 8, 8, 2)) * np.asarray([0.2, 1.5, 4.0])[:, None, None, None], jnp.float32)
NOISE = jnp.asarray(RNG.standard_normal(CLEAN.shape), jnp.float32)
LEVEL = Level(jnp.float32(0.6), jnp.float32(0.8))
NOISY = 0.6 * CLEAN + 0.8 * NOISE


def denoise(params, noisy, level, time, condition):
    return CLEAN, NOISE


def limited(limit):
    return limit(denoise)({}, NOISY, LEVEL, jnp.zeros(3), None)


@pytest.mark.parametrize("options", [{"most": 1.0}, {"most": 2.0}, {"most": 100.0, "share": 0.9}], ids=str)
def test_dynamic_is_diffusers(options):
    """Catches a quantile over the batch or of signed values, a bound that shrinks small images, and a division left out."""
    scheduling = pytest.importorskip("diffusers").DDIMScheduler
    torch = pytest.importorskip("torch")
    peer = types.SimpleNamespace(config=types.SimpleNamespace(dynamic_thresholding_ratio=options.get("share", 0.995),
                                                              sample_max_value=options["most"]))
    wanted = scheduling._threshold_sample(peer, torch.tensor(np.asarray(CLEAN))).numpy()
    clean, noise = limited(Dynamic(**options))
    np.testing.assert_allclose(clean, wanted, atol=1e-6)
    np.testing.assert_allclose(noise, (NOISY - 0.6 * wanted) / 0.8, atol=1e-5)


def test_an_image_in_range_is_left_alone_and_a_large_one_fills_it():
    """Catches every image stretched to the limit, and images that share one bound."""
    clean, _ = limited(Dynamic(share=0.9))
    np.testing.assert_array_equal(clean[0], CLEAN[0])
    assert float(jnp.abs(clean).max()) == pytest.approx(1.0) and float(jnp.mean(jnp.abs(clean[2]) > 0.999)) == pytest.approx(0.1, abs=0.02)
    half, _ = limited(Dynamic(limit=0.5))
    assert float(jnp.abs(half[2]).max()) == pytest.approx(0.5)


def test_clip_and_its_noise():
    """Catches noise recomputed where it was to stay raw, and the other way round."""
    clean, noise = limited(Clip())
    np.testing.assert_array_equal(clean, np.clip(CLEAN, -1, 1))
    np.testing.assert_allclose(0.6 * clean + 0.8 * noise, NOISY, atol=1e-6)
    clean, noise = limited(Clip(noise="raw"))
    np.testing.assert_array_equal(noise, NOISE)
    assert limited(THRESHOLDS["none"]())[0] is CLEAN


@pytest.mark.parametrize("make, says", [
    (lambda: Clip(limit=0.0), "limit=0.0: expected a number above 0"), (lambda: Dynamic(share=0.0), "share=0.0"),
    (lambda: Dynamic(share=99.5), "share=99.5"), (lambda: Dynamic(most=0.5), "most=0.5: expected at least limit=1.0")])
def test_bad_limits_get_a_line(make, says):
    """Catches a percentile in percent."""
    with pytest.raises(UserError, match=says):
        make()
