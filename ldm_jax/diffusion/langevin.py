"""Annealed Langevin sampling: score matching with Langevin dynamics (NCSN / SMLD), arXiv 1907.05600 and 2006.09011."""

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
from ldm_jax.diffusion.path import fed
from ldm_jax.diffusion.prediction import INDEX, over
from ldm_jax.diffusion.score import score_of


def langevin_step(x: jax.Array, score: jax.Array, step: jax.Array, draw: jax.Array) -> jax.Array:
    """x + step/2 score + sqrt(step) draw (arXiv 1907.05600, equation 4); x, score, draw [B, ...], step [] or [B].

    Not corrected by acceptance: on N(0, S^2) it settles at the variance S^2 / (1 - step / (4 S^2)).
    """
    return x + over(step, x) / 2 * score + jnp.sqrt(over(step, x)) * draw


def excess(step, growth: float, inner: int):
    """Variance over sigma^2 that `inner` steps of step * sigma^2 leave of a start at growth * sigma, on data that are a point.

    arXiv 2006.09011, proposition 3, in this file's convention: (1 - e/2)^(2 n) (g^2 - V) + V with V = 1 / (1 - e/4).
    """
    settled = 1 / (1 - step / 4)
    return (1 - step / 2) ** (2 * inner) * (growth**2 - settled) + settled


def balanced_step(growth: float, inner: int) -> float:
    """The step whose `excess` is least, from 0.001 to 2 (arXiv 2006.09011, technique 4)."""
    tried = np.geomspace(1e-3, 2.0, 4000)
    return float(tried[np.argmin(excess(tried, growth, inner))])


@dataclasses.dataclass(frozen=True, eq=False)
class AnnealedLangevin:
    """At each level of a falling ladder `inner` Langevin steps, then to the data by the denoiser (arXiv 1907.05600, algorithm 1).

    The step at a level is `step` * sigma^2, which is the paper's epsilon sigma_i^2 / sigma_L^2 with epsilon = step * sigma_L^2
    (published: 2e-5 at sigma_L = 0.01, so 0.2, with inner = 100 at 10 levels; the second paper takes 5 at hundreds).
    "balanced" takes the second paper's technique 4 at each level. Between levels x is multiplied by the ratio of the alphas
    (1 where variance explodes): the published chain in the coordinate x / alpha. Starts from gain * noise as every sampler
    here, where the first paper takes uniform noise. The levels are the grid's, without its end; equal factors of sigma are
    `exponential`, or `linspace` of the schedule `geometric`.

    Args:
      schedule, steps, grid, time_input: as in `samplers.table_for`; `steps` is the number of levels.
      final: end with the denoiser at the lowest level, one evaluation more (arXiv 2006.09011, algorithm 1); otherwise
        x / alpha as it stands, with the lowest level's noise in it.

    Raises:
      UserError: numbers out of range, a ladder of one level without a step, a path that starts in pure noise.
    """

    schedule: Any
    steps: int
    grid: Any = "exponential"
    time_input: Any = INDEX
    inner: int = 5
    step: float | Literal["balanced"] = "balanced"
    final: bool = True
    path: Any = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        ladders.check_whole(self.inner, 1, "annealed_langevin: inner")
        if self.step != "balanced" and not (math.isfinite(self.step) and 0 < self.step < 4):
            raise UserError(f"annealed_langevin: step={self.step}: expected a number between 0 and 4, beyond which the chain grows without "
                            "bound (published: 0.2), or 'balanced'")
        path = fed(path_of(self.schedule, self.steps, self.grid), self.schedule, self.time_input)
        path.need_alpha("annealed_langevin")
        if self.step == "balanced" and len(path.time) == 2:
            raise UserError("annealed_langevin: one level has no level above it to balance its step by; give a step, as step=0.2")
        object.__setattr__(self, "path", path)

    @property
    def evaluations(self) -> int:
        """Network evaluations of one sample."""
        return (len(self.path.time) - 1) * self.inner + self.final

    def sample(self, denoise: Callable, params, shape: tuple[int, ...], keys: jax.Array, condition=None, guidance=OFF,
               weights: tuple = ()) -> jax.Array:
        """x [B, *shape] float32 in the model's units; arguments as in `sample.sample`, weights one a guidance term."""
        ladders.check_keys(keys)
        ladder = ladders.pack(self.path, self._numbers(), weights, guidance)
        counts = np.asarray([self.inner, self.final], np.int32)
        return _anneal(denoise, guidance, tuple(shape), params, ladder, counts, keys, condition)

    def _numbers(self) -> np.ndarray:
        """[n, 2]: each level's step over sigma^2, and what x is multiplied by when it is left."""
        ratios, alpha = self.path.ratios[:-1], self.path.alpha[:-1]
        steps = np.full(len(ratios), 0.0 if self.step == "balanced" else self.step)
        if self.step == "balanced":
            growth = np.maximum(ratios[:-1] / ratios[1:], 1)
            steps = np.asarray([balanced_step(g, self.inner) for g in [growth[0], *growth]])
        return np.stack([steps, np.append(alpha[1:], 1.0) / alpha], 1)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _anneal(denoise, guidance, shape, params, ladder, counts, keys, condition):
    guided, (inner, final) = guidance(denoise), counts

    def at_level(i, x):
        level, time, weights = ladder.at(i, x.shape[0])
        ends = (i == ladder.count - 1) & (final > 0)

        def evaluate(k, x):
            clean, noise = guided(params, x, level, time, condition, weights)
            z = ladders.draw(keys, "langevin", shape, i, k)
            moved = langevin_step(x, score_of(noise, level), ladder.numbers[i, 0] * level.sigma**2, z)
            return jnp.where(k < inner, moved, level.alpha * clean)

        return ladder.numbers[i, 1] * jax.lax.fori_loop(0, inner + ends, evaluate, x)

    return jax.lax.fori_loop(0, ladder.count, at_level, ladders.start(ladder, keys, shape))
