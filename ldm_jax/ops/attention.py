"""Scaled dot-product attention over tokens."""

import jax
import jax.numpy as jnp


def attention(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None, causal: bool = False) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v (Vaswani et al. 2017, equation 1); logits and softmax in float32.

    Args:
      query: [B, T, n, d], n heads of width d.
      key, value: [B, S, n, d].
      mask: bool [B, S], True where a key counts. An example whose mask is all False attends to all keys alike.
      causal: a query sees the keys at its own place and before, no later ones.

    Returns:
      [B, T, n, d] in the dtype of `value`.
    """
    logits = jnp.einsum("btnd,bsnd->bnts", query, key, preferred_element_type=jnp.float32)
    logits = logits * (query.shape[-1] ** -0.5)
    if mask is not None:
        logits = jnp.where(mask[:, None, None, :], logits, jnp.finfo(jnp.float32).min)
    if causal:
        seen = jnp.tril(jnp.ones(logits.shape[-2:], bool))
        logits = jnp.where(seen, logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("bnts,bsnd->btnd", weights, value)


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """[B, T, n d] -> [B, T, n, d]: head i is the i-th run of d features."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def join_heads(x: jax.Array) -> jax.Array:
    """[B, T, n, d] -> [B, T, n d]."""
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])
