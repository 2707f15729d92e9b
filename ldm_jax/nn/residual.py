"""Residual blocks: the first stage's, and the U-Net's with time."""

import flax.linen as nn
import jax.numpy as jnp

from ldm_jax.nn.layers import Conv, Dense, GroupNorm
from ldm_jax.ops.resample import double, halve

RESAMPLINGS = {"none": lambda x: x, "up": double, "down": halve}


class ResBlock(nn.Module):
    """The first stage's block: x + conv(silu(norm(conv(silu(norm(x)))))), [B, H, W, C] -> [B, H, W, width]; norms' eps 1e-6.

    A width other than C maps the skip by `nin_shortcut`, 1x1.
    """

    width: int
    dropout: float = 0.0
    dtype: str = "float32"
    groups: int = 0

    @nn.compact
    def __call__(self, x, train: bool = False):
        h = nn.silu(GroupNorm(1e-6, self.dtype, self.groups, name="norm1")(x))
        h = Conv(self.width, dtype=self.dtype, name="conv1")(h)
        h = nn.silu(GroupNorm(1e-6, self.dtype, self.groups, name="norm2")(h))
        h = nn.Dropout(self.dropout)(h, deterministic=not train)
        h = Conv(self.width, dtype=self.dtype, name="conv2")(h)
        if x.shape[-1] != self.width:
            x = Dense(self.width, dtype=self.dtype, name="nin_shortcut")(x)
        return x + h


class TimeResBlock(nn.Module):
    """The U-Net's block (Dhariwal and Nichol 2021, appendix A): the time embedding enters between its two convolutions.

    Norms' eps 1e-5; the last convolution starts at zero. `resample` "up" or "down" doubles or halves, without
    parameters, both the branch (before its first convolution) and the skip. With `scale_shift` the time gives a scale
    and an offset of the second norm, norm(h) (1 + scale) + shift, scale first; without it the time is added before it.
    """

    width: int
    resample: str = "none"
    scale_shift: bool = False
    dropout: float = 0.0
    dtype: str = "float32"
    groups: int = 0

    @nn.compact
    def __call__(self, x, time, train: bool = False):
        """x [B, h, w, C], time [B, D] float32 -> [B, h', w', width]."""
        resample = RESAMPLINGS[self.resample]
        h = resample(nn.silu(GroupNorm(1e-5, self.dtype, self.groups, name="norm1")(x)))
        h = Conv(self.width, dtype=self.dtype, name="conv1")(h)
        told = Dense(2 * self.width if self.scale_shift else self.width, name="time")(nn.silu(time))
        told = told.astype(h.dtype)[:, None, None, :]
        norm = GroupNorm(1e-5, self.dtype, self.groups, name="norm2")
        if self.scale_shift:
            scale, shift = jnp.split(told, 2, axis=-1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + told)
        h = nn.Dropout(self.dropout)(nn.silu(h), deterministic=not train)
        h = Conv(self.width, zero=True, dtype=self.dtype, name="conv2")(h)
        x = resample(x)
        if x.shape[-1] != self.width:
            x = Dense(self.width, dtype=self.dtype, name="skip")(x)
        return x + h
