"""What a network predicts, and the hub (clean, noise) through which every kind converts.

Each kind knows three things: how its output becomes the pair (clean, noise), what its training target is, and by how
much a squared error in clean grows in its own space. N kinds cost N classes, not N squared conversions.
"""

import dataclasses
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
class Noise:
    """The network predicts the noise (arXiv 2006.11239, equation 14). Says nothing about clean where alpha is 0."""

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
class Clean:
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
class V:
    """The network predicts v = alpha * noise - sigma * clean (arXiv 2202.00512, appendix D).

    Dividing by alpha^2 + sigma^2 (1 for every schedule here) makes the way back exact at any scale.
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
        """(error here / error in clean)^2 at fixed noisy: ((alpha^2 + sigma^2) / sigma)^2, which is SNR + 1."""
        return ((level.alpha**2 + level.sigma**2) / level.sigma) ** 2


PREDICTIONS = {"noise": Noise, "clean": Clean, "v": V}


@dataclasses.dataclass(frozen=True)
class Index:
    """The network is fed the training time itself, 0 .. T-1, as the published models are; real times unrounded."""

    def __call__(self, schedule, t):
        """The number fed for times t: float32 from an int jax array, float64 from a host array."""
        return t.astype(jnp.float32) if isinstance(t, jax.Array) else np.asarray(t, np.float64)


@dataclasses.dataclass(frozen=True)
class LogSnr:
    """The network is fed ln(alpha / sigma): it means the same under another schedule."""

    def __call__(self, schedule, t):
        """The number fed for times t: float32 from an int jax array, float64 from a host array."""
        traced = isinstance(t, jax.Array)
        level = schedule.level(t) if traced else schedule.level_at(t)
        return (jnp if traced else np).log(level.alpha / level.sigma)


INDEX = Index()

TIME_INPUTS = {"index": Index, "log_snr": LogSnr}


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
        output = self.network(params, noisy, time, condition)
        if output.shape != noisy.shape:
            raise UserError(f"network: output {list(output.shape)} for an input {list(noisy.shape)}: they must be equal")
        return self.prediction.to_hub(output.astype(noisy.dtype), noisy, level)


def denoiser(network: Callable, prediction) -> Denoiser:
    """network(params, noisy [B, ...], time [B], condition) -> output [B, ...], read as `prediction`."""
    return Denoiser(network, prediction)
