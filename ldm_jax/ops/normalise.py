"""Normalisation with float32 statistics."""

import math

import jax
import jax.numpy as jnp


def groups_for(width: int) -> int:
    """The number of groups for a width: the largest divisor of 32 that divides it and leaves at least 4 channels a group.

    That is 32 for every published width (128 and above) and fewer for small networks: a group of one channel would
    take away what a block adds to it, and with it the time. Widths that are odd have one group.
    """
    groups = math.gcd(32, width)
    while groups > 1 and width // groups < 4:
        groups //= 2
    return groups


def group_norm(x: jax.Array, groups: int, eps: float) -> jax.Array:
    """Zero mean and unit (biased) variance over all positions and a group's channels (Wu and He 2018), in float32.

    Args:
      x: [B, ..., C]; groups are runs of C / groups neighbouring channels.
      groups: divides C.
      eps: added to the variance.

    Returns:
      [B, ..., C] float32, without scale and offset.
    """
    x = x.astype(jnp.float32)
    positions = tuple(range(1, x.ndim - 1))
    centred = x - _over_group(jnp.mean(x, axis=positions, keepdims=True), groups)
    variance = _over_group(jnp.mean(jnp.square(centred), axis=positions, keepdims=True), groups)
    return centred * jax.lax.rsqrt(variance + eps)


def _over_group(means: jax.Array, groups: int) -> jax.Array:
    """Means per channel [B, 1.., C] -> the group's mean at each of its channels [B, 1.., C]."""
    width = means.shape[-1] // groups
    grouped = jnp.mean(means.reshape(*means.shape[:-1], groups, width), axis=-1)
    return jnp.repeat(grouped, width, axis=-1)


def layer_norm(x: jax.Array, eps: float) -> jax.Array:
    """Zero mean and unit (biased) variance over the last axis, in float32; without scale and offset."""
    x = x.astype(jnp.float32)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)
