"""The diagonal Gaussian that a KL encoder speaks of by its moments."""

import jax
import jax.numpy as jnp

from ldm_jax.core.keys import normal_for

LOG_VARIANCE = (-30.0, 20.0)


def moments(packed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[B, h, w, 2c] -> mean and log-variance [B, h, w, c] float32: mean first; the log-variance is clamped to [-30, 20]."""
    mean, log_variance = jnp.split(packed.astype(jnp.float32), 2, axis=-1)
    return mean, jnp.clip(log_variance, *LOG_VARIANCE)


def kl_to_standard(mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """KL(N(mean, variance) || N(0, 1)) in nats, summed over all axes but the first: [B, ...] -> [B].

    Kingma and Welling 2014, appendix B.
    """
    nats = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance)
    return jnp.sum(nats, axis=tuple(range(1, nats.ndim)))


def draw(mean: jax.Array, log_variance: jax.Array, keys: jax.Array) -> jax.Array:
    """mean + std * normal, [B, ...]; example i's draw comes from keys[i] alone."""
    return mean + jnp.exp(0.5 * log_variance) * normal_for(keys, mean.shape[1:])
