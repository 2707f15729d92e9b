"""CLIP's text transformer (Radford et al. 2021): of OpenAI, and of OpenCLIP (ViT-H, ViT-bigG)."""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_jax.core.errors import UserError
from ldm_jax.core.types import struct
from ldm_jax.nn.layers import Dense, LayerNorm, compute_dtype
from ldm_jax.nn.pre_norm import PreNormBlock

LAST_ID = 49407  # of CLIP's vocabulary of 49,408


@dataclasses.dataclass(frozen=True)
class ClipSpec:
    """What one CLIP text encoder is, and what of it is told.

    Fields:
      width, layers, heads: of the transformer; the feed-forward is 4 width wide.
      activation: "quick_gelu" (OpenAI) or "gelu" (OpenCLIP).
      projection: width of the pooled vector after its linear map; 0 for none: the pooled vector has `width` then.
      vocabulary, length: number of token ids, and of positions in a window.
      bos, eos, pad: ids that begin a text, end it, and fill the window. OpenAI's pad is eos, OpenCLIP's is 0. (Published
        configs that say eos_token_id=2 mean the last id of the vocabulary.)
      skip: the tokens told are the hidden states `skip` layers before the last; 1 is the penultimate layer.
      final_norm: whether these go through the final LayerNorm.

    Raises:
      UserError: numbers that do not fit each other.
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    projection: int = 0
    vocabulary: int = LAST_ID + 1
    length: int = 77
    bos: int = LAST_ID - 1
    eos: int = LAST_ID
    pad: int = LAST_ID
    skip: int = 0
    final_norm: bool = True

    def __post_init__(self):
        least = min(self.width, self.layers, self.heads, self.vocabulary)
        if least < 1 or self.width % self.heads or self.length < 3 or self.projection < 0:
            raise UserError(f"width={self.width}, layers={self.layers}, heads={self.heads}, vocabulary={self.vocabulary}, "
                            f"length={self.length}, projection={self.projection}: expected numbers above 0 (length above 2), a width "
                            "that heads divides")
        if not 0 <= self.skip < self.layers:
            raise UserError(f"skip={self.skip}: expected 0 (the last layer) to {self.layers - 1} (the first of {self.layers})")
        for name in ("bos", "eos", "pad"):
            if not 0 <= getattr(self, name) < self.vocabulary:
                raise UserError(f"{name}={getattr(self, name)}: expected an id from 0 to vocabulary - 1 = {self.vocabulary - 1}")

    def empty(self) -> tuple[int, ...]:
        """The ids of a window that says nothing."""
        return (self.bos, self.eos) + (self.pad,) * (self.length - 2)


@struct
class EncodedText:
    """tokens: the states [B, T, D] that the spec chooses; pooled: `last` at each text's end, projected [B, P];
    hidden: the states of every layer [B, T, D], the embeddings first; last: the last ones after the final LayerNorm.
    """

    tokens: jax.Array
    pooled: jax.Array
    hidden: tuple[jax.Array, ...]
    last: jax.Array


class ClipTextEncoder(nn.Module):
    """ids int [B, T] -> EncodedText, T up to `spec.length`. Causal, without a mask for padding, as it was trained.

    A text ends at its first eos. All layers are parameters, read or not: published files hold them, and under jit what
    nothing reads is not computed.
    """

    spec: ClipSpec
    dtype: str = "float32"

    @nn.compact
    def __call__(self, ids) -> EncodedText:
        spec = self.spec
        table = self.param("token_embedding", nn.initializers.normal(0.02), (spec.vocabulary, spec.width), jnp.float32)
        positions = self.param("position_embedding", nn.initializers.normal(0.01), (spec.length, spec.width), jnp.float32)
        hidden = [(table[ids] + positions[: ids.shape[1]]).astype(compute_dtype(self.dtype))]
        for k in range(spec.layers):
            block = PreNormBlock(spec.heads, spec.activation, causal=True, dtype=self.dtype, name=f"block_{k}")
            hidden.append(block(hidden[-1]))
        norm = LayerNorm(dtype=self.dtype, name="norm_out")
        last = norm(hidden[-1])
        chosen = hidden[-1 - spec.skip]
        tokens = norm(chosen) if spec.final_norm else chosen
        end = jnp.argmax(ids == spec.eos, axis=1)
        pooled = jnp.take_along_axis(last, end[:, None, None], axis=1)[:, 0]
        if spec.projection:
            pooled = Dense(spec.projection, bias=False, dtype=self.dtype, name="projection")(pooled)
        return EncodedText(tokens, pooled, tuple(hidden), last)
