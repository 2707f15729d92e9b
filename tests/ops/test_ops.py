"""Array functions against closed forms and torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import base_key, key_for
from ldm_jax.ops import gaussian
from ldm_jax.ops.attention import attention
from ldm_jax.ops.embedding import sinusoidal
from ldm_jax.ops.resample import double, expect_divisible, halve


def test_sinusoidal_is_cos_then_sin_divided_by_half():
    """Mistake: [sin, cos], or frequencies divided by half - 1 (DDPM's pixel network)."""
    ours = np.asarray(sinusoidal(jnp.asarray([0.0, 3.0, 981.5]), 8))
    for row, t in zip(ours, (0.0, 3.0, 981.5)):
        angles = t * 10_000.0 ** (-np.arange(4) / 4)
        np.testing.assert_allclose(row, np.concatenate([np.cos(angles), np.sin(angles)]), atol=1e-4)


def test_attention_of_large_logits_in_bfloat16():
    """Mistake: a softmax in bfloat16, whose weights of 1,000 equal keys do not sum to 1."""
    keys = jnp.zeros((1, 1000, 1, 4), jnp.bfloat16)
    out = attention(keys[:, :1], keys, jnp.ones((1, 1000, 1, 4), jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), 1.0, atol=0.01)


def test_attention_against_numpy_in_float64():
    """Mistake: a missing 1/sqrt(d), or a softmax over the wrong axis."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, t, 3, 4)) for t in (5, 6, 6))
    logits = np.einsum("btnd,bsnd->bnts", q, k) / 2.0
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(attention(*(jnp.asarray(x, jnp.float32) for x in (q, k, v))),
                               np.einsum("bnts,bsnd->btnd", weights, v), atol=1e-5)


def test_halve_undoes_double():
    """Mistake: rows and columns exchanged in either reshape."""
    x = np.random.default_rng(1).standard_normal((2, 3, 5, 2)).astype(np.float32)
    assert np.array_equal(double(x), x.repeat(2, axis=1).repeat(2, axis=2))
    np.testing.assert_allclose(halve(double(x)), x, rtol=1e-6)
    y = np.arange(16.0).reshape(1, 4, 4, 1)
    assert np.array_equal(halve(y)[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]])


def test_kl_against_torch():
    """Mistake: a factor of two, a sign, bits for nats, or a mean where the paper sums."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    packed = rng.standard_normal((3, 2, 4, 6)).astype(np.float32) * 2
    mean, log_variance = gaussian.moments(packed)
    q = torch.distributions.Normal(torch.from_numpy(packed[..., :3]), torch.from_numpy(np.exp(0.5 * packed[..., 3:])))
    theirs = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum((1, 2, 3))
    np.testing.assert_allclose(gaussian.kl_to_standard(mean, log_variance), theirs, rtol=1e-5)


def test_log_variance_is_clamped():
    """Mistake: no clamp, so that exp overflows; or a clamp that reaches into what is trained."""
    packed = jnp.asarray([[[[1.0, 2.0, 3.0, 1e4, -1e4, 0.5]]]])
    mean, log_variance = gaussian.moments(packed)
    assert np.array_equal(mean[0, 0, 0], [1.0, 2.0, 3.0])
    assert np.array_equal(log_variance[0, 0, 0], [20.0, -30.0, 0.5])


def test_draws_have_the_moments_and_no_neighbours():
    """Mistake: variance for std, or a draw that changes with the batch around it."""
    mean, log_variance = jnp.full((4, 50, 50, 1), 3.0), jnp.full((4, 50, 50, 1), np.log(4.0))
    keys = key_for(base_key(0), "posterior", example=jnp.arange(4))
    drawn = gaussian.draw(mean, log_variance, keys)
    assert abs(float(drawn.mean()) - 3.0) < 0.1 and abs(float(drawn.std()) - 2.0) < 0.05
    alone = gaussian.draw(mean[2:3], log_variance[2:3], keys[2:3])
    assert jnp.array_equal(alone[0], drawn[2])


def test_sizes_that_cannot_be_halved_are_named_with_their_neighbours():
    """Mistake: an error that does not say which size would do."""
    with pytest.raises(UserError, match="image: 30x33 .* not divisible by 8; .*24x32 and 32x40"):
        expect_divisible("image", jax.ShapeDtypeStruct((1, 30, 33, 3), jnp.float32), 8)
    expect_divisible("image", jax.ShapeDtypeStruct((1, 32, 40, 3), jnp.float32), 8)
