"""One training example's loss: draw a time and noise, corrupt, predict, compare.

    noisy = alpha_t clean + sigma_t noise;  loss = weight(level) * mean over h, w, c of |output - target|^p
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import key_for, normal_for
from ldm_jax.core.types import struct
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


LOSSES = {"l2": L2, "l1": L1}


@dataclasses.dataclass(frozen=True)
class Objective:
    """The choices that define a diffusion loss. Frozen and hashable.

    schedule from SCHEDULES, prediction from PREDICTIONS, time_input from TIME_INPUTS, times from TIMES, weight from
    WEIGHTS, loss from LOSSES.
    """

    schedule: Any
    prediction: Any
    time_input: Any
    times: Any
    weight: Any
    loss: Any


@struct
class Losses:
    """Per example [B] float32: the loss to train on, the same without the level's weight, and the times drawn int32."""

    weighted: jax.Array
    unweighted: jax.Array
    t: jax.Array


def draw(objective: Objective, key: jax.Array, examples: jax.Array, shape: tuple[int, ...]):
    """The times int32 [B] and the noise float32 [B, *shape] of one batch.

    Args:
      objective: the choices.
      key: the step's typed key.
      examples: global positions in the batch, int [B]; example i's draws depend on the key and on examples[i] alone.
      shape: of one clean example, (h, w, c).
    """
    t = objective.times(key_for(key, "time", example=examples), examples, objective.schedule)
    return t, normal_for(key_for(key, "noise", example=examples), shape)


def denoising_loss(objective: Objective, network: Callable, params, clean, condition, t, noise) -> Losses:
    """The loss of each example at given times and noise (arXiv 2006.11239, equation 14, for any prediction).

    Args:
      objective: the choices.
      network: network(params, noisy [B, ...], time [B] float32, condition) -> output [B, ...].
      params, condition: passed to the network.
      clean: data in unit-variance units [B, ...]; t: int [B]; noise: [B, ...].

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
