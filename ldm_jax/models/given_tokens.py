"""The conditioner of embeddings that are given as they are."""

from typing import ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.core.types import Condition


class Tokens(nn.Module):
    """Embeddings given as they are; the null is zeros. No parameters.

    Fields:
      width: of an embedding; count: how many the null has where no request says it.
      into: "tokens" (retrieval-augmented diffusion: CLIP embeddings of neighbours), or "vector", for one embedding of an image
        that is told beside the time (unCLIP).
    """

    width: int
    count: int = 1
    drop: float = 0.1
    into: Literal["tokens", "vector"] = "tokens"
    fields: ClassVar[tuple[str, ...]] = ("embeddings",)
    trained: ClassVar[bool] = False

    def __post_init__(self):
        if self.width < 1 or self.count < 1 or not 0.0 <= self.drop <= 1.0:
            raise UserError(f"width={self.width}, count={self.count}, drop={self.drop}: expected numbers above 0 and a rate from 0 to 1")
        if self.into not in ("tokens", "vector") or self.into == "vector" and self.count != 1:
            raise UserError(f"into={self.into!r}, count={self.count}: expected tokens, or vector with one embedding")
        super().__post_init__()

    @property
    def tells(self) -> tuple[str, ...]:
        return (self.into,)

    @property
    def vector_width(self) -> int:
        return self.width

    def _told(self, tokens) -> Condition:
        return Condition(tokens=tokens) if self.into == "tokens" else Condition(vector=tokens[:, 0])

    def __call__(self, fields: dict, drop=None, encode=None) -> Condition:
        """fields["embeddings"] [B, k, D]."""
        tokens = jnp.asarray(fields["embeddings"], jnp.float32)
        return self._told(tokens if drop is None else jnp.where(drop[:, None, None], 0.0, tokens))

    def null(self, count: int, fields: dict | None = None, encode=None) -> Condition:
        """Zeros, as many as `fields` have embeddings."""
        number = fields["embeddings"].shape[1] if fields and "embeddings" in fields else self.count
        return self._told(jnp.zeros((count, number, self.width)))

    def check(self, fields: dict) -> None:
        """Raises UserError: no embeddings, or not finite numbers [B, k, width]."""
        if "embeddings" not in fields:
            raise UserError("embeddings: this conditioner needs them; this data or this request has none")
        given = np.asarray(fields["embeddings"])
        wrong = given.ndim != 3 or given.shape[1] < 1 or given.shape[2] != self.width or self.into == "vector" and given.shape[1] != 1
        if wrong or not np.isfinite(given).all():
            raise UserError(f"embeddings: expected finite numbers [B, {'k' if self.into == 'tokens' else 1}, {self.width}], got "
                            f"{given.dtype} {list(given.shape)}")

    def example(self, count: int, image: tuple, latent: tuple) -> dict:
        """Zeros; image and latent: shapes that embeddings do not need."""
        return {"embeddings": jnp.zeros((count, self.count, self.width))}
