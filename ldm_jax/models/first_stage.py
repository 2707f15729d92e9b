"""An autoencoder with its latent units: the only door through which the diffusion side sees images."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from ldm_jax.models.bottleneck import MOMENTS
from ldm_jax.models.units import LatentUnits, denormalise, normalise


@dataclasses.dataclass(frozen=True)
class FirstStage:
    """module: one of AUTOENCODERS; units: measured over its training data. Parameters are arguments."""

    module: Any
    units: LatentUnits

    def encode(self, params, image: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """[B, H, W, C] in [-1, 1] -> unit-variance latent [B, h, w, c]. KL: a draw with keys [B], the mean without."""
        return normalise(self.units, self.module.apply({"params": params}, image, keys, method="encode"))

    def moments(self, params, image: jax.Array) -> dict[str, jax.Array]:
        """[B, H, W, C] in [-1, 1] -> {batch field: [B, h, w, c] float32}, raw, without units: what latents are drawn from."""
        return self.module.apply({"params": params}, image, method="moments")

    def draw(self, moments: Mapping, keys: jax.Array | None = None) -> jax.Array:
        """Moments -> unit-variance latents, those of `encode` for the same keys."""
        return normalise(self.units, self.module.apply({}, moments, keys, method="draw"))

    def latent(self, params, batch: Mapping, keys: jax.Array | None = None) -> jax.Array:
        """The unit-variance latents [B, h, w, c] of a batch: from the moments that it holds (a cache), else from its images."""
        moments = {name: batch[name] for name in MOMENTS if name in batch}
        return self.draw(moments, keys) if moments else self.encode(params, batch["image"], keys)

    def decode(self, params, latent: jax.Array) -> jax.Array:
        """Unit-variance latent [B, h, w, c] -> image [B, H, W, C], not clamped."""
        return self.module.apply({"params": params}, denormalise(self.units, latent), method="decode")
