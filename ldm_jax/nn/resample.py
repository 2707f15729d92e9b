"""Learned halving and doubling of feature maps [B, h, w, C]."""

import flax.linen as nn

from ldm_jax.nn.layers import Conv
from ldm_jax.ops.resample import double

# First stages pad the right and the bottom only; U-Nets pad every side. For even sizes XLA's SAME is the former.
FIRST_STAGE_PADDING = ((0, 1), (0, 1))
UNET_PADDING = ((1, 1), (1, 1))


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2, width kept: [B, 2h, 2w, C] -> [B, h, w, C]."""

    padding: tuple[tuple[int, int], tuple[int, int]]
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x):
        return Conv(x.shape[-1], stride=2, padding=self.padding, dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution, width kept: [B, h, w, C] -> [B, 2h, 2w, C]."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x):
        return Conv(x.shape[-1], dtype=self.dtype, name="conv")(double(x))
