"""The transformer of LDM's U-Net (Rombach et al. 2022, section 3.3 and appendix E.2.1)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_jax.nn.attention import TokenAttention
from ldm_jax.nn.layers import Dense, GroupNorm, LayerNorm


class GatedFeedForward(nn.Module):
    """GEGLU (Shazeer 2020): [B, T, D] -> 8D, first half times exact-erf GELU of the second half, -> D."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        value, gate = jnp.split(Dense(8 * width, dtype=self.dtype, name="proj")(x), 2, axis=-1)
        return Dense(width, dtype=self.dtype, name="out")(value * jax.nn.gelu(gate, approximate=False))


class TransformerBlock(nn.Module):
    """Self-attention, attention to the condition's tokens, feed-forward; each after a LayerNorm (eps 1e-5), with residual.

    identity: the self-attention's map is the identity, see TokenAttention. cross_only: the first attention, too, is to the tokens.
    """

    heads: int
    dtype: str = "float32"
    identity: bool = False
    cross_only: bool = False

    @nn.compact
    def __call__(self, x, tokens, mask=None):
        normal = LayerNorm(dtype=self.dtype, name="norm1")(x)
        first = (tokens, mask) if self.cross_only else (normal,)
        x = x + TokenAttention(self.heads, self.dtype, self.identity, name="attn1")(normal, *first)
        normal = LayerNorm(dtype=self.dtype, name="norm2")(x)
        x = x + TokenAttention(self.heads, self.dtype, name="attn2")(normal, tokens, mask)
        return x + GatedFeedForward(self.dtype, name="ff")(LayerNorm(dtype=self.dtype, name="norm3")(x))


class SpatialTransformer(nn.Module):
    """`depth` transformer blocks over the positions of x [B, h, w, C], with an outer residual.

    tokens [B, T, D], mask bool [B, T] or None. The outer GroupNorm has eps 1e-6; `proj_out` starts at zero. `proj_in`
    and `proj_out` are linear maps of channels, which published files store as linear layers or as 1x1 convolutions.
    identity, cross_only: as in TransformerBlock.
    """

    heads: int
    depth: int = 1
    dtype: str = "float32"
    identity: bool = False
    cross_only: bool = False
    groups: int = 0

    @nn.compact
    def __call__(self, x, tokens, mask=None):
        width = x.shape[-1]
        h = GroupNorm(1e-6, self.dtype, self.groups, name="norm")(x).reshape(x.shape[0], -1, width)
        h = Dense(width, dtype=self.dtype, name="proj_in")(h)
        for k in range(self.depth):
            h = TransformerBlock(self.heads, self.dtype, self.identity, self.cross_only, name=f"block_{k}")(h, tokens, mask)
        h = Dense(width, zero=True, dtype=self.dtype, name="proj_out")(h)
        return x + h.reshape(x.shape)
