"""Limits on the estimate of clean data that is known to lie in [-limit, limit]: pixels, not a first stage's latents.

A limit wraps a denoiser, guided or not, and is part of the compiled program. It is the last thing done to an estimate,
after guidance, which is what drives it out of range. `noise`: "recomputed" from the limited clean, so that noisy =
alpha clean + sigma noise still holds (the peers' multistep solvers and DDPM), or "raw", as the network said it (diffusers'
DDIM without use_clipped_model_output).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp

from ldm_jax.core.errors import UserError
from ldm_jax.core.types import Level
from ldm_jax.diffusion.prediction import over

Noise = Literal["recomputed", "raw"]


@dataclasses.dataclass(frozen=True)
class Unlimited:
    """The estimate as it is."""

    def __call__(self, denoise: Callable) -> Callable:
        """denoise itself."""
        return denoise


@dataclasses.dataclass(frozen=True)
class Clip:
    """clean clipped to [-limit, limit].

    Raises:
      UserError: a limit not above 0.
    """

    limit: float = 1.0
    noise: Noise = "recomputed"

    def __post_init__(self):
        if not (math.isfinite(self.limit) and self.limit > 0):
            raise UserError(f"threshold 'clip': limit={self.limit}: expected a number above 0 (images lie in [-1, 1])")

    def __call__(self, denoise: Callable) -> Callable:
        """denoise with its clean clipped; takes what denoise takes."""
        return _limited(denoise, lambda clean: jnp.clip(clean, -self.limit, self.limit), self.noise)


@dataclasses.dataclass(frozen=True)
class Dynamic:
    """Dynamic thresholding (arXiv 2205.11487, section 2.3): per image s = the `share` quantile of |clean|, at least `limit` and

    at most `most`; clean is clipped to [-s, s] and divided by s / limit. diffusers' sample_max_value is `most`.

    Raises:
      UserError: a share outside (0, 1], a limit not above 0, or `most` below the limit.
    """

    share: float = 0.995
    limit: float = 1.0
    most: float | None = None
    noise: Noise = "recomputed"

    def __post_init__(self):
        if not (0 < self.share <= 1 and math.isfinite(self.limit) and self.limit > 0):
            raise UserError(f"threshold 'dynamic': share={self.share}, limit={self.limit}: expected a share in (0, 1] and a limit above 0")
        if self.most is not None and not self.most >= self.limit:
            raise UserError(f"threshold 'dynamic': most={self.most}: expected at least limit={self.limit}")

    def __call__(self, denoise: Callable) -> Callable:
        """denoise with its clean limited; takes what denoise takes."""
        return _limited(denoise, self._bounded, self.noise)

    def _bounded(self, clean):
        size = jnp.abs(clean)
        s = jnp.quantile(size.reshape(size.shape[0], -1), self.share, axis=1)
        s = over(jnp.clip(s, self.limit, self.most), clean)
        return jnp.clip(clean, -s, s) / s * self.limit


def _limited(denoise: Callable, bounded: Callable, noise_is: str) -> Callable:
    def limited(params, noisy, level: Level, *told):
        clean, noise = denoise(params, noisy, level, *told)
        clean = bounded(clean)
        if noise_is == "recomputed":
            noise = (noisy - over(level.alpha, noisy) * clean) / over(level.sigma, noisy)
        return clean, noise

    return limited


THRESHOLDS = {"none": Unlimited, "clip": Clip, "dynamic": Dynamic}
