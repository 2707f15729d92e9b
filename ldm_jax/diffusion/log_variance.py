"""A learned scale of the loss at each time: loss / exp(u) + u, whose least is at u = ln(mean loss). Training only; no sampler reads it.

The network's gradients from all times then come in one size, whatever the weight. Its parameters stand beside the network's and are
trained, sharded, averaged and saved with them: one tree, one rule; held-out losses are told without it.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ldm_jax.diffusion.times import bin_at, bins_of, check_bins


@dataclasses.dataclass(frozen=True)
class Without:
    """The loss as it is."""

    learned = False

    def check_schedule(self, schedule) -> None:
        """Any schedule will do."""

    def init(self, schedule) -> dict:
        """No parameters."""
        return {}

    def __call__(self, params, loss, t, schedule):
        """(loss, loss), both [B]."""
        return loss, loss

    def told(self, params) -> dict:
        """No metrics."""
        return {}


@dataclasses.dataclass(frozen=True)
class Learned:
    """One number u for each time: `learn_logvar` of the LDM code; of a function of the level, arXiv 2312.02696, equation 21.

    bins: equal parts of the schedule that share a number; 0 is one for each training time, or 100 where time is real. The loss is that
    with the level's weight.
    """

    start: float = 0.0
    bins: int = 0

    learned = True

    def check_schedule(self, schedule) -> None:
        """Raises UserError for bins that do not divide the schedule's times."""
        check_bins(schedule, self.bins, "learned log-variance")

    def init(self, schedule) -> dict:
        """{"u": float32 [bins]}."""
        return {"u": jnp.full(bins_of(schedule, self.bins), self.start, jnp.float32)}

    def __call__(self, params, loss, t, schedule) -> tuple[jax.Array, jax.Array]:
        """(loss / exp(u), that plus u), both [B], of losses [B] at times t [B]. The first part alone moves the network."""
        u = params["u"][bin_at(schedule, t, len(params["u"]))]
        scaled = loss * jnp.exp(-u)
        return scaled, scaled + u

    def told(self, params) -> dict:
        """The mean of u over times, float32 []."""
        return {"log_variance": jnp.mean(params["u"])}


LOG_VARIANCES = {"none": Without, "learned": Learned}
