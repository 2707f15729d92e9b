"""The first stage's encoder (Esser et al. 2021; Rombach et al. 2022, appendix G): images to packed latents.

Parameters: conv_in, down_{i}/{block_{j}, attn_{j}, downsample/conv}, mid/{block_1, attn_1, block_2}, norm_out, conv_out;
level 0 has the finest resolution.
"""

import dataclasses

import flax.linen as nn

from ldm_jax.core.errors import UserError
from ldm_jax.nn.attention import SpatialAttention
from ldm_jax.nn.layers import Conv, GroupNorm, compute_dtype
from ldm_jax.nn.resample import FIRST_STAGE_PADDING, Downsample
from ldm_jax.nn.residual import ResBlock


@dataclasses.dataclass(frozen=True)
class Trunk:
    """What encoder and decoder share. Level i has width * multipliers[i] channels and 1 / 2^i of the image's side.

    blocks: residual blocks of an encoder level (the decoder has one more); attention: for each level, whether its
    blocks are followed by attention; middle_attention: the same for the middle; groups: of every norm.

    Raises:
      UserError: a number below 1, or an unknown dtype.
    """

    width: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[bool, ...]
    middle_attention: bool = True
    dropout: float = 0.0
    dtype: str = "float32"
    groups: int = 0

    def __post_init__(self):
        compute_dtype(self.dtype)
        if self.width < 1 or self.blocks < 1 or not self.multipliers or min(self.multipliers) < 1:
            raise UserError(f"width={self.width}, multipliers={self.multipliers}, blocks={self.blocks}: expected numbers of 1 and above")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"dropout={self.dropout}: expected a rate from 0 to below 1")


class Middle(nn.Module):
    """Block, attention, block at the coarsest resolution."""

    trunk: Trunk

    @nn.compact
    def __call__(self, h, train: bool):
        trunk, width = self.trunk, h.shape[-1]
        h = ResBlock(width, trunk.dropout, trunk.dtype, trunk.groups, name="block_1")(h, train)
        if trunk.middle_attention:
            h = SpatialAttention(trunk.dtype, trunk.groups, name="attn_1")(h)
        return ResBlock(width, trunk.dropout, trunk.dtype, trunk.groups, name="block_2")(h, train)


class EncoderLevel(nn.Module):
    """The blocks of one level and, but for the last level, the halving after it."""

    trunk: Trunk
    level: int

    @nn.compact
    def __call__(self, h, train: bool):
        trunk = self.trunk
        for j in range(trunk.blocks):
            width = trunk.width * trunk.multipliers[self.level]
            h = ResBlock(width, trunk.dropout, trunk.dtype, trunk.groups, name=f"block_{j}")(h, train)
            if trunk.attention[self.level]:
                h = SpatialAttention(trunk.dtype, trunk.groups, name=f"attn_{j}")(h)
        if self.level < len(trunk.multipliers) - 1:
            h = Downsample(FIRST_STAGE_PADDING, trunk.dtype, name="downsample")(h)
        return h


class Encoder(nn.Module):
    """Images [B, H, W, C] -> [B, H/f, W/f, out_channels], f = 2^(levels - 1), in the trunk's dtype."""

    trunk: Trunk
    out_channels: int

    @nn.compact
    def __call__(self, image, train: bool = False):
        trunk = self.trunk
        h = Conv(trunk.width, dtype=trunk.dtype, name="conv_in")(image)
        for i in range(len(trunk.multipliers)):
            h = EncoderLevel(trunk, i, name=f"down_{i}")(h, train)
        h = Middle(trunk, name="mid")(h, train)
        h = nn.silu(GroupNorm(1e-6, trunk.dtype, trunk.groups, name="norm_out")(h))
        return Conv(self.out_channels, dtype=trunk.dtype, name="conv_out")(h)
