"""The transformer block of CLIP and of LDM's text encoder: each part after its LayerNorm, with residual."""

import flax.linen as nn
import jax

from ldm_jax.core.errors import UserError
from ldm_jax.nn.layers import Dense, LayerNorm
from ldm_jax.ops.attention import attention, join_heads, split_heads

ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI's CLIP
}


class PreNormBlock(nn.Module):
    """Self-attention, then two linear maps with an activation between: [B, T, D] -> the same.

    `qkv` holds q, then k, then v, heads inside each; `inner` is their common width, 0 for D. The feed-forward is 4 D wide.

    Fields:
      heads: divides `inner`.
      activation: a name of ACTIVATIONS.
      inner: of q, k and v each.
      bias: whether `qkv` has one; `to_out` always has.
      causal: a position sees itself and what is before it.

    Raises:
      UserError: an unknown activation.
    """

    heads: int
    activation: str = "gelu"
    inner: int = 0
    bias: bool = True
    causal: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x):
        if self.activation not in ACTIVATIONS:
            raise UserError(f"activation={self.activation!r}: expected one of {', '.join(ACTIVATIONS)}")
        width, inner = x.shape[-1], self.inner or x.shape[-1]
        qkv = Dense(3 * inner, bias=self.bias, dtype=self.dtype, name="qkv")(LayerNorm(dtype=self.dtype, name="norm1")(x))
        q, k, v = (split_heads(qkv[..., i * inner: (i + 1) * inner], self.heads) for i in range(3))
        x = x + Dense(width, dtype=self.dtype, name="to_out")(join_heads(attention(q, k, v, causal=self.causal)))
        h = Dense(4 * width, dtype=self.dtype, name="fc1")(LayerNorm(dtype=self.dtype, name="norm2")(x))
        return x + Dense(width, dtype=self.dtype, name="fc2")(ACTIVATIONS[self.activation](h))
