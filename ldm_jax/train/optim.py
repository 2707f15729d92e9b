"""Optimizers and learning rates, chosen by name; exponential moving averages of parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from ldm_jax.core.errors import UserError
from ldm_jax.core.trees import map_with_path


def constant(peak: float, warmup: int = 0):
    """`peak` after a linear rise over `warmup` updates."""
    if warmup < 0:
        raise UserError(f"warmup={warmup}: expected 0 or more updates")
    return optax.join_schedules([optax.linear_schedule(0.0, peak, max(warmup, 1)), optax.constant_schedule(peak)], [warmup])


def cosine(peak: float, steps: int, warmup: int = 0, end: float = 0.0):
    """A linear rise over `warmup` updates, then half a cosine down to `end` at update `steps`."""
    if not 0 <= warmup < steps:
        raise UserError(f"warmup={warmup}: expected 0 <= warmup < steps={steps}")
    return optax.warmup_cosine_decay_schedule(0.0 if warmup else peak, peak, warmup, steps, end)


LEARNING_RATES = {"constant": constant, "cosine": cosine}


def adam(learning_rate, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8):
    """Adam (arXiv 1412.6980) with the bias corrections."""
    _check_moments(b1, b2, eps)
    return optax.adam(learning_rate, b1, b2, eps)


def adamw(learning_rate, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.01, decay: str = "kernels"):
    """AdamW (arXiv 1711.05101). decay: "kernels" (of convolutions and linear layers) or "all" (torch's default, as in the LDM code)."""
    _check_moments(b1, b2, eps)
    if decay not in ("kernels", "all"):
        raise UserError(f"decay={decay!r}: expected one of kernels, all")
    mask = None if decay == "all" else lambda params: map_with_path(lambda path, leaf: path.endswith("kernel"), params)
    if weight_decay < 0:
        raise UserError(f"weight_decay={weight_decay}: expected a number of 0 or above")
    return optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=mask)


def _check_moments(b1: float, b2: float, eps: float) -> None:
    if not (0 <= b1 < 1 and 0 <= b2 < 1 and eps >= 0):
        raise UserError(f"b1={b1}, b2={b2}, eps={eps}: expected decays from 0 to below 1 and an eps of 0 or above")


OPTIMIZERS = {"adam": adam, "adamw": adamw}


def finished(optimizer: optax.GradientTransformation, clip_norm: float, accumulate: int) -> optax.GradientTransformation:
    """Clipping by the global norm (0: none) before the optimizer, and one update every `accumulate` steps from the mean gradient."""
    if clip_norm < 0 or accumulate < 1:
        raise UserError(f"config.clip_norm={clip_norm}, config.accumulate={accumulate}: expected clip_norm >= 0 and accumulate >= 1")
    if clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)
    return optax.MultiSteps(optimizer, accumulate).gradient_transformation() if accumulate > 1 else optimizer


@dataclasses.dataclass(frozen=True)
class Average:
    """An exponential moving average of parameters: decay at update n is min(decay, (1 + n) / (10 + n)), as in the LDM code.

    decay 0 keeps no average. With accumulation, n counts optimizer updates, not steps.
    """

    decay: float = 0.9999
    accumulate: int = 1

    def __post_init__(self):
        if not 0 <= self.decay < 1:
            raise UserError(f"config.ema.decay={self.decay}: expected 0 <= decay < 1 (0: no average)")

    def start(self, params):
        return jax.tree.map(jnp.array, params) if self.decay else None

    def update(self, average, params, step: jax.Array):
        """The average after step `step` (counted from 0)."""
        if not self.decay:
            return None
        n = ((step + 1) // self.accumulate).astype(jnp.float32)
        decay = jnp.minimum(self.decay, (1 + n) / (10 + n))
        decay = jnp.where((step + 1) % self.accumulate == 0, decay, 1.0)
        return jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), average, params)
