"""The text encoder of latent diffusion before CLIP (Rombach et al. 2022): a BERT-like transformer, trained with the U-Net.

It is x-transformers' Encoder; its inner attention is 8 heads of 64 at every width.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from ldm_jax.core.errors import UserError
from ldm_jax.nn.layers import Dense, LayerNorm, compute_dtype
from ldm_jax.nn.pre_norm import PreNormBlock


@dataclasses.dataclass(frozen=True)
class BertSpec:
    """What one encoder is.

    Fields:
      width, layers: of the transformer; heads of head_width: of its attention.
      vocabulary, length: number of token ids, and of positions.
      bos, eos, pad: as in ClipSpec; bos or eos -1 for sequences that have none (a layout's boxes).
      logits: holds the output head `to_logits` that the published files have and nothing reads.

    Raises:
      UserError: numbers out of range.
    """

    width: int = 1280
    layers: int = 32
    heads: int = 8
    head_width: int = 64
    vocabulary: int = 30522
    length: int = 77
    bos: int = 101
    eos: int = 102
    pad: int = 0
    logits: bool = True

    def __post_init__(self):
        if min(self.width, self.layers, self.heads, self.head_width, self.vocabulary) < 1 or self.length < 3:
            raise UserError(f"width={self.width}, layers={self.layers}, heads={self.heads}, head_width={self.head_width}, "
                            f"vocabulary={self.vocabulary}, length={self.length}: expected numbers above 0 (length above 2)")
        for name, least in (("bos", -1), ("eos", -1), ("pad", 0)):
            if not least <= getattr(self, name) < self.vocabulary:
                raise UserError(f"{name}={getattr(self, name)}: expected an id from {least} to vocabulary - 1 = {self.vocabulary - 1}")

    def empty(self) -> tuple[int, ...]:
        """The ids of a sequence that says nothing."""
        marks = tuple(mark for mark in (self.bos, self.eos) if mark >= 0)
        return marks + (self.pad,) * (self.length - len(marks))


class BertTextEncoder(nn.Module):
    """ids int [B, T] -> [B, T, D], T up to `spec.length`: no mask, so padding is attended to, and a final LayerNorm."""

    spec: BertSpec
    dtype: str = "float32"

    @nn.compact
    def __call__(self, ids):
        spec = self.spec
        table = self.param("token_embedding", nn.initializers.normal(0.02), (spec.vocabulary, spec.width), jnp.float32)
        positions = self.param("position_embedding", nn.initializers.normal(0.02), (spec.length, spec.width), jnp.float32)
        x = (table[ids] + positions[: ids.shape[1]]).astype(compute_dtype(self.dtype))
        for k in range(spec.layers):
            x = PreNormBlock(spec.heads, inner=spec.heads * spec.head_width, bias=False, dtype=self.dtype, name=f"block_{k}")(x)
        x = LayerNorm(dtype=self.dtype, name="norm_out")(x)
        if spec.logits and self.is_initializing():
            Dense(spec.vocabulary, dtype=self.dtype, name="to_logits")(x)
        return x
