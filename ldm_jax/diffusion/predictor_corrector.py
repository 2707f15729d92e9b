"""Predictor-corrector sampling of the reverse-time equation (arXiv 2011.13456, algorithms 1 to 5).

One form for variance exploding and preserving paths. A step goes from (a, s) to (b, t); going back adds the variance
v = s^2 - (a t / b)^2, which is sigma_i^2 - sigma_(i-1)^2 where alpha is 1 and beta_i where alpha^2 + sigma^2 = 1.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.diffusion import ladder as ladders
from ldm_jax.diffusion.grids import path_of
from ldm_jax.diffusion.guidance import OFF
from ldm_jax.diffusion.langevin import langevin_step
from ldm_jax.diffusion.path import Path, fed
from ldm_jax.diffusion.prediction import INDEX
from ldm_jax.diffusion.score import score_of

Weights = tuple[float, float, float, float]
"""Of x, D, E and a fresh draw in the next x."""


def reverse_diffusion(level, reach) -> Weights:
    """(2 - a/b) x + v score + sqrt(v) z (appendix E: the forward step's discretisation, turned around)."""
    (a, s), (b, t) = level, reach
    v = s**2 - (a * t / b) ** 2
    return 2 - a / b, 0.0, -v / s, math.sqrt(v)


def ancestral(level, reach) -> Weights:
    """(b/a) (x + v score) + sqrt(v) (t/s) z (equation 4 and appendix F): the table sampler ddpm with its small variance.

    Where variance is preserved the paper takes sqrt(v), ddpm's large variance.
    """
    (a, s), (b, t) = level, reach
    q = a * t / (b * s)
    return q * t / s, b * (1 - q) * (1 + q), 0.0, t * math.sqrt((1 - q) * (1 + q))


def probability_flow(level, reach) -> Weights:
    """(2 - a/b) x + v/2 score, without noise (equation 13, discretised like the other)."""
    (a, s), (b, t) = level, reach
    v = s**2 - (a * t / b) ** 2
    return 2 - a / b, 0.0, -v / (2 * s), 0.0


PREDICTORS = {"reverse_diffusion": reverse_diffusion, "ancestral": ancestral, "probability_flow": probability_flow}


@dataclasses.dataclass(frozen=True, eq=False)
class PredictorCorrector:
    """At each level `corrections` Langevin steps, then the predictor's step to the next; the step to clean data is the denoiser's.

    The corrector's step (algorithms 4 and 5, x + epsilon score + sqrt(2 epsilon) z) is epsilon = 2 k (snr |z| / |score|)^2 with
    k = (a/b)^2 of the step that leaves the level: 1 where alpha is 1, 1 - beta_i where alpha^2 + sigma^2 = 1. The norms are
    each image's own, so that no image depends on its batch; the paper takes their means over the batch. On N(0, S^2) in many
    dimensions the corrector settles at the variance S^2 (1 + k snr^2). In few dimensions, or with a score near 0, single
    steps are long. The order, corrector before predictor, is that of the authors' code.

    Args:
      schedule, steps, grid, time_input: as in `samplers.table_for`; `steps` is the number of levels.
      corrections: 0 is the predictor alone.
      snr: the paper's r (published: 0.16 for variance exploding on CIFAR-10, 0.01 for preserving).

    Raises:
      UserError: numbers out of range; a path that starts in pure noise with a predictor other than ancestral.
    """

    schedule: Any
    steps: int
    grid: Any = "trailing"
    time_input: Any = INDEX
    predictor: Literal["reverse_diffusion", "ancestral", "probability_flow"] = "reverse_diffusion"
    corrections: int = 1
    snr: float = 0.16
    path: Path = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        ladders.check_whole(self.corrections, 0, "predictor_corrector: corrections")
        if not (math.isfinite(self.snr) and 0 < self.snr < 1):
            raise UserError(f"predictor_corrector: snr={self.snr}: expected a number between 0 and 1 (published: 0.01 to 0.2)")
        path = fed(path_of(self.schedule, self.steps, self.grid), self.schedule, self.time_input)
        if self.predictor != "ancestral" and path.alpha[0] == 0:
            raise UserError(f"predictor_corrector: the path starts in pure noise (alpha = 0), which {self.predictor} discretises badly; "
                            "choose predictor='ancestral'")
        object.__setattr__(self, "path", path)

    @property
    def evaluations(self) -> int:
        """Network evaluations of one sample."""
        return (len(self.path.time) - 1) * (self.corrections + 1)

    def sample(self, denoise: Callable, params, shape: tuple[int, ...], keys: jax.Array, condition=None, guidance=OFF,
               weights: tuple = ()) -> jax.Array:
        """x [B, *shape] float32 in the model's units; arguments as in `sample.sample`, weights one a guidance term."""
        ladders.check_keys(keys)
        ladder = ladders.pack(self.path, self._numbers(), weights, guidance)
        return _alternate(denoise, guidance, tuple(shape), params, ladder, np.int32(self.corrections), keys, condition)

    def _numbers(self) -> np.ndarray:
        """[n, 5]: the predictor's weights, and the corrector's 2 k snr^2."""
        predict, rows = PREDICTORS[self.predictor], []
        for _, level, reach in self.path.steps():
            weights = predict(level, reach) if reach[1] > 0 else (0.0, reach[0], 0.0, 0.0)
            rows.append((*weights, 2 * (level[0] / reach[0] * self.snr) ** 2))
        return np.asarray(rows)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _alternate(denoise, guidance, shape, params, ladder, corrections, keys, condition):
    guided = guidance(denoise)

    def at_level(i, x):
        level, time, weights = ladder.at(i, x.shape[0])
        w_x, w_clean, w_noise, w_draw, factor = ladder.numbers[i]

        def evaluate(k, x):
            clean, noise = guided(params, x, level, time, condition, weights)
            z = ladders.draw(keys, "predictor_corrector", shape, i, k)
            score = score_of(noise, level)
            corrected = langevin_step(x, score, 2 * factor * (_norm(z) / _norm(score)) ** 2, z)
            return jnp.where(k < corrections, corrected, w_x * x + w_clean * clean + w_noise * noise + w_draw * z)

        return jax.lax.fori_loop(0, corrections + 1, evaluate, x)

    return jax.lax.fori_loop(0, ladder.count, at_level, ladders.start(ladder, keys, shape))


def _norm(x: jax.Array) -> jax.Array:
    """The Euclidean norm of each image: [B, ...] -> [B]."""
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim))))
