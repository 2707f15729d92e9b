"""Noise schedules: how much of the data is left at each training time.

noisy = alpha * clean + sigma * noise; lambda = ln(alpha / sigma) is the log of the signal-to-noise ratio's root, and
sigma / alpha the noise as a deviation of undamped data. Every schedule is frozen and hashable (it may be a static
argument) and answers in its own time, which grows with the noise:
  first, last: its smallest and largest time;  steps: how many training times, 0 where time is real;
  origin: the time at which the same clock would show clean data, or None where that is infinitely far;
  level(t): traced, float32;  level_at(t), time_at(lambda), level_of(sigma / alpha): on the host, float64;
  pick(u): the training time of a fraction u in [0, 1);  nearest(lambda): the training time nearest to a lambda, both traced.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.core.types import Level


@dataclasses.dataclass(frozen=True)
class Discrete:
    """Levels at the integer times 0 .. T-1; sigma / alpha strictly increasing. alpha may be 0 at the last time only.

    Either alpha^2 + sigma^2 = 1 (variance preserving) or alpha = 1 (variance exploding). Between integers ln(sigma/alpha)
    is linear in the time, as in k-diffusion and diffusers; in the last interval before alpha = 0, alpha is.

    Raises:
      UserError: no time, a level out of range or of neither kind, or noise that does not grow.
    """

    alphas: tuple[float, ...]
    sigmas: tuple[float, ...]

    def __post_init__(self):
        alpha, sigma = np.asarray(self.alphas, np.float64), np.asarray(self.sigmas, np.float64)
        if alpha.ndim != 1 or not alpha.size or alpha.shape != sigma.shape:
            raise UserError(f"schedule: expected one level per training time, got {len(self.alphas)} alphas and {len(self.sigmas)} sigmas")
        wrong = np.flatnonzero(~(np.isfinite(alpha) & np.isfinite(sigma) & (alpha >= 0) & (sigma > 0)))
        if wrong.size or np.any(alpha[:-1] == 0):
            at = wrong[0] if wrong.size else np.flatnonzero(alpha[:-1] == 0)[0]
            raise UserError(f"schedule: the level at time {at} is ({alpha[at]:g}, {sigma[at]:g}); expected alpha above 0 "
                            "(0 at the last time only) and sigma above 0")
        if not (np.allclose(alpha, 1, rtol=0, atol=0) or np.allclose(alpha**2 + sigma**2, 1, rtol=0, atol=1e-12)):
            raise UserError("schedule: expected alpha^2 + sigma^2 = 1 at every time, or alpha = 1 at every time")
        still = np.flatnonzero(np.diff(self._ratios) <= 0)
        if still.size:
            raise UserError(f"schedule: sigma/alpha does not grow from time {still[0]} to {still[0] + 1}; noise must grow with time")

    @property
    def steps(self) -> int:
        """T, the number of training times."""
        return len(self.alphas)

    first, origin = 0.0, -1.0

    @property
    def last(self) -> float:
        """T - 1."""
        return self.steps - 1.0

    @property
    def damps(self) -> bool:
        """Whether alpha^2 + sigma^2 = 1 (variance preserving); otherwise alpha = 1 (variance exploding)."""
        return not all(alpha == 1 for alpha in self.alphas)

    @functools.cached_property
    def _ratios(self) -> np.ndarray:
        """sigma / alpha at times 0 .. T-1, infinite where alpha is 0."""
        with np.errstate(divide="ignore"):
            return np.asarray(self.sigmas, np.float64) / np.asarray(self.alphas, np.float64)

    def level(self, t: jax.Array) -> Level:
        """The float32 level of integer training times t, int [] or [B] in 0 .. T-1 (a later one gives NaN)."""
        take = functools.partial(jnp.take, indices=t, mode="fill", fill_value=jnp.nan)
        return Level(take(jnp.asarray(self.alphas, jnp.float32)), take(jnp.asarray(self.sigmas, jnp.float32)))

    def level_at(self, t) -> Level:
        """The float64 host level of real times t in [0, T-1], any shape; exact at integers.

        Raises:
          UserError: a time that is not finite or outside [0, T-1].
        """
        t = np.asarray(t, np.float64)
        _check_inside(t, self.first, self.last)
        below = np.minimum(np.floor(t).astype(int), max(self.steps - 2, 0))
        part, above = t - below, np.minimum(below + 1, self.steps - 1)
        alphas, sigmas, ratios = np.asarray(self.alphas), np.asarray(self.sigmas), self._ratios
        with np.errstate(invalid="ignore"):
            between = self.level_of(ratios[below] ** (1 - part) * ratios[above] ** part)
        ending = self.level_of(_ratio_of((1 - part) * alphas[below]))
        here = [part == 0, part == 1, np.isinf(ratios[above])]
        return Level(np.select(here, [alphas[below], alphas[above], ending.alpha], between.alpha),
                     np.select(here, [sigmas[below], sigmas[above], ending.sigma], between.sigma))

    def level_of(self, ratio) -> Level:
        """The float64 host level whose sigma / alpha is `ratio`, of the schedule's kind."""
        ratio = np.asarray(ratio, np.float64)
        return _damped(ratio) if self.damps else Level(np.ones_like(ratio), ratio)

    def lambdas(self) -> np.ndarray:
        """ln(alpha / sigma) at times 0 .. T-1, float64 [T], decreasing; -inf where alpha is 0."""
        return -np.log(self._ratios)

    def time_at(self, log_ratio) -> np.ndarray:
        """The real time whose lambda = ln(alpha / sigma) is `log_ratio`: the inverse of `level_at`, float64.

        Raises:
          UserError: a lambda that the schedule does not reach (beyond rounding).
        """
        log_ratio = np.asarray(log_ratio, np.float64)
        lambdas = self.lambdas()
        _check_reached(log_ratio, lambdas[-1], lambdas[0])
        times = np.arange(self.steps, dtype=np.float64)
        if np.isfinite(lambdas[-1]):
            return np.interp(-log_ratio, -lambdas, times)
        inner = np.interp(-log_ratio, -lambdas[:-1], times[:-1])
        part = 1 - self.level_of(np.exp(-log_ratio)).alpha / self.alphas[-2]
        return np.where(part > 0, times[-2] + part, inner)

    def pick(self, fraction: jax.Array) -> jax.Array:
        """The training time floor(fraction * T), int32, for fractions in [0, 1)."""
        return jnp.minimum((fraction * self.steps).astype(jnp.int32), self.steps - 1)

    def nearest(self, log_ratio: jax.Array) -> jax.Array:
        """The training time, int32, whose lambda is nearest."""
        lambdas = np.maximum(self.lambdas(), -1e4)
        middles = jnp.asarray((lambdas[1:] + lambdas[:-1]) / 2, jnp.float32)
        return jnp.searchsorted(-middles, -log_ratio).astype(jnp.int32)


