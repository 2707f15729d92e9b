"""Images and their captions as embeddings of one space: CLIP's two encoders side by side. arXiv 2103.00020, section 2.4."""

import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.core.choose import fill
from ldm_jax.core.errors import UserError
from ldm_jax.core.types import struct
from ldm_jax.models.image_encoder import ClipImageEncoder, VisionSpec
from ldm_jax.models.text_encoder import ClipSpec, ClipTextEncoder


@struct
class Pairs:
    """images, texts [B, D] float32, each of length 1; log_scale [] float32: the logarithm of what their cosines are multiplied by."""

    images: jax.Array
    texts: jax.Array
    log_scale: jax.Array


class Embedder(nn.Module):
    """Images [B, side, side, 3] in [-1, 1] and token ids int [B, L] or [B, 1, L] -> Pairs.

    Parameters: image_encoder/... and text_encoder/..., as of CLIP's two encoders, log_scale [], log(1 / temperature) at the start.

    Fields:
      image, text: what the encoders are; both project to one width.
      temperature: at the start, learned from there; CLIP's is 0.07.

    Raises:
      UserError: encoders of two widths, or without a projection; a temperature of 0 or below.
    """

    image: VisionSpec
    text: ClipSpec
    temperature: float = 0.07
    dtype: str = "float32"

    def __post_init__(self):
        if self.image.projection < 1 or self.image.projection != self.text.projection:
            raise UserError(f"projection: {self.image.projection} of images and {self.text.projection} of texts; expected one width "
                            "above 0")
        if not 0 < self.temperature < math.inf:
            raise UserError(f"temperature={self.temperature}: expected a number above 0; CLIP's is 0.07")
        super().__post_init__()

    @property
    def fields(self) -> tuple[str, ...]:
        """What it reads of a batch beside the image, as conditioners say it."""
        return tuple(self.specs)

    @property
    def specs(self) -> dict[str, ClipSpec]:
        """The text encoder's spec by the field of its ids."""
        return {"tokens": self.text}

    def check(self, fields: Mapping) -> None:
        """Raises UserError: no ids, or not whole numbers [B, 1, length] or [B, length]."""
        ids = np.asarray(fields.get("tokens", ()))
        if ids.dtype.kind not in "iu" or ids.ndim not in (2, 3) or ids.shape[-1] != self.text.length or ids.ndim == 3 and ids.shape[1] != 1:
            raise UserError(f"tokens: expected the ids of captions, whole numbers [B, {self.text.length}], got {ids.dtype} "
                            f"{list(ids.shape)}")

    @property
    def width(self) -> int:
        """Numbers in an embedding."""
        return self.image.projection

    def encoders(self) -> dict[str, nn.Module]:
        """The encoders by the name of their parameters."""
        return {"image_encoder": ClipImageEncoder(self.image, self.dtype, parent=None),
                "text_encoder": ClipTextEncoder(self.text, self.dtype, parent=None)}

    @nn.compact
    def __call__(self, image, ids) -> Pairs:
        start = nn.initializers.constant(-math.log(self.temperature))
        log_scale = self.param("log_scale", start, (), jnp.float32)
        ids = jnp.asarray(ids)
        texts = ClipTextEncoder(self.text, self.dtype, name="text_encoder")(ids.reshape(-1, ids.shape[-1]))
        images = ClipImageEncoder(self.image, self.dtype, name="image_encoder")(image)
        return Pairs(unit_length(images.pooled), unit_length(texts.pooled), log_scale)


def unit_length(x: jax.Array) -> jax.Array:
    """Vectors [..., D] as float32 of length 1."""
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def clip(image: Mapping, text: Mapping, projection: int, side: int, temperature: float = 0.07, dtype: str = "float32") -> Embedder:
    """The Embedder of two sections.

    Args:
      image: width, layers, heads, activation and patch of VisionSpec, for images of this `side`.
      text: of ClipSpec, without what only a conditioner reads (skip, final_norm); its ids are those of the data's tokenizer.
      projection: width of the embeddings.
    """
    for name, section in (("image", image), ("text", text)):
        if isinstance(section, Mapping) and "projection" in section:
            raise UserError(f"{name}.projection: both encoders have one, say it beside them: projection={section['projection']}")
    return Embedder(fill(VisionSpec, image, "image", projection=projection, side=side), fill(ClipSpec, text, "text", projection=projection),
                    temperature, dtype)


EMBEDDERS = {"clip": clip}
