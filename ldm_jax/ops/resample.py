"""Resampling by two, without parameters, and the sizes that can be halved."""

import jax
import jax.numpy as jnp

from ldm_jax.core.errors import UserError


def double(x: jax.Array) -> jax.Array:
    """Nearest-neighbour enlargement [B, h, w, C] -> [B, 2h, 2w, C]."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


def halve(x: jax.Array) -> jax.Array:
    """Means of 2 x 2 squares [B, 2h, 2w, C] -> [B, h, w, C]."""
    batch, height, width, channels = x.shape
    return jnp.mean(x.reshape(batch, height // 2, 2, width // 2, 2, channels), axis=(2, 4))


def expect_divisible(name: str, x: jax.Array, factor: int) -> None:
    """Checks that height and width of x [B, H, W, C] are multiples of a factor.

    Raises:
      UserError: with the nearest sizes that are.
    """
    height, width = x.shape[1:3]
    if height % factor or width % factor:
        low = [max(side // factor, 1) * factor for side in (height, width)]
        high = [-(-side // factor) * factor for side in (height, width)]
        raise UserError(f"{name}: {height}x{width} (height x width) is not divisible by {factor}; the nearest sizes that are: "
                        f"{low[0]}x{low[1]} and {high[0]}x{high[1]}")
