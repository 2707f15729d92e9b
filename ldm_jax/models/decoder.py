"""The first stage's decoder: latents to images.

Parameters: conv_in, mid/{block_1, attn_1, block_2}, up_{i}/{block_{j}, attn_{j}, upsample/conv}, norm_out, conv_out;
level 0 has the finest resolution, as in the encoder.
"""

import flax.linen as nn
import jax.numpy as jnp

from ldm_jax.models.encoder import Middle, Trunk
from ldm_jax.nn.attention import SpatialAttention
from ldm_jax.nn.layers import Conv, GroupNorm
from ldm_jax.nn.resample import Upsample
from ldm_jax.nn.residual import ResBlock


class DecoderLevel(nn.Module):
    """One block more than the encoder's level has and, but for level 0, the doubling after them."""

    trunk: Trunk
    level: int

    @nn.compact
    def __call__(self, h, train: bool):
        trunk = self.trunk
        for j in range(trunk.blocks + 1):
            width = trunk.width * trunk.multipliers[self.level]
            h = ResBlock(width, trunk.dropout, trunk.dtype, trunk.groups, name=f"block_{j}")(h, train)
            if trunk.attention[self.level]:
                h = SpatialAttention(trunk.dtype, trunk.groups, name=f"attn_{j}")(h)
        return Upsample(trunk.dtype, name="upsample")(h) if self.level > 0 else h


class Decoder(nn.Module):
    """Latents [B, h, w, c] -> images [B, f h, f w, out_channels] float32, not clamped. `last` of `features` is the whole."""

    trunk: Trunk
    out_channels: int

    def setup(self):
        trunk = self.trunk
        self.conv_in = Conv(trunk.width * trunk.multipliers[-1], dtype=trunk.dtype)
        self.mid = Middle(trunk)
        self.up = [DecoderLevel(trunk, i) for i in range(len(trunk.multipliers))]
        self.norm_out = GroupNorm(1e-6, trunk.dtype, trunk.groups)
        self.conv_out = Conv(self.out_channels, dtype=trunk.dtype)

    def features(self, latent, train: bool = False):
        """All but the last convolution: [B, h, w, c] -> [B, f h, f w, D] in the trunk's dtype."""
        h = self.mid(self.conv_in(latent), train)
        for level in reversed(self.up):
            h = level(h, train)
        return nn.silu(self.norm_out(h))

    def last(self, features):
        """The last convolution: [B, H, W, D] -> [B, H, W, out_channels] float32."""
        return self.conv_out(features).astype(jnp.float32)

    def __call__(self, latent, train: bool = False):
        return self.last(self.features(latent, train))
