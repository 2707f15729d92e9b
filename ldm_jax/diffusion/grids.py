"""Sampling grids: which times are evaluated. grid(schedule, steps) -> float64 [steps], strictly decreasing, in [0, T-1].

The step from the last time to clean data, (alpha, sigma) = (1, 0), belongs to the sampler and is not listed.
"""

import math

import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.diffusion.schedule import Schedule


def leading(schedule: Schedule, steps: int, offset: int = 1) -> np.ndarray:
    """Multiples of floor(T / steps), plus `offset` (1: LDM and Stable Diffusion; 0: the first LDM releases in diffusers).

    Never starts at T-1: with 10 of 1000 steps the first time is 901.

    Raises:
      UserError: the offset pushes the first time past T-1; 1 step (it would start at time `offset`, where next to
        nothing is noise, and return its input).
    """
    _check_steps(schedule, steps, "leading")
    if steps == 1 and schedule.steps > 1:
        raise UserError(f"grid 'leading': 1 step would start at time {offset}, where hardly any noise is left; choose 'trailing'")
    times = np.arange(steps)[::-1] * (schedule.steps // steps) + offset
    if offset < 0 or times[0] > schedule.steps - 1:
        raise UserError(f"grid 'leading': {steps} steps with offset={offset} start at time {times[0]}, but the times are "
                        f"0 .. {schedule.steps - 1}; choose another offset, fewer steps, or 'trailing'")
    return times.astype(np.float64)


def trailing(schedule: Schedule, steps: int) -> np.ndarray:
    """round(T - k T / steps) - 1, k = 0 .. steps-1: always starts at T-1 (arXiv 2305.08891, section 3.3)."""
    _check_steps(schedule, steps, "trailing")
    return np.round(schedule.steps - np.arange(steps) * schedule.steps / steps) - 1


def linspace(schedule: Schedule, steps: int) -> np.ndarray:
    """Evenly from T-1 to 0, both ends included, not rounded (the Euler family of diffusers); 1 step is T-1."""
    _check_steps(schedule, steps, "linspace")
    return np.linspace(schedule.steps - 1, 0, steps)


def karras(schedule: Schedule, steps: int, rho: float = 7.0) -> np.ndarray:
    """sigma/alpha to the power 1/rho evenly spaced from its value at T-1 to that at 0 (arXiv 2206.00364, equation 5).

    The times are real, not rounded to integers.

    Raises:
      UserError: rho not a finite number above 0.
    """
    _check_steps(schedule, steps, "karras")
    if not (math.isfinite(rho) and rho > 0):
        raise UserError(f"grid 'karras': rho={rho}: expected a number above 0 (published: 7)")
    ratios = np.exp(-schedule.lambdas()[[-1, 0]])
    ramp = np.linspace(ratios[0] ** (1 / rho), ratios[1] ** (1 / rho), steps) ** rho
    return schedule.time_at(np.clip(-np.log(ramp), *schedule.lambdas()[[-1, 0]]))


def after(times: np.ndarray, strength: float) -> np.ndarray:
    """The times left for image-to-image: the last floor(strength * steps) of a grid.

    The image is noised to the level of the first time returned (diffusers' convention; CompVis noises one index higher).

    Raises:
      UserError: strength outside (0, 1], or so small that no step is left.
    """
    if not (math.isfinite(strength) and 0 < strength <= 1):
        raise UserError(f"strength={strength}: expected a number above 0 and up to 1")
    kept = int(len(times) * strength + 1e-9)
    if not kept:
        raise UserError(f"strength={strength} of {len(times)} steps leaves no step; give at least {1 / len(times):.3g} or more steps")
    return times[len(times) - kept:]


def _check_steps(schedule: Schedule, steps: int, name: str) -> None:
    if isinstance(steps, bool) or steps != int(steps) or steps < 1:
        raise UserError(f"grid '{name}': steps={steps}: expected a whole number, at least 1")
    if steps > schedule.steps:
        raise UserError(f"grid '{name}': {steps} steps, but the network was trained at {schedule.steps} times: "
                        f"some would repeat; give at most {schedule.steps}")


GRIDS = {"leading": leading, "trailing": trailing, "linspace": linspace, "karras": karras}
