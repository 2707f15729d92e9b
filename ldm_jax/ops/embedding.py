"""Sinusoidal embeddings of numbers."""

import jax
import jax.numpy as jnp
import numpy as np


def sinusoidal(number: jax.Array, width: int, longest: float = 10_000.0) -> jax.Array:
    """[cos, sin] of a number at width/2 frequencies longest^(-i / (width/2)), i = 0 .. width/2 - 1.

    The order [cos, sin] and the division by half, not by half - 1, are those of the published U-Nets (Vaswani et al.
    2017, section 3.5, and DDPM's pixel network differ in both).

    Args:
      number: [B] float or int; fractions are allowed.
      width: even.

    Returns:
      [B, width] float32.
    """
    half = width // 2
    frequencies = jnp.asarray(np.exp(-np.log(longest) * np.arange(half) / half), jnp.float32)
    angles = number.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
