"""Noise schedules: how much of the data is left at each training time.

A schedule is the float64 table of alpha-bar at the integer times 0 .. T-1, made and kept on the host. alpha =
sqrt(alpha-bar), sigma = sqrt(1 - alpha-bar), so that alpha^2 + sigma^2 = 1; lambda = ln(alpha / sigma) is the log of
the signal-to-noise ratio's root. Between integer times log alpha-bar is linear in the time, as in the CompVis wrapper
of DPM-Solver (arXiv 2206.00927, "discrete" schedule).
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
class Schedule:
    """Alpha-bar at times 0 .. T-1, strictly decreasing, in (0, 1). Frozen and hashable: it may be a static argument.

    Raises:
      UserError: fewer than one time, a value that is not finite or outside (0, 1), or one that does not decrease.
    """

    alpha_bars: tuple[float, ...]

    def __post_init__(self):
        values = np.asarray(self.alpha_bars, np.float64)
        if values.ndim != 1 or not values.size:
            raise UserError(f"schedule: expected one alpha-bar per training time, got shape {list(values.shape)}")
        wrong = np.flatnonzero(~((values > 0) & (values < 1)))
        if wrong.size:
            raise UserError(f"schedule: alpha-bar at time {wrong[0]} is {values[wrong[0]]:g}; expected a number between 0 and 1")
        rising = np.flatnonzero(np.diff(values) >= 0)
        if rising.size:
            raise UserError(f"schedule: alpha-bar does not decrease from time {rising[0]} to {rising[0] + 1}; noise must grow with time")

    @property
    def steps(self) -> int:
        """T, the number of training times."""
        return len(self.alpha_bars)

    @functools.cached_property
    def _log_alpha_bars(self) -> np.ndarray:
        return np.log(np.asarray(self.alpha_bars, np.float64))

    def alphas(self) -> np.ndarray:
        """alpha at times 0 .. T-1, float64 [T] on the host."""
        return np.sqrt(np.asarray(self.alpha_bars, np.float64))

    def sigmas(self) -> np.ndarray:
        """sigma at times 0 .. T-1, float64 [T] on the host."""
        return np.sqrt(1 - np.asarray(self.alpha_bars, np.float64))

    def level(self, t: jax.Array) -> Level:
        """The float32 level of integer training times t, int [] or [B] in 0 .. T-1 (a later one gives NaN)."""
        take = functools.partial(jnp.take, indices=t, mode="fill", fill_value=jnp.nan)
        return Level(take(jnp.asarray(self.alphas(), jnp.float32)), take(jnp.asarray(self.sigmas(), jnp.float32)))

    def level_at(self, t) -> Level:
        """The float64 host level of real times t in [0, T-1], any shape; exact at integers, log-linear between.

        Raises:
          UserError: a time that is not finite or outside [0, T-1].
        """
        t = np.asarray(t, np.float64)
        if not np.all((t >= 0) & (t <= self.steps - 1)):
            raise UserError(f"time outside the schedule: expected 0 .. {self.steps - 1}, got {t.min():g} .. {t.max():g}")
        log_alpha_bar = np.interp(t, np.arange(self.steps), self._log_alpha_bars)
        return Level(np.exp(log_alpha_bar / 2), np.sqrt(-np.expm1(log_alpha_bar)))

    def lambdas(self) -> np.ndarray:
        """ln(alpha / sigma) at times 0 .. T-1, float64 [T], decreasing."""
        return np.log(self.alphas() / self.sigmas())

    def time_at(self, log_ratio) -> np.ndarray:
        """The real time whose lambda = ln(alpha / sigma) is `log_ratio`: the inverse of `level_at`, float64.

        Raises:
          UserError: a lambda that the schedule does not reach (beyond rounding).
        """
        log_ratio = np.asarray(log_ratio, np.float64)
        high, low = self.lambdas()[[0, -1]]
        if not np.all((log_ratio >= low - 1e-9) & (log_ratio <= high + 1e-9)):
            raise UserError(f"ln(alpha/sigma) outside the schedule: expected {low:.4f} .. {high:.4f}, "
                            f"got {log_ratio.min():.4f} .. {log_ratio.max():.4f}")
        log_alpha_bar = -np.logaddexp(0, -2 * log_ratio)
        return np.interp(-log_alpha_bar, -self._log_alpha_bars, np.arange(self.steps, dtype=np.float64))


def from_betas(betas) -> Schedule:
    """alpha-bar_t = prod over s <= t of (1 - beta_s) (arXiv 2006.11239, equation 4), from any betas [T].

    Raises:
      UserError: a beta that is not finite or not between 0 and 1.
    """
    betas = np.asarray(betas, np.float64)
    wrong = np.flatnonzero(~((betas > 0) & (betas < 1)))
    if wrong.size:
        raise UserError(f"schedule: beta at time {wrong[0]} is {betas[wrong[0]]:g}; expected a number between 0 and 1")
    return Schedule(tuple(np.cumprod(1 - betas).tolist()))


def scaled_linear(start: float = 0.00085, end: float = 0.012, steps: int = 1000) -> Schedule:
    """sqrt(beta) linear in time: what the LDM papers and CompVis call "linear".

    The defaults are Stable Diffusion's; the LDM paper's models have start 0.0015, end 0.0195.
    """
    _check_ends(start, end, steps)
    return from_betas(np.linspace(math.sqrt(start), math.sqrt(end), steps) ** 2)


def linear(start: float = 1e-4, end: float = 0.02, steps: int = 1000) -> Schedule:
    """beta linear in time (arXiv 2006.11239, section 4); CompVis calls it "sqrt_linear"."""
    _check_ends(start, end, steps)
    return from_betas(np.linspace(start, end, steps))


def cosine(s: float = 0.008, steps: int = 1000) -> Schedule:
    """alpha-bar = cos^2 of ((t/T + s) / (1 + s) pi/2), betas at most 0.999 (arXiv 2102.09672, equation 17)."""
    _check_steps(steps)
    if not (math.isfinite(s) and 0 <= s <= 1):
        raise UserError(f"cosine schedule: s={s}: expected a number from 0 to 1 (published: 0.008)")
    curve = np.cos((np.arange(steps + 1) / steps + s) / (1 + s) * np.pi / 2) ** 2
    return from_betas(np.minimum(1 - curve[1:] / curve[:-1], 0.999))


def _check_steps(steps: int) -> None:
    if isinstance(steps, bool) or steps != int(steps) or steps < 1:
        raise UserError(f"schedule: steps={steps}: expected a whole number of training times, at least 1")


def _check_ends(start: float, end: float, steps: int) -> None:
    _check_steps(steps)
    if not (math.isfinite(start) and math.isfinite(end) and 0 < start <= end < 1):
        raise UserError(f"schedule: betas from start={start} to end={end}: expected 0 < start <= end < 1")


SCHEDULES = {"scaled_linear": scaled_linear, "linear": linear, "cosine": cosine}
