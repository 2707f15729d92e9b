"""Schedules of real time, and SCHEDULES, the table of all. What each answers stands in schedule.py."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.core.types import Level
from ldm_jax.diffusion import schedule


@dataclasses.dataclass(frozen=True)
class Flow:
    """alpha = 1 - t, sigma = t: straight lines from data to noise (rectified flow, arXiv 2209.03003; flow matching,

    arXiv 2210.02747). Time runs from `low` to 1; at 1 there is pure noise, so the network must predict flow, clean or v.

    Raises:
      UserError: low not between 0 and 1.
    """

    low: float = 0.001

    def __post_init__(self):
        if not 0 < self.low < 1:
            raise UserError(f"flow schedule: low={self.low}: expected a number between 0 and 1 (published: 0.001)")

    steps, last, origin = 0, 1.0, 0.0

    @property
    def first(self) -> float:
        """The smallest time."""
        return self.low

    def level(self, t: jax.Array) -> Level:
        """The float32 level of times t, float [] or [B]."""
        return Level(1 - t, t)

    def level_at(self, t) -> Level:
        """The float64 host level of times in [low, 1]. Raises UserError for others."""
        t = np.asarray(t, np.float64)
        schedule._check_inside(t, self.first, self.last)
        return Level(1 - t, t)

    def level_of(self, ratio) -> Level:
        """The float64 host level whose sigma / alpha is `ratio`; infinity gives (0, 1)."""
        ratio = np.asarray(ratio, np.float64)
        alpha = 1 / (1 + ratio)
        return Level(alpha, 1 - alpha)

    def time_at(self, log_ratio) -> np.ndarray:
        """The time whose ln(alpha / sigma) is `log_ratio`: 1 / (1 + e^lambda). Raises UserError beyond `low`."""
        log_ratio = np.asarray(log_ratio, np.float64)
        schedule._check_reached(log_ratio, -math.inf, math.log((1 - self.low) / self.low))
        return np.exp(-np.logaddexp(0, log_ratio))

    def pick(self, fraction: jax.Array) -> jax.Array:
        """low + fraction (1 - low), float32."""
        return self.low + fraction * (1 - self.low)

    def nearest(self, log_ratio: jax.Array) -> jax.Array:
        """The time of a lambda, float32, not below `low`."""
        return jnp.maximum(jax.nn.sigmoid(-log_ratio), self.low)


@dataclasses.dataclass(frozen=True)
class Edm:
    """alpha = 1, sigma from sigma_min to sigma_max; time is ln sigma (arXiv 2206.00364, table 1).

    Raises:
      UserError: sigmas out of order.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self):
        if not (0 < self.sigma_min < self.sigma_max and math.isfinite(self.sigma_max)):
            raise UserError(f"edm schedule: sigma_min={self.sigma_min}, sigma_max={self.sigma_max}: expected 0 < sigma_min < sigma_max")

    steps, origin = 0, None

    @property
    def first(self) -> float:
        """ln sigma_min."""
        return math.log(self.sigma_min)

    @property
    def last(self) -> float:
        """ln sigma_max."""
        return math.log(self.sigma_max)

    def level(self, t: jax.Array) -> Level:
        """The float32 level of times t = ln sigma, float [] or [B]."""
        return Level(jnp.ones_like(t), jnp.exp(t))

    def level_at(self, t) -> Level:
        """The float64 host level of times in [ln sigma_min, ln sigma_max]. Raises UserError for others."""
        t = np.asarray(t, np.float64)
        schedule._check_inside(t, self.first, self.last)
        return Level(np.ones_like(t), np.exp(t))

    def level_of(self, ratio) -> Level:
        """The float64 host level (1, ratio)."""
        ratio = np.asarray(ratio, np.float64)
        return Level(np.ones_like(ratio), ratio)

    def time_at(self, log_ratio) -> np.ndarray:
        """-lambda. Raises UserError for one that the schedule does not reach."""
        log_ratio = np.asarray(log_ratio, np.float64)
        schedule._check_reached(log_ratio, -self.last, -self.first)
        return np.clip(-log_ratio, self.first, self.last)

    def pick(self, fraction: jax.Array) -> jax.Array:
        """A time evenly in ln sigma, float32."""
        return self.first + fraction * (self.last - self.first)

    def nearest(self, log_ratio: jax.Array) -> jax.Array:
        """The time of a lambda, float32, inside the schedule."""
        return jnp.clip(-log_ratio, self.first, self.last)


SCHEDULES = {"scaled_linear": schedule.scaled_linear, "linear": schedule.linear, "sqrt": schedule.sqrt, "cosine": schedule.cosine,
             "betas": schedule.betas, "geometric": schedule.geometric, "flow": Flow, "edm": Edm}
