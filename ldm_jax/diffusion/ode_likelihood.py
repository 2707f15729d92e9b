"""The log-likelihood of data by the probability-flow equation (arXiv 2011.13456, appendix D.2; FFJORD, arXiv 1810.01367).

For any level, y = noisy / r with r = hypot(alpha, sigma) is y = cos(theta) clean + sin(theta) noise, and the flow is

    dy/dtheta = cos(theta) noise - sin(theta) clean =: V   (the estimates at that point: the v of arXiv 2202.00512),
    d ln p(y) / dtheta = -div V,

finite from the data to pure noise for every schedule. With y_0 at the smallest level and y_1 at the largest, where y is taken
to be standard normal, ln p(y_0) = ln N(y_1; 0, 1) + integral of div V dtheta. The density is of clean, not of y: y_0 =
cos(theta_0) clean adds ln cos(theta_0) a dimension. It is the density of clean + (sigma_0 / alpha_0) noise, at the data.
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
from ldm_jax.core.keys import key_for
from ldm_jax.core.types import Level, struct

SOLVERS = ("rk4", "heun")
PROBES = ("rademacher", "normal")


@dataclasses.dataclass(frozen=True)
class ProbabilityFlow:
    """How the equation is solved.

    steps: of the solver, evenly in ln(sigma / (alpha + sigma)): fine near the data, and finite at pure noise.
    solver: "rk4", order 4, four evaluations a step; "heun", order 2, two.
    probes: draws per example of Hutchinson's trace estimate (its error falls as their root), at least 2; 0 for the exact
      trace, which costs as many as an example has dimensions.
    probe: "rademacher", entries of +1 and -1, or "normal".

    Raises:
      UserError: a number out of range, an unknown name.
    """

    schedule: Any
    time_input: Any
    steps: int = 32
    solver: Literal["rk4", "heun"] = "rk4"
    probes: int = 8
    probe: Literal["rademacher", "normal"] = "rademacher"

    def __post_init__(self):
        for name, known in (("solver", SOLVERS), ("probe", PROBES)):
            if getattr(self, name) not in known:
                raise UserError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(known)}")
        for name in ("steps", "probes"):
            if isinstance(getattr(self, name), bool) or not isinstance(getattr(self, name), int):
                raise UserError(f"{name}={getattr(self, name)!r}: expected a whole number")
        if self.steps < 1:
            raise UserError(f"steps={self.steps}: expected at least 1")
        if self.probes < 0 or self.probes == 1:
            raise UserError(f"probes={self.probes}: expected at least 2, so that the error is known, or 0 for the exact trace")

    @property
    def begin(self) -> float:
        """cos(theta_0) = alpha_0 / hypot(alpha_0, sigma_0), of the smallest level."""
        level = self.schedule.level_at(self.schedule.first)
        return float(level.alpha / np.hypot(level.alpha, level.sigma))

    def rows(self) -> np.ndarray:
        """What the solver needs at each level that it visits, float64 [n, 6]: alpha, sigma, the time fed, r, and the weights

        of noise and clean in one step's share of V. n is 2 steps + 1 for rk4, steps + 1 for heun.
        """
        schedule, n = self.schedule, self.steps * (2 if self.solver == "rk4" else 1)
        ends = [schedule.level_at(t) for t in (schedule.first, schedule.last)]
        begin, end = (math.log(level.sigma / (level.alpha + level.sigma)) for level in ends)
        share = np.exp(np.linspace(begin, end, n + 1))
        inner = share[1:-1] / (1 - share[1:-1])
        level = schedule.level_of(inner)
        alpha, sigma = (np.concatenate([[getattr(ends[0], k)], getattr(level, k), [getattr(ends[1], k)]]) for k in ("alpha", "sigma"))
        times = np.concatenate([[schedule.first], schedule.time_at(-np.log(inner)), [schedule.last]])
        r = np.hypot(alpha, sigma)
        # theta = atan2(share, 1 - share), and share = exp(w): dtheta/dw = share / (share^2 + (1 - share)^2)
        turned = (end - begin) / self.steps * share / (share**2 + (1 - share) ** 2)
        return np.stack([alpha, sigma, self.time_input(schedule, times), r, turned * alpha / r, -turned * sigma / r], axis=1)


@struct
class Density:
    """log_density [B]: ln p(clean) in nats, summed over an example; standard_error [B] of Hutchinson's estimate (0 for the exact

    trace); noise [B, ...]: where the flow carried the example, standard normal if the model is right.
    """

    log_density: jax.Array
    standard_error: jax.Array
    noise: jax.Array


def log_density(flow: ProbabilityFlow, denoise: Callable, params, clean: jax.Array, condition=None,
                keys: jax.Array | None = None) -> Density:
    """The log-likelihood of each example under the model's probability flow, in clean's dtype.

    Args:
      denoise: denoise(params, noisy [B, ...], level [], time [B], condition) -> estimates of (clean, noise); hashable.
      params, condition: passed to it.
      clean: data [B, ...] in the model's units.
      keys: typed keys [B] for the probes: example i's depend on keys[i] alone. Not read for the exact trace.

    Raises:
      UserError: no keys where probes are to be drawn.
    """
    if flow.probes and keys is None:
        raise UserError("keys: Hutchinson's probes need one typed key per example; probes=0 takes the exact trace without")
    return _log_density(flow, denoise, params, clean, condition, keys if flow.probes else None)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _log_density(flow, denoise, params, clean, condition, keys) -> Density:
    size = math.prod(clean.shape[1:])
    rows, probes = jnp.asarray(flow.rows(), clean.dtype), _probes(flow, keys, clean)

    def share(y, row):
        """One step's share of V, and of div V by each probe [P, B]."""
        def velocity(y):
            time = jnp.full(y.shape[:1], row[2])
            found, noise = denoise(params, row[3] * y, Level(row[0], row[1]), time, condition)
            return row[4] * noise + row[5] * found

        value, turn = jax.linearize(velocity, y)
        return value, jax.lax.map(lambda probe: _dot(probe, turn(jnp.broadcast_to(probe, y.shape))), probes)

    step = _rk4 if flow.solver == "rk4" else _heun
    start = (flow.begin * clean, jnp.zeros((probes.shape[0], clean.shape[0]), clean.dtype))
    y, grown = jax.lax.fori_loop(0, flow.steps, lambda i, state: step(share, rows, i, state), start)
    count = probes.shape[0] if flow.probes else 1
    error = jnp.std(grown, axis=0, ddof=1) / count**0.5 if flow.probes else jnp.zeros(clean.shape[:1], clean.dtype)
    log_noise = -0.5 * _dot(y, y) - 0.5 * size * math.log(2 * math.pi)
    return Density(log_noise + jnp.sum(grown, axis=0) / count + size * math.log(flow.begin), error, y)


