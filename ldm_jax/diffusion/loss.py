"""One training example's loss: draw a time and noise, corrupt, predict, compare.

    noisy = alpha_t clean + sigma_t noise;  loss = weight(level) * mean over h, w, c of |output - target|^p
    what is descended: share_t * (loss / exp(u_t) + u_t), u a learned log-variance (0 without), share 1 but for importance sampling
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import key_for, normal_for
from ldm_jax.core.types import struct
from ldm_jax.diffusion.log_variance import Without
from ldm_jax.diffusion.prediction import corrupt


@dataclasses.dataclass(frozen=True)
class L2:
    """Squared error."""

    def __call__(self, error: jax.Array) -> jax.Array:
        """Mean over all axes but the first: [B, ...] -> [B] float32."""
        return jnp.mean(jnp.square(error.astype(jnp.float32)), axis=tuple(range(1, error.ndim)))


@dataclasses.dataclass(frozen=True)
class L1:
    """Absolute error."""

    def __call__(self, error: jax.Array) -> jax.Array:
        """Mean over all axes but the first: [B, ...] -> [B] float32."""
        return jnp.mean(jnp.abs(error.astype(jnp.float32)), axis=tuple(range(1, error.ndim)))


@dataclasses.dataclass(frozen=True)
class Huber:
    """2 c (sqrt(e^2 + c^2) - c): e^2 for errors e far below c, 2 c |e| far above (arXiv 2403.16728: the pseudo-Huber loss, with the

    factor of the published trainers: diffusers' scheduled-Huber scripts and sd-scripts, both with c = 0.1).

    Raises:
      UserError: c not a finite number above 0.
    """

    c: float = 0.1

    def __post_init__(self):
        if not (math.isfinite(self.c) and self.c > 0):
            raise UserError(f"huber: c={self.c}: expected a number above 0 (published: 0.1)")

    def __call__(self, error: jax.Array) -> jax.Array:
        """Mean over all axes but the first: [B, ...] -> [B] float32."""
        square = jnp.square(error.astype(jnp.float32))
        value = 2 * self.c * square / (jnp.sqrt(square + self.c**2) + self.c)  # the same, without the difference of equal numbers
        return jnp.mean(value, axis=tuple(range(1, error.ndim)))


LOSSES = {"l2": L2, "l1": L1, "huber": Huber}


@dataclasses.dataclass(frozen=True)
class Objective:
    """The choices that define a diffusion loss. Frozen and hashable.

    schedule from SCHEDULES, prediction from PREDICTIONS, time_input from TIME_INPUTS, times from TIMES, weight from
    WEIGHTS, loss from LOSSES, log_variance from LOG_VARIANCES. offset_noise: the deviation of the shift that each channel's noise gets.
    """

    schedule: Any
    prediction: Any
    time_input: Any
    times: Any
    weight: Any
    loss: Any
    log_variance: Any = Without()
    offset_noise: float = 0.0


@struct
class Losses:
    """Per example [B] float32: the loss to train on, the same without the level's weight, and the times."""

    weighted: jax.Array
    unweighted: jax.Array
    t: jax.Array


def draw(objective: Objective, key: jax.Array, examples: jax.Array, shape: tuple[int, ...], memory=None):
    """The times [B] and the noise float32 [B, *shape] of one batch.

    With offset noise s the noise is n + s o, one draw o for each channel of an example: covariance 1 + s^2 on the diagonal, s^2 between
    two places of a channel, 0 between channels (crosslabs.org, "Diffusion with offset noise"; `noise_offset` of diffusers' scripts). It
    is the network's target too. n is the same draw with and without.

    Args:
      objective: the choices.
      key: the step's typed key.
      examples: global positions in the batch, int [B]; example i's draws depend on the key and on examples[i] alone (and, with times that
        remember, on their memory).
      shape: of one clean example, (h, w, c).
      memory: of the objective's times; see times.py.
    """
    t = objective.times(key_for(key, "time", example=examples), examples, objective.schedule, memory)
    noise = normal_for(key_for(key, "noise", example=examples), shape)
    if objective.offset_noise:
        one = (1,) * (len(shape) - 1) + shape[-1:]
        noise = noise + objective.offset_noise * normal_for(key_for(key, "offset_noise", example=examples), one)
    return t, noise


def denoising_loss(objective: Objective, network: Callable, params, clean, condition, t, noise) -> Losses:
    """The loss of each example at given times and noise (arXiv 2006.11239, equation 14, for any prediction).

    Args:
      objective: the choices.
      network: network(params, noisy [B, ...], time [B] float32, condition) -> output [B, ...].
      params, condition: passed to the network.
      clean: data in unit-variance units [B, ...]; t: times [B]; noise: [B, ...].

    Raises:
      UserError: noise or output of another shape than clean.
    """
    level = objective.schedule.level(t)
    clean = clean.astype(jnp.float32)
    if noise.shape != clean.shape:
        raise UserError(f"noise: expected {list(clean.shape)} like clean, got {list(noise.shape)}")
    noisy = corrupt(clean, noise, level)
    output = network(params, objective.prediction.inputs(noisy, level), objective.time_input(objective.schedule, t), condition)
    if output.shape != clean.shape:
        raise UserError(f"network: output {list(output.shape)} for an input {list(clean.shape)}: they must be equal")
    unweighted = objective.loss(output.astype(jnp.float32) - objective.prediction.target(clean, noise, level))
    return Losses(objective.weight(level, objective.prediction) * unweighted, unweighted, t)


def descended(objective: Objective, losses: Losses, log_variance, memory) -> tuple[jax.Array, jax.Array, Any]:
    """What training descends, from the losses of the global batch in its order.

    Args:
      log_variance: parameters of the objective's log_variance ({} without); memory: of its times, as `draw` had it.

    Returns:
      (the loss of each example [B], what each counts [B] in a mean over all times, the memory after this batch). The times remember the
      part of a loss that moves the network: with the level's weight and the log-variance's scale, without the share.
    """
    schedule = objective.schedule
    scaled, loss = objective.log_variance(log_variance, losses.weighted, losses.t, schedule)
    share = objective.times.share(losses.t, schedule, memory)
    return share * loss, share, objective.times.update(losses.t, jax.lax.stop_gradient(scaled), schedule, memory)
