"""What a network predicts, and the hub (clean, noise) through which every kind converts.

Each kind knows how its output becomes the pair (clean, noise), what its training target is, by how much a squared error
in clean grows in its own space, and what the network is shown of noisy. N kinds cost N classes, not N squared conversions.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.core.types import Level


def over(value, x):
    """A number per example, [] or [B], shaped to multiply x [B, ...]."""
    return value if value.ndim == 0 else value.reshape(value.shape + (1,) * (x.ndim - value.ndim))


def corrupt(clean, noise, level: Level):
    """noisy = alpha * clean + sigma * noise, [B, ...]."""
    return over(level.alpha, clean) * clean + over(level.sigma, noise) * noise


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What all kinds share."""

    needs_alpha = False  # whether its output says nothing about clean where alpha is 0

    def inputs(self, noisy, level: Level):
        """What the network is shown of noisy [B, ...]: noisy itself."""
        return noisy

    def check(self, schedule) -> None:
        """Raises UserError if the schedule reaches pure noise and this prediction cannot find the data from there."""
        if self.needs_alpha and float(schedule.level_at(schedule.last).alpha) == 0:
            raise UserError("this schedule ends in pure noise (alpha = 0), where the noise says nothing about the data: "
                            "set the prediction to v, clean or flow")


@dataclasses.dataclass(frozen=True)
class Noise(Prediction):
    """The network predicts the noise (arXiv 2006.11239, equation 14). Says nothing about clean where alpha is 0."""

    needs_alpha = True

    def to_hub(self, output, noisy, level: Level):
        """(clean, noise) from the output, all [B, ...]."""
        return (noisy - over(level.sigma, noisy) * output) / over(level.alpha, noisy), output

    def target(self, clean, noise, level: Level):
        """What the network is trained to give, [B, ...]."""
        return noise

    def gain(self, level: Level):
        """(error here / error in clean)^2 at fixed noisy: the signal-to-noise ratio alpha^2 / sigma^2."""
        return (level.alpha / level.sigma) ** 2


@dataclasses.dataclass(frozen=True)
class Clean(Prediction):
    """The network predicts the data."""

    def to_hub(self, output, noisy, level: Level):
        """(clean, noise) from the output, all [B, ...]."""
        return output, (noisy - over(level.alpha, noisy) * output) / over(level.sigma, noisy)

    def target(self, clean, noise, level: Level):
        """What the network is trained to give, [B, ...]."""
        return clean

    def gain(self, level: Level):
        """(error here / error in clean)^2: 1."""
        return level.alpha * 0 + 1


@dataclasses.dataclass(frozen=True)
class V(Prediction):
    """The network predicts v = alpha * noise - sigma * clean (arXiv 2202.00512, appendix D).

    Dividing by alpha^2 + sigma^2 (1 where variance is preserved) makes the way back exact at any level.
    """

    def to_hub(self, output, noisy, level: Level):
        """(clean, noise) from the output, all [B, ...]."""
        alpha, sigma = over(level.alpha, noisy), over(level.sigma, noisy)
        total = alpha**2 + sigma**2
        return (alpha * noisy - sigma * output) / total, (sigma * noisy + alpha * output) / total

    def target(self, clean, noise, level: Level):
        """What the network is trained to give, [B, ...]."""
        return over(level.alpha, clean) * noise - over(level.sigma, clean) * clean

    def gain(self, level: Level):
        """(error here / error in clean)^2 at fixed noisy: ((alpha^2 + sigma^2) / sigma)^2, where variance is preserved SNR + 1."""
        return ((level.alpha**2 + level.sigma**2) / level.sigma) ** 2


@dataclasses.dataclass(frozen=True)
class Flow(Prediction):
    """The network predicts noise - clean, the velocity of straight lines (arXiv 2209.03003, equation 1; 2210.02747)."""

    def to_hub(self, output, noisy, level: Level):
        """(clean, noise) from the output, all [B, ...]; exact at any level, not only where alpha + sigma = 1."""
        alpha, sigma = over(level.alpha, noisy), over(level.sigma, noisy)
        return (noisy - sigma * output) / (alpha + sigma), (noisy + alpha * output) / (alpha + sigma)

    def target(self, clean, noise, level: Level):
        """What the network is trained to give, [B, ...]."""
        return noise - clean

    def gain(self, level: Level):
        """(error here / error in clean)^2 at fixed noisy: ((alpha + sigma) / sigma)^2."""
        return ((level.alpha + level.sigma) / level.sigma) ** 2


@dataclasses.dataclass(frozen=True)
class Score(Prediction):
    """The network predicts sigma times the score, which is -noise (arXiv 1907.05600, equation 5, weighted by sigma^2).

    It is shown noisy divided by hypot(alpha, sigma), which has unit variance for data of unit variance at any sigma.
    """

    needs_alpha = True

    def inputs(self, noisy, level: Level):
        """noisy / hypot(alpha, sigma), [B, ...]."""
        return noisy / over((level.alpha**2 + level.sigma**2) ** 0.5, noisy)

    def to_hub(self, output, noisy, level: Level):
        """(clean, noise) from the output, all [B, ...]."""
        return (noisy + over(level.sigma, noisy) * output) / over(level.alpha, noisy), -output

    def target(self, clean, noise, level: Level):
        """What the network is trained to give, [B, ...]."""
        return -noise

    def gain(self, level: Level):
        """(error here / error in clean)^2 at fixed noisy: the signal-to-noise ratio alpha^2 / sigma^2."""
        return (level.alpha / level.sigma) ** 2


