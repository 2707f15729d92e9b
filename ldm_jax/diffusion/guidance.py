"""Guidance: from denoise(params, noisy, level, time, condition) to the same with the row's guidance weights [G] added.

A guidance is a frozen object with `terms` (G, the columns of the table that it reads) and a call that wraps a
denoiser. Being hashable it is part of the compiled program: guidance off never pays for two evaluations.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax.core.errors import UserError
from ldm_jax.core.types import struct


@struct
class Guided:
    """The condition of a guided sample: what is `given`, and the `null` to step away from, of one structure."""

    given: Any
    null: Any


@dataclasses.dataclass(frozen=True)
class Off:
    """No guidance: one evaluation a row. Takes a plain condition."""

    terms = 0

    def __call__(self, denoise):
        """denoise, with a sixth argument that it does not read."""
        return lambda params, noisy, level, time, condition, weights: denoise(params, noisy, level, time, condition)


@dataclasses.dataclass(frozen=True)
class ClassifierFree:
    """uncond + w (cond - uncond) (arXiv 2207.12598, equation 6, with w = 1 + its w): w = 1 is off. Takes a `Guided`.

    One call of the network on 2 B examples, the null ones first. Applied to the pair (clean, noise): every prediction
    is affine in it at fixed noisy and the two weights add to 1, so guiding the output gives the same numbers.
    """

    terms = 1

    def __call__(self, denoise):
        """The guided denoiser. Raises UserError at trace time for a condition that is not a Guided of equal parts."""
        def guided(params, noisy, level, time, condition, weights):
            both = _concatenated(condition, noisy.shape[0])
            clean, noise = denoise(params, jnp.concatenate([noisy, noisy]), _twice(level), _twice(time), both)
            return _step_away(clean, weights[0]), _step_away(noise, weights[0])

        return guided


OFF = Off()

GUIDANCE = {"off": Off, "classifier_free": ClassifierFree}


def for_weight(weight: float):
    """(guidance, columns) for one weight: Off and no column at 1, ClassifierFree and its column otherwise."""
    return (OFF, ()) if weight == 1 else (ClassifierFree(), (weight,))


def _twice(tree):
    return jax.tree.map(lambda x: x if jnp.ndim(x) == 0 else jnp.concatenate([x, x]), tree)


def _step_away(pair, weight):
    null, given = jnp.split(pair, 2)
    return null + weight * (given - null)


def _concatenated(condition, batch: int):
    """[null, given] on the batch axis, leaf by leaf."""
    if not isinstance(condition, Guided):
        raise UserError(f"classifier-free guidance: expected Guided(given, null), got {type(condition).__name__}; "
                        "a model without a null condition can only be sampled with guidance 1")
    if jax.tree.structure(condition.given) != jax.tree.structure(condition.null):
        raise UserError("classifier-free guidance: the condition and its null have different parts "
                        f"({jax.tree.structure(condition.given)} and {jax.tree.structure(condition.null)})")
    for given, null in zip(jax.tree.leaves(condition.given), jax.tree.leaves(condition.null)):
        if given.shape != null.shape or given.shape[0] != batch:
            raise UserError(f"classifier-free guidance: expected condition and null of one shape [B={batch}, ...], "
                            f"got {list(given.shape)} and {list(null.shape)}")
    return jax.tree.map(lambda null, given: jnp.concatenate([null, given]), condition.null, condition.given)
