"""Exact denoisers of known data as the samplers call them, hashable: Gaussian, and a mixture of two in every coordinate."""

import jax
import jax.numpy as jnp

MEAN, STD = 0.7, 0.4
WEIGHTS, MEANS, STDS = (0.3, 0.7), (-1.0, 0.8), (0.2, 0.35)


def gaussian(params, noisy, level, time, condition):
    """Data N(MEAN, STD^2)."""
    total = level.alpha**2 * STD**2 + level.sigma**2
    away = noisy - level.alpha * MEAN
    return MEAN + level.alpha * STD**2 / total * away, level.sigma / total * away


def mixture(params, noisy, level, time, condition):
    """Data 0.3 N(-1, 0.2^2) + 0.7 N(0.8, 0.35^2)."""
    means, stds, weights = jnp.asarray(MEANS), jnp.asarray(STDS), jnp.asarray(WEIGHTS)
    total = level.alpha**2 * stds**2 + level.sigma**2
    away = noisy[..., None] - level.alpha * means
    share = jax.nn.softmax(jnp.log(weights) - jnp.log(total) / 2 - away**2 / (2 * total), axis=-1)
    clean = jnp.sum(share * (means + level.alpha * stds**2 / total * away), -1)
    return clean, jnp.sum(share * level.sigma / total * away, -1)


def mixture_moments() -> tuple[float, float]:
    """Mean and variance of the mixture."""
    mean = sum(w * m for w, m in zip(WEIGHTS, MEANS))
    return mean, sum(w * (s**2 + m**2) for w, m, s in zip(WEIGHTS, MEANS, STDS)) - mean**2


TRACES = []


def curved(params, noisy, level, time, condition):
    """A nonlinear pair that does not belong together, of position, time, level and condition; counts its traces."""
    TRACES.append(noisy.shape[0])
    shift = 0.0 if condition is None or condition.vector is None else condition.vector[:, None, None, :]
    noise = jnp.tanh(params["a"] * noisy + 1e-3 * time[:, None, None, None] - 0.3 + shift)
    return 0.9 * noisy - 0.5 * level.sigma * noise, noise
