"""CLIP's vision transformer (Radford et al. 2021): images told to a network by their embeddings."""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.core.types import struct
from ldm_jax.nn.layers import Conv, Dense, LayerNorm
from ldm_jax.nn.pre_norm import PreNormBlock

MEAN = np.float32([0.48145466, 0.4578275, 0.40821073])  # of CLIP's training images in [0, 1]
STD = np.float32([0.26862954, 0.26130258, 0.27577711])


@dataclasses.dataclass(frozen=True)
class VisionSpec:
    """What one CLIP image encoder is; ViT-L/14 by default.

    Fields:
      width, layers, heads, activation, projection: as in ClipSpec.
      side: of its square images, a multiple of `patch`.

    Raises:
      UserError: numbers that do not fit each other.
    """

    width: int = 1024
    layers: int = 24
    heads: int = 16
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    projection: int = 768
    side: int = 224
    patch: int = 14

    def __post_init__(self):
        least = min(self.width, self.layers, self.heads, self.patch, self.side)
        if least < 1 or self.width % self.heads or self.projection < 0 or self.side % self.patch:
            raise UserError(f"width={self.width}, layers={self.layers}, heads={self.heads}, projection={self.projection}, "
                            f"side={self.side}, patch={self.patch}: expected numbers above 0, a width that heads divides and a side "
                            "that patch divides")


@struct
class EncodedImage:
    """tokens: the last layer's states [B, 1 + patches, D], the class token first, before the final LayerNorm; pooled: the
    class token after it, projected [B, P].
    """

    tokens: jax.Array
    pooled: jax.Array


class ClipImageEncoder(nn.Module):
    """Images [B, side, side, 3] in [-1, 1] -> EncodedImage.

    Raises:
      UserError: images of another size; `fitted` makes them fit.
    """

    spec: VisionSpec
    dtype: str = "float32"

    @nn.compact
    def __call__(self, image) -> EncodedImage:
        spec = self.spec
        if image.shape[1:] != (spec.side, spec.side, 3):
            raise UserError(f"image {list(image.shape)}: this image encoder reads [B, {spec.side}, {spec.side}, 3]; resize the images")
        x = (jnp.asarray(image, jnp.float32) / 2 + 0.5 - MEAN) / STD
        x = Conv(spec.width, spec.patch, spec.patch, ((0, 0), (0, 0)), bias=False, dtype=self.dtype, name="patch_embedding")(x)
        x = x.reshape(x.shape[0], -1, spec.width)
        first = self.param("class_embedding", nn.initializers.normal(spec.width**-0.5), (spec.width,), jnp.float32)
        places = self.param("position_embedding", nn.initializers.normal(0.02), (x.shape[1] + 1, spec.width), jnp.float32)
        first = jnp.broadcast_to(first.astype(x.dtype), (x.shape[0], 1, spec.width))
        x = jnp.concatenate([first, x], axis=1) + places.astype(x.dtype)
        x = LayerNorm(dtype=self.dtype, name="norm_in")(x)
        for k in range(spec.layers):
            x = PreNormBlock(spec.heads, spec.activation, dtype=self.dtype, name=f"block_{k}")(x)
        pooled = LayerNorm(dtype=self.dtype, name="norm_out")(x[:, 0])
        if spec.projection:
            pooled = Dense(spec.projection, bias=False, dtype=self.dtype, name="projection")(pooled)
        return EncodedImage(x, pooled)


def fitted(image: jax.Array, side: int) -> jax.Array:
    """Images [B, H, W, 3] in [-1, 1] -> [B, side, side, 3] as CLIP was trained on them: the short side resized to `side`, bicubic with
    antialiasing, then the middle; clipped to [-1, 1].
    """
    batch, height, width, channels = image.shape
    short = min(height, width)
    height, width = side * height // short, side * width // short
    image = jax.image.resize(image, (batch, height, width, channels), "bicubic", antialias=True)
    top, left = (height - side) // 2, (width - side) // 2
    return jnp.clip(image[:, top: top + side, left: left + side], -1, 1)