def _ratio_of(alpha) -> np.ndarray:
    """sigma / alpha where alpha^2 + sigma^2 = 1; infinite for 0."""
    with np.errstate(divide="ignore"):
        return np.sqrt(np.maximum(1 - alpha**2, 0)) / alpha


def _damped(ratio) -> Level:
    """alpha^2 + sigma^2 = 1 with sigma / alpha = ratio; infinity gives (0, 1)."""
    alpha = 1 / np.hypot(1, ratio)
    with np.errstate(invalid="ignore"):
        return Level(alpha, np.where(np.isinf(ratio), 1.0, ratio * alpha))


def _check_inside(t, first: float, last: float) -> None:
    if not np.all((t >= first) & (t <= last)):
        raise UserError(f"time outside the schedule: expected {first:g} .. {last:g}, got {t.min():g} .. {t.max():g}")


def _check_reached(log_ratio, low: float, high: float) -> None:
    if not np.all((log_ratio >= low - 1e-9) & (log_ratio <= high + 1e-9)):
        raise UserError(f"ln(alpha/sigma) outside the schedule: expected {low:.4f} .. {high:.4f}, "
                        f"got {log_ratio.min():.4f} .. {log_ratio.max():.4f}")


def from_alpha_bars(alpha_bars) -> Discrete:
    """alpha = sqrt(alpha-bar), sigma = sqrt(1 - alpha-bar), at times 0 .. T-1.

    Raises:
      UserError: a value outside (0, 1) (the last may be 0), or one that does not decrease.
    """
    bars = np.asarray(alpha_bars, np.float64)
    wrong = np.flatnonzero(~((bars >= 0) & (bars < 1)))
    if wrong.size:
        raise UserError(f"schedule: alpha-bar at time {wrong[0]} is {bars[wrong[0]]:g}; expected a number between 0 and 1")
    rising = np.flatnonzero(np.diff(bars) >= 0)
    if rising.size:
        raise UserError(f"schedule: alpha-bar does not decrease from time {rising[0]} to {rising[0] + 1}; noise must grow with time")
    return Discrete(tuple(np.sqrt(bars).tolist()), tuple(np.sqrt(1 - bars).tolist()))


