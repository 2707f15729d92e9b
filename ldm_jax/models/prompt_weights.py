"""Prompt weights: how much each token of a text counts."""

import jax
import jax.numpy as jnp


def weighted(tokens: jax.Array, weights: jax.Array, length: int) -> jax.Array:
    """Tokens times their weights, then each window's mean restored (as the web UI of Automatic1111 does).

    Args:
      tokens: [B, n L, D]. weights: [B, n L]. length: L.

    Returns:
      [B, n L, D] of the tokens' dtype; a window whose weights are all 1 is unchanged bit for bit.
    """
    batch, _, width = tokens.shape
    plain = tokens.reshape(batch, -1, length, width)
    weights = jnp.asarray(weights, jnp.float32).reshape(batch, -1, length, 1)
    scaled = plain.astype(jnp.float32) * weights
    before, after = (jnp.mean(x.astype(jnp.float32), axis=(2, 3), keepdims=True) for x in (plain, scaled))
    scaled = scaled * jnp.where(after == 0, 1.0, before / after)
    same = jnp.all(weights == 1.0, axis=2, keepdims=True)
    return jnp.where(same, plain, scaled.astype(tokens.dtype)).reshape(tokens.shape)
