"""The two bottlenecks: gradients in closed form, revival, use of codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import base_key, key_for
from ldm_jax.models.bottleneck import (
    BOTTLENECKS,
    KL,
    VectorQuantiser,
    code_counts,
    nearest,
    perplexity,
    revive,
    usage_start,
    usage_update,
)

RNG = np.random.default_rng(0)
CODES = RNG.standard_normal((6, 3)).astype(np.float32)
LATENT = RNG.standard_normal((2, 4, 5, 3)).astype(np.float32)


def quantise(latent, codes=CODES, **fields):
    return VectorQuantiser(codes=6, **fields).apply({"params": {"codebook": codes}}, latent)


def brute(latent):
    return np.square(latent[..., None, :].astype(np.float64) - CODES).sum(-1).argmin(-1)


def test_nearest_is_the_nearest():
    """Mistake: a dot product for a distance (the long codes win), or the sign of the cross term."""
    assert np.array_equal(nearest(jnp.asarray(CODES), jnp.asarray(LATENT)), brute(LATENT))


def test_the_value_is_the_code_and_the_gradient_the_latents():
    """Mistake: a gradient that stops at the codebook, or a value that is the code only up to rounding."""
    cotangent = RNG.standard_normal(LATENT.shape).astype(np.float32)
    value, bottled = quantise(LATENT)
    assert np.array_equal(value, CODES[brute(LATENT)]) and np.array_equal(bottled.indices, brute(LATENT))
    gradient = jax.grad(lambda z: jnp.sum(quantise(z)[0] * cotangent))(jnp.asarray(LATENT))
    np.testing.assert_array_equal(gradient, cotangent)
    assert not np.any(jax.grad(lambda c: jnp.sum(quantise(LATENT, c)[0] * cotangent))(jnp.asarray(CODES)))


@pytest.mark.parametrize(("form", "on_latent", "on_codes"), [("corrected", 0.3, 1.0), ("legacy", 1.0, 0.3)])
def test_beta_stands_on_the_side_that_its_form_names(form, on_latent, on_codes):
    """Mistake: the legacy placement under the corrected name, or a missing stop-gradient (both sides get both terms)."""

    def loss(latent, codes):
        bottled = quantise(latent, codes, beta=0.3, form=form)[1]
        return jnp.sum(bottled.codebook + bottled.commitment)

    by_latent, by_codes = jax.grad(loss, argnums=(0, 1))(jnp.asarray(LATENT), jnp.asarray(CODES))
    pull = 2 * (LATENT - CODES[brute(LATENT)]) / (4 * 5 * 3)  # d of a mean over h, w, c, per example
    np.testing.assert_allclose(by_latent, on_latent * pull, rtol=1e-4, atol=1e-7)
    expected = np.zeros_like(CODES)
    np.add.at(expected, brute(LATENT).ravel(), -on_codes * pull.reshape(-1, 3))
    np.testing.assert_allclose(by_codes, expected, rtol=1e-4, atol=1e-6)


def test_losses_are_per_example():
    """Mistake: a mean over the batch, after which a neighbour changes an example's loss."""
    alone, together = quantise(LATENT[:1])[1], quantise(LATENT)[1]
    assert together.codebook.shape == (2,)
    np.testing.assert_allclose(alone.commitment, together.commitment[:1], rtol=1e-6)


def test_codebook_starts_uniform_and_small():
    """Mistake: a normal start, under which few codes are ever chosen."""
    codebook = VectorQuantiser(codes=64).init(jax.random.key(0), LATENT)["params"]["codebook"]
    assert codebook.shape == (64, 3) and codebook.dtype == jnp.float32
    assert float(jnp.abs(codebook).max()) <= 1 / 64 and float(codebook.std()) == pytest.approx(1 / 64 / np.sqrt(3), rel=0.15)


def test_use_is_a_running_share():
    """Mistake: counts instead of shares, so that the threshold of revival depends on the batch size."""
    use = usage_update(usage_start(4), jnp.asarray([[0, 0], [0, 1]]), 0.9)
    np.testing.assert_allclose(use, [0.9 / 4 + 0.075, 0.9 / 4 + 0.025, 0.225, 0.225], rtol=1e-6)
    np.testing.assert_allclose(use, usage_update(usage_start(4), jnp.asarray([0, 0, 0, 1] * 50), 0.9), rtol=1e-5)


def test_only_dead_codes_are_revived_and_by_latents():
    """Mistake: live codes moved, dead codes given noise, or a revived code that is revived again at the next step."""
    use = jnp.asarray([0.5, 0.01, 0.2, 0.2, 0.08, 0.01])
    codes, new_use, revived = revive(jnp.asarray(CODES), use, LATENT, base_key(0), threshold=0.1)
    dead = np.array([False, True, False, False, False, True])
    assert int(revived) == 2 and np.array_equal(codes[~dead], CODES[~dead])
    vectors = LATENT.reshape(-1, 3)
    assert all((vectors == row).all(-1).any() for row in np.asarray(codes[dead]))
    np.testing.assert_allclose(new_use[dead], 1 / 6) and np.testing.assert_array_equal(new_use[~dead], use[~dead])
    assert int(revive(codes, new_use, LATENT, base_key(1), 0.1)[2]) == 0
    other = revive(jnp.asarray(CODES), use, LATENT, base_key(1), threshold=0.1)[0]
    assert not np.array_equal(other[dead], codes[dead])
    assert int(revive(jnp.asarray(CODES), jnp.zeros(6), LATENT, base_key(0), threshold=0.0)[2]) == 0


def test_perplexity_counts_codes():
    """Mistake: bits for nats, or NaN for a code that was never chosen."""
    counts = code_counts(jnp.asarray([[0, 1], [2, 3]]), 8)
    assert counts.tolist() == [1, 1, 1, 1, 0, 0, 0, 0] and float(perplexity(counts)) == pytest.approx(4.0, rel=1e-6)
    assert float(perplexity(jnp.asarray([7.0, 0.0]))) == pytest.approx(1.0)


def test_kl_takes_the_mean_without_keys_and_draws_with_them():
    """Mistake: a draw at evaluation, or the log-variance's half decoded."""
    packed = RNG.standard_normal((2, 3, 3, 8)).astype(np.float32)
    mode, bottled = KL().apply({}, packed)
    assert np.array_equal(mode, packed[..., :4]) and bottled.kl.shape == (2,)
    keys = key_for(base_key(0), "posterior", example=jnp.arange(2))
    drawn, _ = KL().apply({}, packed, keys)
    assert not np.array_equal(drawn, mode) and np.array_equal(KL().apply({}, packed, keys, method="latent"), drawn)
    np.testing.assert_array_equal(KL().apply({}, packed[1:], keys[1:])[0], drawn[1:])


def test_bad_numbers_are_named():
    """Mistake: a misspelt form trains the other one."""
    assert set(BOTTLENECKS) == {"kl", "vq"}
    with pytest.raises(UserError, match="corrected, legacy"):
        VectorQuantiser(codes=4, form="fixed")
    with pytest.raises(UserError, match="at least 2 codes"):
        VectorQuantiser(codes=1)
