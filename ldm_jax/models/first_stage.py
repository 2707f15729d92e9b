"""An autoencoder with its latent units: the only door through which the diffusion side sees images."""

import dataclasses
from typing import Any

import jax

from ldm_jax.models.units import LatentUnits, denormalise, normalise


@dataclasses.dataclass(frozen=True)
class FirstStage:
    """module: one of AUTOENCODERS; units: measured over its training data. Parameters are arguments."""

    module: Any
    units: LatentUnits

    def encode(self, params, image: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """[B, H, W, C] in [-1, 1] -> unit-variance latent [B, h, w, c]. KL: a draw with keys [B], the mean without."""
        return normalise(self.units, self.module.apply({"params": params}, image, keys, method="encode"))

    def decode(self, params, latent: jax.Array) -> jax.Array:
        """Unit-variance latent [B, h, w, c] -> image [B, H, W, C], not clamped."""
        return self.module.apply({"params": params}, denormalise(self.units, latent), method="decode")
