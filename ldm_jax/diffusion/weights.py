"""How much each level counts in training: weight(level, prediction) -> [B].

A weight multiplies the loss in the prediction's own space. A published weight w(SNR) on the squared error in clean is
therefore divided by the prediction's `gain`: SNR for noise, 1 for clean, SNR + 1 for v.
"""

import dataclasses
import math

import jax.numpy as jnp

from ldm_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Simple:
    """Weight 1 in the prediction's own space (arXiv 2006.11239, equation 14)."""

    def __call__(self, level, prediction):
        """Ones, of the level's shape."""
        return jnp.ones_like(level.alpha)


@dataclasses.dataclass(frozen=True)
class MinSnr:
    """min(SNR, gamma) on the squared error in clean (arXiv 2303.09556, section 3.4).

    In the prediction's own space: noise min(SNR, gamma) / SNR; clean min(SNR, gamma); v min(SNR, gamma) / (SNR + 1).
    With an L1 loss the same numbers are used, as the published code does.

    Raises:
      UserError: gamma not a finite number above 0.
    """

    gamma: float = 5.0

    def __post_init__(self):
        if not (math.isfinite(self.gamma) and self.gamma > 0):
            raise UserError(f"min_snr: gamma={self.gamma}: expected a number above 0 (published: 5)")

    def __call__(self, level, prediction):
        """Weights of the level's shape."""
        return jnp.minimum((level.alpha / level.sigma) ** 2, self.gamma) / prediction.gain(level)


WEIGHTS = {"simple": Simple, "min_snr": MinSnr}