def from_betas(betas, zero_terminal: bool = False) -> Discrete:
    """alpha-bar_t = prod over s <= t of (1 - beta_s) (arXiv 2006.11239, equation 4), from any betas [T].

    zero_terminal: sqrt(alpha-bar) is shifted and scaled so that its last value is 0 and its first stays (arXiv
    2305.08891, algorithm 1): the last time is then pure noise, and a network that predicts noise cannot serve it.

    Raises:
      UserError: a beta that is not finite or not between 0 and 1.
    """
    betas = np.asarray(betas, np.float64)
    wrong = np.flatnonzero(~((betas > 0) & (betas < 1)))
    if wrong.size:
        raise UserError(f"schedule: beta at time {wrong[0]} is {betas[wrong[0]]:g}; expected a number between 0 and 1")
    bars = np.cumprod(1 - betas)
    if zero_terminal and len(bars) == 1:
        raise UserError("schedule: zero_terminal rescales from the first time to the last, and there is one time")
    if zero_terminal:
        roots = np.sqrt(bars)
        bars = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
    return from_alpha_bars(bars)


def scaled_linear(start: float = 0.00085, end: float = 0.012, steps: int = 1000, zero_terminal: bool = False) -> Discrete:
    """sqrt(beta) linear in time: what the LDM papers and CompVis call "linear".

    The defaults are Stable Diffusion's; the LDM paper's models have start 0.0015, end 0.0195.
    """
    _check_ends(start, end, steps)
    return from_betas(np.linspace(math.sqrt(start), math.sqrt(end), steps) ** 2, zero_terminal)


def linear(start: float = 1e-4, end: float = 0.02, steps: int = 1000, zero_terminal: bool = False) -> Discrete:
    """beta linear in time (arXiv 2006.11239, section 4); CompVis calls it "sqrt_linear"."""
    _check_ends(start, end, steps)
    return from_betas(np.linspace(start, end, steps), zero_terminal)


def sqrt(start: float = 1e-4, end: float = 0.02, steps: int = 1000, zero_terminal: bool = False) -> Discrete:
    """beta the square root of a line from `start` to `end`: CompVis' "sqrt"."""
    _check_ends(start, end, steps)
    return from_betas(np.sqrt(np.linspace(start, end, steps)), zero_terminal)


def cosine(s: float = 0.008, steps: int = 1000, zero_terminal: bool = False) -> Discrete:
    """alpha-bar = cos^2 of ((t/T + s) / (1 + s) pi/2), betas at most 0.999 (arXiv 2102.09672, equation 17)."""
    _check_steps(steps)
    if not (math.isfinite(s) and 0 <= s <= 1):
        raise UserError(f"cosine schedule: s={s}: expected a number from 0 to 1 (published: 0.008)")
    curve = np.cos((np.arange(steps + 1) / steps + s) / (1 + s) * np.pi / 2) ** 2
    return from_betas(np.minimum(1 - curve[1:] / curve[:-1], 0.999), zero_terminal)


def betas(values: tuple[float, ...], zero_terminal: bool = False) -> Discrete:
    """Any beta array, one value per training time."""
    return from_betas(values, zero_terminal)


def geometric(sigma_min: float = 0.01, sigma_max: float = 50.0, steps: int = 1000) -> Discrete:
    """alpha = 1, sigma from sigma_min at time 0 to sigma_max at T-1 in equal factors: the ladder of score matching with

    Langevin dynamics (arXiv 1907.05600, section 4; sigma_max near the largest distance of two data, arXiv 2006.09011,
    technique 1), and the variance-exploding process of arXiv 2011.13456, equation 31.
    """
    _check_steps(steps)
    if not (0 < sigma_min < sigma_max and math.isfinite(sigma_max)):
        raise UserError(f"geometric schedule: sigma_min={sigma_min}, sigma_max={sigma_max}: expected 0 < sigma_min < sigma_max")
    sigmas = np.geomspace(sigma_min, sigma_max, steps)
    return Discrete((1.0,) * steps, tuple(sigmas.tolist()))


def _check_steps(steps: int) -> None:
    if isinstance(steps, bool) or steps != int(steps) or steps < 1:
        raise UserError(f"schedule: steps={steps}: expected a whole number of training times, at least 1")


def _check_ends(start: float, end: float, steps: int) -> None:
    _check_steps(steps)
    if not (math.isfinite(start) and math.isfinite(end) and 0 < start <= end < 1):
        raise UserError(f"schedule: betas from start={start} to end={end}: expected 0 < start <= end < 1")
