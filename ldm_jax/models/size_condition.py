"""The numbers that SDXL is told of an image: its size before the crop, where it was cropped, its size, or how it was rated."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from ldm_jax.core.errors import UserError
from ldm_jax.core.types import Condition
from ldm_jax.models.condition import own_fields
from ldm_jax.models.spatial_condition import needed
from ldm_jax.ops.embedding import sinusoidal

NUMBERS = {6: ("height", "width", "top", "left", "height aimed at", "width aimed at"), 5: ("height", "width", "top", "left", "rating")}


class Sizes(nn.Module):
    """Each number as cosines and sines, one after the other: a vector of count * width features. No parameters.

    Fields:
      count: of numbers an image; the order of the published models is NUMBERS[count].
      width: features of a number.
      drop: rate of the null, zeros, in training; 0 is always told (as the published scripts sample).
    """

    count: int = 6
    width: int = 256
    drop: float = 0.0
    fields: ClassVar[tuple[str, ...]] = ("sizes",)
    tells: ClassVar[tuple[str, ...]] = ("vector",)

    def __post_init__(self):
        if self.count < 1 or self.width < 2 or self.width % 2 or not 0 <= self.drop <= 1:
            raise UserError(f"count={self.count}, width={self.width}, drop={self.drop}: expected 1 or more, an even width and a rate from "
                            "0 to 1")
        super().__post_init__()

    @property
    def vector_width(self) -> int:
        return self.count * self.width

    def __call__(self, fields: Mapping, drop=None, encode=None) -> Condition:
        """sizes [B, count]."""
        sizes = jnp.asarray(fields["sizes"])
        vector = sinusoidal(sizes.reshape(-1), self.width).reshape(sizes.shape[0], -1)
        return Condition(vector=vector if drop is None else jnp.where(drop[:, None], 0.0, vector))

    def null(self, count: int, fields: Mapping | None = None, encode=None) -> Condition:
        """Zeros; what the sizes say, if they are never dropped."""
        if self.drop:
            return Condition(vector=jnp.zeros((count, self.vector_width)))
        return self(own_fields(fields, self.fields), None, encode)

    def check(self, fields: Mapping) -> None:
        """Raises UserError: no sizes, or another number of them."""
        sizes = needed(fields, "sizes", "sizes")
        if sizes.ndim != 2 or sizes.shape[1] != self.count:
            names = ", ".join(NUMBERS.get(self.count, ("numbers",)))
            raise UserError(f"sizes: expected [N, {self.count}]: {names}; got {list(sizes.shape)}")

    def example(self, count: int, image: tuple, latent: tuple) -> dict:
        return {"sizes": jnp.zeros((count, self.count))}
