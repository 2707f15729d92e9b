"""Attention blocks over the positions of a feature map, and over tokens."""

import flax.linen as nn
import jax.numpy as jnp

from ldm_jax.core.errors import UserError
from ldm_jax.nn.layers import Dense, GroupNorm
from ldm_jax.ops.attention import attention, join_heads, split_heads


class SpatialAttention(nn.Module):
    """The first stage's self-attention, one head, with residual: [B, h, w, C] -> the same. Positions are row-major."""

    dtype: str = "float32"
    groups: int = 0

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        h = GroupNorm(1e-6, self.dtype, self.groups, name="norm")(x).reshape(x.shape[0], -1, width)
        q, k, v = (split_heads(Dense(width, dtype=self.dtype, name=name)(h), 1) for name in ("q", "k", "v"))
        h = Dense(width, dtype=self.dtype, name="proj_out")(join_heads(attention(q, k, v)))
        return x + h.reshape(x.shape)


class PlainAttention(nn.Module):
    """The U-Net's self-attention (Dhariwal and Nichol 2021), with residual: [B, h, w, C] -> the same.

    `qkv` holds q, then k, then v, heads inside each. The head-major "legacy" order of published files is a permutation
    of its columns. `proj_out` starts at zero. identity: the attention map is the identity, so that each position gets its
    own value (arXiv 2403.17377, equation 14).
    """

    heads: int
    dtype: str = "float32"
    identity: bool = False
    groups: int = 0

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        h = GroupNorm(1e-5, self.dtype, self.groups, name="norm")(x).reshape(x.shape[0], -1, width)
        qkv = jnp.split(Dense(3 * width, dtype=self.dtype, name="qkv")(h), 3, axis=-1)
        h = qkv[2] if self.identity else join_heads(attention(*(split_heads(part, self.heads) for part in qkv)))
        h = Dense(width, zero=True, dtype=self.dtype, name="proj_out")(h)
        return x + h.reshape(x.shape)


class AttentionPool(nn.Module):
    """The attention pooling of Dhariwal and Nichol 2021 (their AttentionPool2d, after CLIP's): [B, h, w, C] -> [B, width].

    The mean of all positions is one more token, the first; after learned `positions` [h w + 1, C] are added, it alone asks.
    `qkv` is laid out as in PlainAttention; `proj_out` maps to `width`. The positions bind it to one h and w.

    Raises:
      UserError: another number of positions than it was made for.
    """

    width: int
    heads: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x):
        batch, h, w, channels = x.shape
        held = self.get_variable("params", "positions")
        if held is not None and held.shape[0] != h * w + 1:
            raise UserError(f"attention pooling was made for {held.shape[0] - 1} positions, got {h}x{w}; "
                            "a network for several sizes needs pooling='mean'")
        positions = self.param("positions", nn.initializers.normal(channels**-0.5), (h * w + 1, channels), jnp.float32)
        x = x.reshape(batch, h * w, channels)
        x = jnp.concatenate([jnp.mean(x, axis=1, keepdims=True), x], axis=1) + positions.astype(x.dtype)
        q, k, v = jnp.split(Dense(3 * channels, dtype=self.dtype, name="qkv")(x), 3, axis=-1)
        first = attention(*(split_heads(part, self.heads) for part in (q[:, :1], k, v)))
        return Dense(self.width, dtype=self.dtype, name="proj_out")(join_heads(first)[:, 0])


class TokenAttention(nn.Module):
    """Attention of x [B, T, D] to `context` [B, S, E], E any width; q, k, v without bias, `to_out` with. No residual.

    mask: bool [B, S], True where a context token counts, or None. identity: as in PlainAttention, for context = x alone.
    """

    heads: int
    dtype: str = "float32"
    identity: bool = False

    @nn.compact
    def __call__(self, x, context, mask=None):
        width = x.shape[-1]
        project = [Dense(width, bias=False, dtype=self.dtype, name=name) for name in ("to_q", "to_k", "to_v")]
        q, k, v = (split_heads(dense(y), self.heads) for dense, y in zip(project, (x, context, context)))
        h = v if self.identity else attention(q, k, v, mask)
        return Dense(width, dtype=self.dtype, name="to_out")(join_heads(h))
