"""The score, the gradient of the log density of noisy data, and the pair (clean, noise): one is the other by Tweedie's formula.

For the best denoiser D and noise estimate E at a level (alpha, sigma), in noisy's own units:
  score = (alpha D - noisy) / sigma^2 = -E / sigma   (arXiv 1907.05600, equation 5; arXiv 2006.11239, equation 11).
Denoising score matching weighted by sigma^2 (arXiv 1907.05600, equation 6) is the squared error of the prediction "score".
"""

import jax

from ldm_jax.core.types import Level
from ldm_jax.diffusion.prediction import over


def score_of(noise: jax.Array, level: Level) -> jax.Array:
    """-noise / sigma: [B, ...] from an estimate of the noise [B, ...], level [] or [B]."""
    return -noise / over(level.sigma, noise)
