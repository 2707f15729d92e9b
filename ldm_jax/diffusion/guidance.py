"""Guidance: from denoise(params, noisy, level, time, condition) to the same with the row's guidance weights [G] added.

A guidance is a frozen object with `terms` (G, the columns of the table that it reads) and a call that wraps a
denoiser. Being hashable it is part of the compiled program: guidance off never pays for two evaluations. The weights
are data; guiding.py makes their columns, and names the guidances for a config.

Stepping away is one formula for three guidances, worse + w (better - worse), w = 1 off; they differ in what is worse: no
condition, a weaker network, or the same network with its attention disturbed. Guidance acts on the pair (clean, noise):
every prediction is affine in it at fixed noisy and the weights add to 1, so guiding the output gives the same numbers.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ldm_jax.core.errors import UserError
from ldm_jax.core.types import Level, struct
from ldm_jax.diffusion.prediction import over


@struct
class Guided:
    """The condition of a guided sample: what is `given`, and what the worse side is told, `null` (or a negative condition).

    parts: of a condition of several parts the same of each, for those who weigh them one by one (`Partials`); no guidance reads them.
    """

    given: Any
    null: Any
    parts: tuple["Guided", ...] | None = None


@struct
class Partials:
    """The condition of `EachPart`: told nothing, `null`, and told some of it, `told`, one condition a weight."""

    null: Any
    told: tuple


@struct
class Labelled:
    """The condition of classifier guidance: what the denoiser is `told` (what its own guidance takes), and `label` [B]."""

    told: Any
    label: Any


@dataclasses.dataclass(frozen=True)
class Off:
    """No guidance: one evaluation a row. Takes a plain condition."""

    terms: ClassVar[int] = 0

    def __call__(self, denoise):
        """denoise, with a sixth argument that it does not read."""
        return lambda params, noisy, level, time, condition, weights: denoise(params, noisy, level, time, condition)


@dataclasses.dataclass(frozen=True)
class _StepAway:
    """worse + w (better - worse), two evaluations a row. `rescaled`: a prediction; see `rescale`, whose phi is a second weight."""

    rescaled: Any = None

    @property
    def terms(self) -> int:
        """Weights a row: w, and phi where it rescales."""
        return 1 if self.rescaled is None else 2

    def __call__(self, denoise):
        """The guided denoiser. Raises UserError at trace time for a condition that is not what the class says."""
        def guided(params, noisy, level, time, condition, weights):
            better, worse = self.sides(denoise, params, noisy, level, time, condition)
            pair = tuple(w + weights[0] * (b - w) for b, w in zip(better, worse))
            return pair if self.rescaled is None else rescale(self.rescaled, pair, better, noisy, level, weights[1])

        return guided


@dataclasses.dataclass(frozen=True)
class ClassifierFree(_StepAway):
    """uncond + w (cond - uncond) (arXiv 2207.12598, equation 6, with w = 1 + its w): w = 1 is off. Takes a `Guided`.

    One call of the network on 2 B examples, the null ones first. A negative condition stands in the null's place.
    """

    def sides(self, denoise, params, noisy, level, time, condition):
        """((clean, noise) with the condition, the same without)."""
        both = _concatenated(condition, noisy.shape[0])
        pair = denoise(params, _repeated(noisy), _repeated(level), _repeated(time), both)
        null, given = zip(*(jnp.split(part, 2) for part in pair))
        return given, null


@dataclasses.dataclass(frozen=True)
class EachPart:
    """null + sum_i k_i (told_i - null), a weight for each of `count` conditions. Takes a `Partials`.

    guiding.FromParts says which conditions, and the k of its weights. One call of the network on (count + 1) B examples, the null ones
    first.
    """

    count: int

    @property
    def terms(self) -> int:
        """Weights a row: one a condition."""
        return self.count

    def __call__(self, denoise):
        """The guided denoiser. Raises UserError at trace time for a condition that is not as many of one shape."""
        def guided(params, noisy, level, time, condition, weights):
            _need(condition, Partials, "guidance of each part", "Partials(null, told)")
            if len(condition.told) != self.count:
                raise UserError(f"guidance of each part: {self.count} weights, and {len(condition.told)} conditions")
            found = []
            for told in condition.told:
                _check_pair("guidance of each part", told, condition.null, noisy.shape[0])
            every = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), condition.null, *condition.told)
            again = functools.partial(_repeated, times=self.count + 1)
            for part in denoise(params, again(noisy), again(level), again(time), every):
                null, *told = jnp.split(part, self.count + 1)
                found.append(null + sum(weights[i] * (one - null) for i, one in enumerate(told)))
            return tuple(found)

        return guided


@dataclasses.dataclass(frozen=True)
class Autoguidance(_StepAway):
    """guide + w (model - guide), the guide a smaller or less trained network (arXiv 2406.02507, equation 4).

    Takes a `Guided`, whose null is what the guide is told (published: the same condition), and params
    {"model": ..., "guide": ...}.

    Fields:
      guide: the guide's denoise(params, noisy, level, time, condition), hashable; of the same levels and times.
    """

    guide: Callable = None

    def sides(self, denoise, params, noisy, level, time, condition):
        """((clean, noise) of the model, the same of the guide)."""
        _need(condition, Guided, "autoguidance", "Guided(given, null): what the model is told, and what the guide is")
        return (denoise(params["model"], noisy, level, time, condition.given),
                self.guide(params["guide"], noisy, level, time, condition.null))


@dataclasses.dataclass(frozen=True)
class Perturbed(_StepAway):
    """perturbed + w (model - perturbed) (arXiv 2403.17377, equation 15, with w = 1 + its s). Takes a plain condition.

    Fields:
      perturbed: the same network's denoise with its self-attention maps replaced by the identity in chosen places; it is
        given the same params and condition.
    """

    perturbed: Callable = None

    def sides(self, denoise, params, noisy, level, time, condition):
        """((clean, noise) as it is, the same disturbed)."""
        return (denoise(params, noisy, level, time, condition), self.perturbed(params, noisy, level, time, condition))


@dataclasses.dataclass(frozen=True)
class Classifier:
    """The gradient of a classifier of noisy data (arXiv 2105.05233, algorithm 2; 2011.13456, equation 14): with g = grad_x log p(y | x),

    E' = E - sigma w g and D' = D + (sigma^2 / alpha) w g, which keeps x = alpha D + sigma E; w = 1 samples from p(x | y), 0 is
    off. Where alpha is 0 the point says nothing of the data, nor of y: nothing is added.

    Takes a `Labelled` and params {"model": ..., "guide": the classifier's}.

    Fields:
      log_probability: log_probability(params, noisy [B, ...], time [B], label [B]) -> [B], hashable; example i's depends on
        noisy[i] alone.
      under: the guidance of the denoiser itself, whose weights follow; Off, or ClassifierFree for both together.
    """

    log_probability: Callable
    under: Any = Off()

    @property
    def terms(self) -> int:
        """Weights a row: the classifier's scale, then those of `under`."""
        return 1 + self.under.terms

    def __call__(self, denoise):
        """The guided denoiser."""
        inner = self.under(denoise)

        def guided(params, noisy, level, time, condition, weights):
            _need(condition, Labelled, "classifier guidance", "Labelled(told, label)")
            clean, noise = inner(params["model"], noisy, level, time, condition.told, weights[1:])

            def total(x):
                return jnp.sum(self.log_probability(params["guide"], x, time, condition.label))

            push = weights[0] * jax.grad(total)(noisy)
            alpha, sigma = over(level.alpha, noisy), over(level.sigma, noisy)
            known = alpha > 0
            push = jnp.where(known, push, 0.0)
            return clean + sigma**2 / jnp.where(known, alpha, 1.0) * push, noise - sigma * push

        return guided


@dataclasses.dataclass(frozen=True)
class Limited:
    """A guidance whose estimate is limited after it (limits.py): the weights and the condition are the guidance's own."""

    guidance: Any
    limit: Any

    @property
    def terms(self) -> int:
        """Weights a row: the guidance's."""
        return self.guidance.terms

    def __call__(self, denoise):
        """The guided and limited denoiser."""
        return self.limit(self.guidance(denoise))


OFF = Off()


def check_terms(guidance, columns: int) -> None:
    """Raises UserError unless there are as many columns of weights as the guidance reads."""
    if columns != guidance.terms:
        raise UserError(f"guidance '{type(guidance).__name__}' reads {guidance.terms} weights a row, got {columns}: build the table with "
                        "with_guidance(table, weight, ...)")


def rescale(prediction, guided, better, noisy, level: Level, phi):
    """The guided estimate with its deviation moved towards that of the conditional one (arXiv 2305.08891, equations 15 and 16).

    In the space of the network's output (as published, and as diffusers' rescale_noise_cfg): out (phi std(better) /
    std(guided) + 1 - phi), std per image over all axes but the batch. Where an image has none, nothing changes.

    Args:
      prediction: from PREDICTIONS, what the output means.
      guided, better: (clean, noise), all [B, ...].
      phi: 0 (off) to 1; published: 0.7.
    """
    out, good = (prediction.target(*pair, level) for pair in (guided, better))
    axes = tuple(range(1, noisy.ndim))
    own, wanted = (jnp.std(x, axis=axes, keepdims=True) for x in (out, good))
    factor = jnp.where(own > 0, wanted / jnp.where(own > 0, own, 1.0), 1.0)
    return prediction.to_hub(out * (phi * factor + 1 - phi), noisy, level)


def _repeated(tree, times: int = 2):
    return jax.tree.map(lambda x: x if jnp.ndim(x) == 0 else jnp.concatenate([x] * times), tree)


def _need(condition, kind, who: str, wanted: str) -> None:
    if not isinstance(condition, kind):
        raise UserError(f"{who}: expected {wanted}; got {type(condition).__name__}")


def _concatenated(condition, batch: int):
    """[null, given] on the batch axis, leaf by leaf."""
    if not isinstance(condition, Guided):
        raise UserError(f"classifier-free guidance: expected Guided(given, null), got {type(condition).__name__}; "
                        "a model without a null condition can only be sampled with guidance 1")
    _check_pair("classifier-free guidance", condition.given, condition.null, batch)
    return jax.tree.map(lambda null, given: jnp.concatenate([null, given]), condition.null, condition.given)


def _check_pair(who: str, given, null, batch: int) -> None:
    if jax.tree.structure(given) != jax.tree.structure(null):
        raise UserError(f"{who}: the condition and its null have different parts ({jax.tree.structure(given)} and "
                        f"{jax.tree.structure(null)})")
    for told, untold in zip(jax.tree.leaves(given), jax.tree.leaves(null)):
        if told.shape != untold.shape or told.shape[0] != batch:
            raise UserError(f"{who}: expected condition and null of one shape [B={batch}, ...], got {list(told.shape)} and "
                            f"{list(untold.shape)}")