@dataclasses.dataclass(frozen=True)
class Edm(Prediction):
    """The preconditioned network of arXiv 2206.00364, equation 7 and table 1: with s = sigma / alpha and y = noisy / alpha,

    clean = c_skip y + c_out F(c_in y),  c_skip = d^2 / (s^2 + d^2),  c_out = s d / sqrt(s^2 + d^2),  c_in = 1 / sqrt(s^2 + d^2),
    d = sigma_data the deviation of the data: 1 for latents in their units (published for pixels: 0.5). Needs alpha above 0.

    Raises:
      UserError: sigma_data not above 0.
    """

    sigma_data: float = 1.0
    needs_alpha = True

    def __post_init__(self):
        if not (math.isfinite(self.sigma_data) and self.sigma_data > 0):
            raise UserError(f"edm prediction: sigma_data={self.sigma_data}: expected a number above 0 (1 for latents)")

    def _parts(self, level: Level):
        """(s, c_skip, c_out, c_in), each of the level's shape."""
        s, d = level.sigma / level.alpha, self.sigma_data
        total = s**2 + d**2
        return s, d**2 / total, s * d / total**0.5, 1 / total**0.5

    def inputs(self, noisy, level: Level):
        """c_in y, [B, ...]."""
        return noisy * over(self._parts(level)[3] / level.alpha, noisy)

    def to_hub(self, output, noisy, level: Level):
        """(clean, noise) from the output, all [B, ...]."""
        _, skip, out, _ = self._parts(level)
        clean = over(skip / level.alpha, noisy) * noisy + over(out, noisy) * output
        return clean, (noisy - over(level.alpha, noisy) * clean) / over(level.sigma, noisy)

    def target(self, clean, noise, level: Level):
        """What F is trained to give, [B, ...]: (clean - c_skip y) / c_out."""
        _, skip, out, _ = self._parts(level)
        noisy = corrupt(clean, noise, level)
        return (clean - over(skip / level.alpha, noisy) * noisy) / over(out, noisy)

    def gain(self, level: Level):
        """(error here / error in clean)^2 at fixed noisy: 1 / c_out^2 = (s^2 + d^2) / (s d)^2, the weight of its table 1."""
        return 1 / self._parts(level)[2] ** 2


PREDICTIONS = {"noise": Noise, "clean": Clean, "v": V, "flow": Flow, "score": Score, "edm": Edm}


@dataclasses.dataclass(frozen=True)
class Index:
    """The network is fed the training time itself, 0 .. T-1, as the published models are; real times unrounded."""

    def __call__(self, schedule, t):
        """The number fed for times t: float32 from a jax array, float64 from a host array."""
        return t.astype(jnp.float32) if isinstance(t, jax.Array) else np.asarray(t, np.float64)


@dataclasses.dataclass(frozen=True)
class LogSnr:
    """The network is fed ln(alpha / sigma): it means the same under another schedule. Needs alpha above 0."""

    def __call__(self, schedule, t):
        """The number fed for times t: float32 from a jax array, float64 from a host array."""
        traced = isinstance(t, jax.Array)
        level = schedule.level(t) if traced else schedule.level_at(t)
        return (jnp if traced else np).log(level.alpha / level.sigma)


@dataclasses.dataclass(frozen=True)
class Scaled:
    """The network is fed a multiple of the time: 1000 t is what published flow models take for t in 0 .. 1."""

    factor: float = 1000.0

    def __call__(self, schedule, t):
        """The number fed for times t: float32 from a jax array, float64 from a host array."""
        return self.factor * INDEX(schedule, t)


@dataclasses.dataclass(frozen=True)
class QuarterLogSigma:
    """The network is fed ln(sigma / alpha) / 4, the c_noise of arXiv 2206.00364, table 1."""

    def __call__(self, schedule, t):
        """The number fed for times t: float32 from a jax array, float64 from a host array."""
        return LogSnr()(schedule, t) / -4


INDEX = Index()

TIME_INPUTS = {"index": Index, "log_snr": LogSnr, "scaled": Scaled, "quarter_log_sigma": QuarterLogSigma}


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """A network and its prediction as denoise(params, noisy, level, time, condition) -> (clean, noise).

    Hashable if the network is (a module's bound `apply`, a module-level function), so that it may be a static
    argument: equal denoisers share one compiled program.
    """

    network: Callable
    prediction: Any

    def __call__(self, params, noisy, level: Level, time, condition):
        """Estimates of clean and noise [B, ...], in noisy's dtype.

        Args:
          params: the network's parameters.
          noisy: [B, ...].
          level: of noisy, [] or [B].
          time: the number fed to the network [B].
          condition: what the network takes beside them.

        Raises:
          UserError: the network's output has another shape than its input.
        """
        output = self.network(params, self.prediction.inputs(noisy, level), time, condition)
        if output.shape != noisy.shape:
            raise UserError(f"network: output {list(output.shape)} for an input {list(noisy.shape)}: they must be equal")
        return self.prediction.to_hub(output.astype(noisy.dtype), noisy, level)


def denoiser(network: Callable, prediction) -> Denoiser:
    """network(params, noisy [B, ...], time [B], condition) -> output [B, ...], read as `prediction`."""
    return Denoiser(network, prediction)
