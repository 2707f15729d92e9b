"""How much each level counts in training: weight(level, prediction) -> [B].

A weight multiplies the loss in the prediction's own space. A published weight w(SNR) on the squared error in clean is
therefore divided by the prediction's `gain`: SNR for noise, 1 for clean and, where variance is preserved, SNR + 1 for v.
SNR = (alpha / sigma)^2. With another loss than L2 the same numbers are used, as the published codes do.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.core.types import Level

LOOKED_AT = 1001  # levels of a schedule of real time that `check_weight` looks at


def snr(level):
    """(alpha / sigma)^2, of the level's shape; 0 where alpha is 0."""
    return (level.alpha / level.sigma) ** 2


def _above_0(name: str, **numbers: float) -> None:
    for key, value in numbers.items():
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"{name}: {key}={value}: expected a number above 0")


@dataclasses.dataclass(frozen=True)
class Simple:
    """Weight 1 in the prediction's own space (arXiv 2006.11239, equation 14)."""

    def __call__(self, level, prediction):
        """Ones, of the level's shape."""
        return jnp.ones_like(level.alpha)


@dataclasses.dataclass(frozen=True)
class MinSnr:
    """min(SNR, gamma) on the squared error in clean (arXiv 2303.09556, section 3.4; published gamma: 5).

    In the prediction's own space: noise min(SNR, gamma) / SNR; clean min(SNR, gamma); v, where variance is preserved,
    min(SNR, gamma) / (SNR + 1).

    Raises:
      UserError: gamma not a finite number above 0.
    """

    gamma: float = 5.0

    def __post_init__(self):
        _above_0("min_snr", gamma=self.gamma)

    def __call__(self, level, prediction):
        """Weights of the level's shape."""
        return jnp.minimum(snr(level), self.gamma) / prediction.gain(level)


@dataclasses.dataclass(frozen=True)
class SoftMinSnr:
    """SNR gamma / (SNR + gamma) on the squared error in clean: half their harmonic mean (arXiv 2401.11605).

    gamma = 1 / d^2 gives 1 / (s^2 + d^2), k-diffusion's "soft-min-snr" for data of deviation d (published: d = 0.5, gamma = 4).

    Raises:
      UserError: gamma not a finite number above 0.
    """

    gamma: float = 4.0

    def __post_init__(self):
        _above_0("soft_min_snr", gamma=self.gamma)

    def __call__(self, level, prediction):
        """Weights of the level's shape."""
        return snr(level) * self.gamma / (snr(level) + self.gamma) / prediction.gain(level)


@dataclasses.dataclass(frozen=True)
class Edm:
    """1 / c_out^2 = (s^2 + d^2) / (s d)^2 = SNR + 1 / d^2 on the squared error in clean (arXiv 2206.00364, table 1), s = sigma / alpha.

    d = sigma_data, the deviation of the data: 1 for latents in their units (published for pixels: 0.5). For the prediction `edm` of the
    same sigma_data it is 1, which is `simple`; so it is for v where d = 1 and variance is preserved.

    Raises:
      UserError: sigma_data not a finite number above 0.
    """

    sigma_data: float = 1.0

    def __post_init__(self):
        _above_0("edm weight", sigma_data=self.sigma_data)

    def __call__(self, level, prediction):
        """Weights of the level's shape."""
        return (snr(level) + self.sigma_data**-2) / prediction.gain(level)


@dataclasses.dataclass(frozen=True)
class Elbo:
    """The variational bound: (SNR(t-1) - SNR(t)) / 2 on the squared error in clean (arXiv 2107.00630, section 4).

    For noise that is beta^2 / (2 posterior variance alpha (1 - alpha-bar)), the `lvlb_weights` of the LDM code, with its choice for time
    0, whose term is another one: there the weight on the noise is that of time 1. (That code's weight for clean,
    sqrt(alpha-bar) / (2 (2 - alpha-bar)), does not follow from the bound; ours does, for every prediction.) The bound itself is T times
    the mean over times, and has no loss but L2. Where time is real: the limit -dSNR/dt / 2 for each unit of the schedule's time.

    Raises:
      UserError: a schedule without a second time to compare with, or whose second time has no data left.
    """

    schedule: Any

    def __post_init__(self):
        if self.schedule.steps and (self.schedule.steps < 2 or self.schedule.alphas[1] == 0):
            raise UserError("elbo: expected a schedule of two times at least that are not pure noise")

    def __call__(self, level, prediction):
        """Weights of the level's shape; the level is one of the schedule's."""
        t = self.schedule.nearest(jnp.log(level.alpha / level.sigma))
        if self.schedule.steps:
            return jnp.take(jnp.asarray(self._in_clean(), jnp.float32), t) / prediction.gain(level)
        _, slope = jax.jvp(lambda t: snr(self.schedule.level(t)), (t,), (jnp.ones_like(t),))
        return -slope / 2 / prediction.gain(level)

    def _in_clean(self) -> np.ndarray:
        """float64 [T]: what the squared error in clean is multiplied by at times 0 .. T-1."""
        ratios = snr(Level(np.asarray(self.schedule.alphas), np.asarray(self.schedule.sigmas)))
        later = (ratios[:-1] - ratios[1:]) / 2
        return np.concatenate([later[:1] * ratios[0] / ratios[1], later])


WEIGHTS = {"simple": Simple, "min_snr": MinSnr, "soft_min_snr": SoftMinSnr, "edm": Edm, "elbo": Elbo}


def check_weight(weight, schedule, prediction, above_0: bool = False) -> None:
    """Looks at the weight at every level of a schedule (of real time: at 1,001).

    Args:
      above_0: whether a level that does not count at all is an error too.

    Raises:
      UserError: a weight that is not finite, or 0 everywhere, or (above_0) anywhere.
    """
    times = np.arange(schedule.steps) if schedule.steps else np.linspace(schedule.first, schedule.last, LOOKED_AT)
    level = schedule.level_at(times)
    level = Level(jnp.asarray(level.alpha, jnp.float32), jnp.asarray(level.sigma, jnp.float32))
    found = np.asarray(weight(level, prediction))
    name = next(name for name, kind in WEIGHTS.items() if isinstance(weight, kind))
    wrong = ~(np.isfinite(found) & (found >= 0))
    if wrong.any():
        at = np.flatnonzero(wrong)[0]
        raise UserError(f"{name}: the weight is {found[at]:g} at time {times[at]:g} of this schedule with this prediction; "
                        "choose another prediction or weight")
    if not found.any() or (above_0 and not found.all()):
        raise UserError(f"{name}: the weight is 0 at time {times[np.flatnonzero(found == 0)[0]]:g} of this schedule, so that nothing is "
                        "learned there" + above_0 * ", and a learned log-variance would fall for ever: set weight to simple or edm")
