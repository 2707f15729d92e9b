"""The unit of a latent: an offset and a scale that the first stage owns, measured over many images.

The diffusion side sees (latent - mean) / std only. KL: mean and std per channel. VQ: mean per channel and one common std,
because a scale per channel would change which code is nearest.
"""

import dataclasses
from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np

from ldm_jax.core.errors import NumbersWentBad, UserError


@dataclasses.dataclass(frozen=True)
class LatentUnits:
    """mean and std per channel, tuples of c floats (a common std is written c times)."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self):
        if len(self.mean) != len(self.std) or not self.mean:
            raise UserError(f"latent units: {len(self.mean)} means and {len(self.std)} stds; expected one of each a channel")
        if not all(np.isfinite(self.mean)) or not all(np.isfinite(s) and s > 0 for s in self.std):
            raise UserError(f"latent units: mean={self.mean}, std={self.std}: expected finite means and stds above 0")

    def to_json(self) -> dict:
        return {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, record: dict) -> "LatentUnits":
        """Raises UserError: other keys than mean and std."""
        if set(record) != {"mean", "std"}:
            raise UserError(f"latent units: expected the keys mean and std, got {', '.join(sorted(record)) or 'none'}")
        return cls(tuple(map(float, record["mean"])), tuple(map(float, record["std"])))


def unit_of(channels: int) -> LatentUnits:
    """The unit that changes nothing: mean 0, std 1."""
    return LatentUnits((0.0,) * channels, (1.0,) * channels)


def normalise(units: LatentUnits, latent):
    """Raw latents [..., c] -> (latent - mean) / std, float32."""
    return (latent - jnp.asarray(units.mean, jnp.float32)) / jnp.asarray(units.std, jnp.float32)


def denormalise(units: LatentUnits, latent):
    """Latents in units [..., c] -> raw: latent * std + mean, float32."""
    return latent * jnp.asarray(units.std, jnp.float32) + jnp.asarray(units.mean, jnp.float32)


@dataclasses.dataclass(frozen=True)
class LatentSums:
    """Sums over latents, on the host in float64: how many positions, and per channel the sum and the sum of squares [c].

    Sums of several hosts are added by `+`.
    """

    count: float
    total: np.ndarray
    squares: np.ndarray

    def __add__(self, other: "LatentSums") -> "LatentSums":
        return LatentSums(self.count + other.count, self.total + other.total, self.squares + other.squares)


def latent_sums(latent, weight=None) -> LatentSums:
    """The sums of one batch [B, h, w, c]; weight [B], 1 or 0, leaves padding out."""
    latent = np.asarray(latent, np.float64)
    weight = np.ones(latent.shape[0]) if weight is None else np.asarray(weight, np.float64)
    return LatentSums(float(weight.sum() * latent.shape[1] * latent.shape[2]), np.einsum("b,bhwc->c", weight, latent),
                      np.einsum("b,bhwc,bhwc->c", weight, latent, latent))


def units_from(sums: LatentSums, common: bool) -> LatentUnits:
    """Mean and (biased) std per channel; `common` gives every channel the std of all centred elements.

    Raises:
      NumbersWentBad: latents that are not finite.
      UserError: no latents, or a channel that is constant and so has no unit.
    """
    if sums.count <= 0:
        raise UserError("latent units: no latents to measure")
    if not (np.isfinite(sums.total).all() and np.isfinite(sums.squares).all()):
        raise NumbersWentBad("latent units: the latents are not finite")
    mean = sums.total / sums.count
    square = sums.squares / sums.count
    variance = np.maximum(square - mean**2, 0.0)
    variance = np.full_like(variance, variance.mean()) if common else variance
    constant = np.flatnonzero(variance <= 1e-12 * square)
    if constant.size:
        raise UserError(f"latent units: channel {constant[0]} of the latent is constant over the data; "
                        f"use fewer latent channels or train longer")
    return LatentUnits(tuple(map(float, mean)), tuple(map(float, np.sqrt(variance))))


def measure_units(batches: Iterable, common: bool) -> LatentUnits:
    """The units of raw latents given in batches: arrays [B, h, w, c], or pairs (latents, weight [B])."""
    sums = None
    for batch in batches:
        one = latent_sums(*batch) if isinstance(batch, tuple) else latent_sums(batch)
        sums = one if sums is None else sums + one
    if sums is None:
        raise UserError("latent units: no latents to measure")
    return units_from(sums, common)