def _probes(flow: ProbabilityFlow, keys, clean) -> jax.Array:
    """[P, B, ...] draws, or the [D, 1, ...] unit vectors, whose products with the Jacobian add up to its trace."""
    if not flow.probes:
        size = math.prod(clean.shape[1:])
        return jnp.eye(size, dtype=clean.dtype).reshape(size, 1, *clean.shape[1:])
    draw = jax.random.rademacher if flow.probe == "rademacher" else jax.random.normal

    def of(p):
        return jax.vmap(lambda key: draw(key_for(key, "probe", step=p), clean.shape[1:], clean.dtype))(keys)

    return jax.vmap(of)(jnp.arange(flow.probes))


def _rk4(share, rows, i, state):
    """The classical method: slopes at the start, twice at the middle, at the end, with weights 1 2 2 1 over 6."""
    y, grown = state
    one, d_one = share(y, rows[2 * i])
    two, d_two = share(y + one / 2, rows[2 * i + 1])
    three, d_three = share(y + two / 2, rows[2 * i + 1])
    four, d_four = share(y + three, rows[2 * i + 2])
    return y + (one + 2 * (two + three) + four) / 6, grown + (d_one + 2 * (d_two + d_three) + d_four) / 6


def _heun(share, rows, i, state):
    """The mean of the slopes at both ends."""
    y, grown = state
    one, d_one = share(y, rows[i])
    two, d_two = share(y + one, rows[i + 1])
    return y + (one + two) / 2, grown + (d_one + d_two) / 2


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Products summed over all axes but the first: [B, ...] -> [B]."""
    return jnp.sum(a * b, axis=tuple(range(1, b.ndim)))
