"""Resampling by two and to any size, without parameters, and the sizes that can be halved."""

import jax
import jax.numpy as jnp
import numpy as np

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


def bicubic(x: jax.Array, height: int, width: int) -> jax.Array:
    """Cubic interpolation [B, H, W, C] -> [B, height, width, C] between the centres of pixels, no low pass before it.

    Cubic convolution with a = -0.75, edges repeated: torch's interpolate(mode="bicubic", align_corners=False).
    """
    down, across = (jnp.asarray(_cubic_weights(old, new), x.dtype) for old, new in zip(x.shape[1:3], (height, width)))
    high = jax.lax.Precision.HIGHEST
    return jnp.einsum("hH,wW,bHWc->bhwc", down, across, x, precision=high)


def _cubic_weights(old: int, new: int) -> np.ndarray:
    """float64 [new, old]: how much of each old pixel is in each new one."""
    a, weights = -0.75, np.zeros((new, old))
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centre).astype(int)
    for tap in range(-1, 3):
        t = np.abs(centre - first - tap)
        near, far = ((a + 2) * t - (a + 3)) * t * t + 1, a * (((t - 5) * t + 8) * t - 4)
        np.add.at(weights, (np.arange(new), np.clip(first + tap, 0, old - 1)), np.where(t <= 1, near, far))
    return weights


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
