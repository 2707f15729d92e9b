"""The variational bound on -ln p(clean), term by term, for discrete variance-preserving schedules. In nats, summed over an example.

    -ln p(x_0) <= KL(q(x_T | x_0) || N(0, 1)) + sum over t of KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) + E[-ln p(x_0 | x_1)]

(arXiv 2006.11239, equation 5: prior, L_t, reconstruction). The paper's x_1 .. x_T stand at our training times 0 .. T-1, so a
transition leads from time t = 1 .. T-1 to t - 1, and time 0 is the reconstruction's. With b_t the variance that step t adds,
share_t = b_t / sigma_t^2 and the posterior variance sigma_{t-1}^2 share_t (its "beta-tilde"),

    L_t = (alpha_{t-1} share_t)^2 / (2 v_t) |clean - estimate|^2 + 1/2 (ln(v_t / beta-tilde_t) + beta-tilde_t / v_t - 1) a dimension.
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
from ldm_jax.core.keys import key_for, normal_for, uniform_for
from ldm_jax.core.types import struct
from ldm_jax.diffusion.prediction import corrupt, over
from ldm_jax.diffusion.schedule import Discrete

HALF_PIXEL = 1 / 255  # pixels are x / 127.5 - 1: neighbours lie 2 / 255 apart
EVEN_SHARE = 0.1  # of the draws of time


@dataclasses.dataclass(frozen=True)
class Bound:
    """What of the bound is a choice.

    variance: of p(x_{t-1} | x_t): "large", beta, best for data N(0, 1) and the tighter bound for what has a density; "small", the
      posterior's beta-tilde, best for data at one point (arXiv 2006.11239, section 3.2).
    decoder: p(x_0 | x_1) around the estimate of clean. "gaussian", for continuous data, is the density of variance sigma_0^2
      (the paper's beta_1); "pixels", for data x / 127.5 - 1 of uint8 x, is the probability of the pixel's interval under a
      Gaussian of variance beta-tilde_2, with open ends at 0 and 255 (arXiv 2006.11239, equation 13, and its code).
    draws: how many of the T - 1 transitions are looked at for each example, even, or 0 for every one. Where they are drawn,
      the sum is unbiased: `draws / 2` strata of equal chance with two draws each, the chance of t nine tenths
      ln(sigma_t / sigma_{t-1}), which is L_t with "large" of data of unit variance, and one tenth even.

    Raises:
      UserError: a schedule that is not discrete and variance preserving, an odd or negative number of draws, an unknown name.
    """

    schedule: Any
    time_input: Any
    variance: Literal["small", "large"] = "large"
    decoder: Literal["gaussian", "pixels"] = "gaussian"
    draws: int = 32

    def __post_init__(self):
        why = _unfit(self.schedule)
        if why:
            raise UserError(f"the discrete variational bound needs a discrete variance-preserving schedule; {why}")
        for name, known in (("variance", ("small", "large")), ("decoder", ("gaussian", "pixels"))):
            if getattr(self, name) not in known:
                raise UserError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(known)}")
        if isinstance(self.draws, bool) or self.draws != int(self.draws) or self.draws < 0 or self.draws % 2:
            raise UserError(f"draws={self.draws}: expected an even number of times from 2, or 0 for every time")

    @functools.cached_property
    def decoder_variance(self) -> float:
        """sigma_0^2, or the posterior's variance at the second time for pixels (sigma_0^2 where there is no second)."""
        level = _levels(self.schedule)
        second = self.decoder == "pixels" and self.schedule.steps > 1
        return float(level.sigma[0] ** 2 * (level.share[0] if second else 1))

    @functools.cached_property
    def coefficients(self) -> tuple[np.ndarray, np.ndarray]:
        """(square, constant) float64 [T]: the term of time t is square |clean - estimate|^2 + constant a dimension.

        At time 0 they are the Gaussian decoder's, with its 1/2 ln(2 pi v).
        """
        level, last = _levels(self.schedule), self.decoder_variance
        small = level.sigma[:-1] ** 2 * level.share
        chosen = small if self.variance == "small" else level.sigma[1:] ** 2 * level.share
        square = (level.alpha[:-1] * level.share) ** 2 / (2 * chosen)
        constant = (np.log(chosen / small) + small / chosen - 1) / 2
        return np.append(1 / (2 * last), square), np.append(math.log(2 * math.pi * last) / 2, constant)

    @functools.cached_property
    def chances(self) -> np.ndarray:
        """The chance of drawing each of the times 1 .. T-1, float64 [T - 1]; see `draws`."""
        told = np.diff(np.log(self.schedule.sigmas))
        return (1 - EVEN_SHARE) * told / told.sum() + EVEN_SHARE / len(told)


@dataclasses.dataclass(frozen=True)
class _Levels:
    """alpha, sigma [T]; share [T - 1] = b_t / sigma_t^2 = 1 - (SNR_t / SNR_{t-1}), for t = 1 .. T-1."""

    alpha: np.ndarray
    sigma: np.ndarray
    share: np.ndarray


def _levels(schedule: Discrete) -> _Levels:
    alpha, sigma = np.asarray(schedule.alphas, np.float64), np.asarray(schedule.sigmas, np.float64)
    return _Levels(alpha, sigma, 1 - (alpha[1:] / sigma[1:] * (sigma[:-1] / alpha[:-1])) ** 2)


def _unfit(schedule) -> str:
    """Why a schedule has no discrete bound here; "" where it has."""
    if not schedule.steps:
        return "this one's time is real: take the likelihood by the probability-flow equation"
    if not (isinstance(schedule, Discrete) and schedule.damps):
        return "this one keeps alpha = 1 (variance exploding): take the likelihood by the probability-flow equation"
    return ""


@struct
class Nats:
    """Nats of each example [B] float32, summed over its dimensions: prior, steps (the sum of all L_t) and reconstruction.

    variance: of steps + reconstruction as an estimate, given the example: of the times and noise drawn. Unbiased where times are
    drawn; with every time it is taken from neighbouring pairs (a last one without a partner counts nothing), and a little too large.
    """

    prior: jax.Array
    steps: jax.Array
    reconstruction: jax.Array
    variance: jax.Array

    @property
    def total(self) -> jax.Array:
        """The bound on -ln p(clean) [B]."""
        return self.prior + self.steps + self.reconstruction


def bits(nats):
    """Nats as bits."""
    return nats / math.log(2)


def prior(bound: Bound, clean: jax.Array) -> jax.Array:
    """KL(q(x_T | clean) || N(0, 1)) in nats, [B, ...] -> [B]: 1/2 (alpha^2 clean^2 + sigma^2 - 1 - ln sigma^2), summed."""
    alpha, sigma = bound.schedule.alphas[-1], bound.schedule.sigmas[-1]
    return _sum(0.5 * alpha**2 * jnp.square(clean) + 0.5 * (sigma**2 - 1 - 2 * math.log(sigma)))


def term(bound: Bound, denoise: Callable, params, clean: jax.Array, condition, draw: tuple[jax.Array, jax.Array]) -> jax.Array:
    """L_t for t >= 1 and the reconstruction's -ln p(x_0 | x_1) for t = 0, in nats [B], at one draw of the noise.

    Args:
      denoise: denoise(params, noisy [B, ...], level [B], time [B], condition) -> estimates of (clean, noise).
      params, condition: passed to it.
      clean: data [B, ...] in the model's units.
      draw: (t, noise): training times int [B], standard normal draws [B, ...]. Its mean over the noise is the bound's term.
    """
    t, noise = draw
    level = bound.schedule.level(t)
    estimate, _ = denoise(params, corrupt(clean, noise, level), level, bound.time_input(bound.schedule, t), condition)
    square, constant = (jnp.asarray(table, clean.dtype)[t] for table in bound.coefficients)
    nats = _sum(over(square, clean) * jnp.square(clean - estimate) + over(constant, clean))
    if bound.decoder == "gaussian":
        return nats
    return jnp.where(t == 0, -_sum(log_pixel(clean, estimate, bound.decoder_variance**0.5)), nats)


def log_pixel(clean: jax.Array, mean: jax.Array, deviation: float) -> jax.Array:
    """ln of the probability of each pixel's interval, clean +- 1/255, under N(mean, deviation^2); clean = x / 127.5 - 1.

    The intervals of 0 and 255 are open to their side (arXiv 2006.11239, equation 13). All of one shape.
    """
    away = jnp.abs(clean - mean)  # the interval is mirrored to below the mean, where the logarithm is exact
    outer, inner = (jax.scipy.special.log_ndtr((-away + side) / deviation) for side in (-HALF_PIXEL, HALF_PIXEL))
    inside = inner + jnp.log(-jnp.expm1(jnp.minimum(outer - inner, -1e-30)))
    lowest = jax.scipy.special.log_ndtr((clean - mean + HALF_PIXEL) / deviation)
    highest = jax.scipy.special.log_ndtr((mean - clean + HALF_PIXEL) / deviation)
    return jnp.where(clean < -1 + HALF_PIXEL, lowest, jnp.where(clean > 1 - HALF_PIXEL, highest, inside))


def measure(bound: Bound, denoise: Callable, params, clean: jax.Array, condition, keys: jax.Array) -> Nats:
    """The bound of each example, from `draws` (or T - 1) transitions and two draws of the reconstruction, one after another.

    Args: as in `term`; keys: typed keys [B], one an example: example i's draws depend on keys[i] alone.
    """
    return _measure(bound, denoise, params, clean, condition, keys)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _measure(bound: Bound, denoise: Callable, params, clean, condition, keys) -> Nats:
    steps, drawn = bound.schedule.steps, bound.draws and bound.schedule.steps > 1
    count = bound.draws if drawn else steps - 1

    def row(j):  # rows 0 and 1 look at time 0, the others at the transitions
        t = jnp.maximum(j - 1, 0)
        t = jnp.where(j < 2, 0, _drawn_time(bound, keys, j)) if drawn else jnp.broadcast_to(t, keys.shape)
        noise = normal_for(jax.vmap(lambda key: key_for(key, "bound_noise", step=j))(keys), clean.shape[1:]).astype(clean.dtype)
        value = term(bound, denoise, params, clean, condition, (t, noise))
        if drawn:
            value = value / jnp.where(j < 2, 1.0, jnp.asarray(np.append(1.0, bound.chances), clean.dtype)[t])
        return value

    found = jax.lax.map(row, jnp.arange(count + 2))
    first, rest = found[:2], found[2:]
    pairs = jnp.square(rest[: count // 2 * 2 : 2] - rest[1::2])
    scale = 1 / max(count, 1) if drawn else 1.0
    variance = jnp.square(first[0] - first[1]) / 4 + scale**2 * jnp.sum(pairs, axis=0)
    return Nats(prior(bound, clean), scale * jnp.sum(rest, axis=0), jnp.mean(first, axis=0), variance)


def _drawn_time(bound: Bound, keys: jax.Array, j) -> jax.Array:
    """The time of row j >= 2, int32 [B]: rows 2 and 3 draw from the first stratum, and so on."""
    uniform = uniform_for(jax.vmap(lambda key: key_for(key, "bound_time", step=j))(keys))
    place = ((j - 2) // 2 + uniform) / (bound.draws // 2)
    ends = jnp.asarray(np.cumsum(bound.chances)[:-1], jnp.float32)
    return 1 + jnp.searchsorted(ends, place, side="right").astype(jnp.int32)


def _sum(values: jax.Array) -> jax.Array:
    return jnp.sum(values, axis=tuple(range(1, values.ndim)))
