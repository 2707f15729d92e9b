"""Sampling grids: at which levels the network is evaluated. grid(schedule, steps, own options) -> Path of `steps` steps.

`end` is where the last step goes: "clean", (alpha, sigma) = (1, 0), or "lowest", the level of the schedule's smallest
time (CompVis, and set_alpha_to_one=False or final_sigmas_type="sigma_min" in diffusers).
"""

import math
from typing import Literal

import numpy as np

from ldm_jax.core.choose import choose
from ldm_jax.core.errors import UserError
from ldm_jax.core.types import Level
from ldm_jax.diffusion.path import Path, on_schedule

End = Literal["clean", "lowest"]


def leading(schedule, steps: int, offset: int = 1, drop_lowest: bool = False, end: End = "clean") -> Path:
    """Multiples of floor(T / steps), plus `offset` (1: LDM and Stable Diffusion; 0: the first LDM releases in diffusers).

    Never starts at T-1: with 10 of 1000 steps the first time is 901.

    Args:
      drop_lowest: make one more multiple, of floor(T / (steps + 1)), and leave out the smallest (diffusers' DPM-Solver family).

    Raises:
      UserError: real time; the offset pushes the first time past T-1; 1 step (it would start at time `offset`, where
        next to nothing is noise, and return its input).
    """
    _whole_times(schedule, steps, "leading")
    if steps == 1 and schedule.steps > 1 and not drop_lowest:
        raise UserError(f"grid 'leading': 1 step would start at time {offset}, where hardly any noise is left; choose 'trailing'")
    more = int(drop_lowest)
    times = np.arange(more, steps + more)[::-1] * (schedule.steps // (steps + more)) + offset
    if offset < 0 or times[0] > schedule.steps - 1:
        raise UserError(f"grid 'leading': {steps} steps with offset={offset} start at time {times[0]}, but the times are "
                        f"0 .. {schedule.steps - 1}; choose another offset, fewer steps, or 'trailing'")
    return on_schedule(schedule, times, end)


def trailing(schedule, steps: int, shift: float = 1.0, end: End = "clean") -> Path:
    """round(T - k T / steps) - 1, k = 0 .. steps-1: always starts at T-1 (arXiv 2305.08891, section 3.3).

    Where time is real: evenly from the last time, so that the step to clean data is as long as the others.

    Args:
      shift: multiplies sigma / alpha at every time (arXiv 2403.03206, equation 23, for flows).

    Raises:
      UserError: a schedule whose time never shows clean data (edm); a shift that leaves the schedule.
    """
    if schedule.steps:
        _whole_times(schedule, steps, "trailing")
        times = np.round(schedule.steps - np.arange(steps) * schedule.steps / steps) - 1
    else:
        _check_steps(steps, "trailing")
        if schedule.origin is None:
            raise UserError("grid 'trailing': this schedule's time never reaches clean data; choose karras, exponential, beta or log_snr")
        times = schedule.last - np.arange(steps) * (schedule.last - schedule.origin) / steps
        if times[-1] < schedule.first:
            raise UserError(f"grid 'trailing': {steps} steps end at time {times[-1]:.4g}, below the schedule's {schedule.first:g}; "
                            "take fewer steps or 'linspace'")
    return on_schedule(schedule, _shifted(schedule, times, shift, "trailing"), end)


def linspace(schedule, steps: int, rounded: bool = False, drop_lowest: bool = False, levels: Literal["log", "linear"] = "log",
             shift: float = 1.0, end: End = "clean") -> Path:
    """Evenly from the last time to the first, both included (the Euler family of diffusers); 1 step is the last.

    Args:
      rounded: to integers (DDIM and PNDM in diffusers).
      drop_lowest: make one more and leave out the smallest (diffusers' DPM-Solver family).
      levels: between integer times, ln(sigma/alpha) is linear ("log"), or sigma/alpha (diffusers' Euler, Heun, LMS).
      shift: multiplies sigma / alpha at every time (arXiv 2403.03206, equation 23, for flows).

    Raises:
      UserError: rounded or linear where time is real; a shift that leaves the schedule.
    """
    if schedule.steps:
        _whole_times(schedule, steps, "linspace")
    elif rounded or levels == "linear":
        raise UserError("grid 'linspace': rounded=True and levels='linear' are for schedules of integer times")
    _check_steps(steps, "linspace")
    times = np.linspace(schedule.last, schedule.first, steps + int(drop_lowest))[:steps]
    times = _shifted(schedule, np.round(times) if rounded else times, shift, "linspace")
    if levels == "log":
        return on_schedule(schedule, times, end)
    known = schedule.level_at(np.arange(schedule.steps))
    _ratio(schedule, schedule.last, "linspace with levels='linear'")
    ratio = np.interp(times, np.arange(schedule.steps), known.sigma / known.alpha)
    return on_schedule(schedule, times, end, schedule.level_of(ratio))


def quadratic(schedule, steps: int, end: End = "clean") -> Path:
    """floor((k sqrt(0.8 T) / (steps - 1))^2) + 1, k = steps-1 .. 0: denser near the data (arXiv 2010.02502, appendix D.2).

    Starts at 0.8 T: the sample begins with noise that its level does not call pure.

    Raises:
      UserError: real time, or so many steps that times repeat.
    """
    _whole_times(schedule, steps, "quadratic")
    times = np.minimum((np.linspace(0, math.sqrt(0.8 * schedule.steps), steps) ** 2).astype(int) + 1, schedule.steps - 1)[::-1]
    if steps == 1 or np.any(np.diff(times) >= 0):
        raise UserError(f"grid 'quadratic': {steps} of {schedule.steps} times: some would repeat, or none lies high; choose another "
                        "number of steps, or 'trailing'")
    return on_schedule(schedule, times, end)


def legacy(schedule, steps: int) -> Path:
    """CompVis' DDIM and PLMS times: every floor(T / steps)-th from 1 on, seldom `steps` of them; ends at the lowest.

    30 of 1000 gives 31 steps, 400 gives 500. Counts at which the original indexes time T and fails (3, 9, 101 to 111, above
    500 ...) take T-1 there, once: above 500 there are 999.

    Raises:
      UserError: real time.
    """
    _whole_times(schedule, steps, "legacy")
    times = np.unique(np.minimum(np.arange(0, schedule.steps, schedule.steps // steps) + 1, schedule.steps - 1))[::-1]
    return on_schedule(schedule, times, "lowest")


def karras(schedule, steps: int, rho: float = 7.0, low: float | None = None, high: float | None = None, rounded: bool = False,
           end: End = "clean") -> Path:
    """sigma/alpha to the power 1/rho evenly spaced from its value at time `high` to that at `low` (arXiv 2206.00364, equation 5).

    Args:
      low, high: times of the schedule; None: its first and its last.
      rounded: round the times that the network is fed, not the levels (diffusers' DPM-Solver family).

    Raises:
      UserError: rho not a finite number above 0; a span that reaches pure noise.
    """
    if not (math.isfinite(rho) and rho > 0):
        raise UserError(f"grid 'karras': rho={rho}: expected a number above 0 (published: 7)")
    top, bottom = _span(schedule, steps, low, high, "karras")
    return _on_ratios(schedule, np.linspace(top ** (1 / rho), bottom ** (1 / rho), steps) ** rho, rounded, end)


def exponential(schedule, steps: int, low: float | None = None, high: float | None = None, rounded: bool = False,
                end: End = "clean") -> Path:
    """sigma/alpha in equal factors from time `high` to time `low`. Options and errors as in `karras`."""
    top, bottom = _span(schedule, steps, low, high, "exponential")
    return _on_ratios(schedule, np.geomspace(top, bottom, steps), rounded, end)


def beta(schedule, steps: int, a: float = 0.6, b: float = 0.6, low: float | None = None, high: float | None = None,
         rounded: bool = False, end: End = "clean") -> Path:
    """sigma/alpha at evenly spaced quantiles of the Beta(a, b) distribution (arXiv 2407.12173). Other options as in `karras`.

    Raises:
      UserError: a or b not above 0; a span that reaches pure noise.
    """
    from scipy.special import betaincinv

    if not (math.isfinite(a) and math.isfinite(b) and a > 0 and b > 0):
        raise UserError(f"grid 'beta': a={a}, b={b}: expected numbers above 0 (published: 0.6)")
    top, bottom = _span(schedule, steps, low, high, "beta")
    return _on_ratios(schedule, bottom + betaincinv(a, b, 1 - np.linspace(0, 1, steps)) * (top - bottom), rounded, end)


def log_snr(schedule, steps: int, low: float | None = None, high: float | None = None) -> Path:
    """ln(alpha/sigma) evenly from time `high` to time `low`, in `steps` equal steps; ends at `low` (arXiv 2206.00927, section 3.4).

    Raises:
      UserError: a span that reaches pure noise.
    """
    top, bottom = _span(schedule, steps, low, high, "log_snr")
    path = _on_ratios(schedule, np.geomspace(top, bottom, steps + 1), False, "clean")
    return Path(path.alpha[:-1], path.sigma[:-1], path.time[:-1], path.at)


def _on_ratios(schedule, ratios: np.ndarray, rounded: bool, end: str) -> Path:
    """The path over falling sigma/alpha."""
    bounds = np.log([_ratio(schedule, schedule.first, ""), ratios[0]])
    times = schedule.time_at(np.clip(-np.log(ratios), -bounds[1], -bounds[0]))
    return on_schedule(schedule, np.round(times) if rounded else times, end, Level(*_pair(schedule.level_of(ratios))))


def _pair(level) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(level.alpha), np.asarray(level.sigma)


def _span(schedule, steps: int, low: float | None, high: float | None, name: str) -> tuple[float, float]:
    """sigma/alpha at `high` and at `low`."""
    _check_steps(steps, name)
    if schedule.steps and steps > schedule.steps:
        raise UserError(_too_many(schedule, steps, name))
    top = _ratio(schedule, schedule.last if high is None else high, name)
    bottom = _ratio(schedule, schedule.first if low is None else low, name)
    if not top > bottom:
        raise UserError(f"grid '{name}': low={low} is not below high={high}")
    return top, bottom


def _ratio(schedule, time: float, name: str) -> float:
    level = schedule.level_at(time)
    if not level.alpha > 0:
        raise UserError(f"grid '{name}': the schedule starts in pure noise, where sigma/alpha is infinite; choose 'trailing' or "
                        "'linspace', or give it a time high below the last")
    return float(level.sigma / level.alpha)


def _shifted(schedule, times: np.ndarray, shift: float, name: str) -> np.ndarray:
    if shift == 1:
        return times
    if not (math.isfinite(shift) and shift > 0):
        raise UserError(f"grid '{name}': shift={shift}: expected a number above 0 (1: none)")
    level = schedule.level_at(times)
    with np.errstate(divide="ignore"):
        return schedule.time_at(np.log(level.alpha / level.sigma) - math.log(shift))


def _check_steps(steps: int, name: str) -> None:
    if isinstance(steps, bool) or steps != int(steps) or steps < 1:
        raise UserError(f"grid '{name}': steps={steps}: expected a whole number, at least 1")


def _whole_times(schedule, steps: int, name: str) -> None:
    _check_steps(steps, name)
    if not schedule.steps:
        raise UserError(f"grid '{name}': this schedule has no integer times; choose linspace, karras, exponential, beta or log_snr"
                        + (", or trailing" if schedule.origin is not None else ""))
    if steps > schedule.steps:
        raise UserError(_too_many(schedule, steps, name))


def _too_many(schedule, steps: int, name: str) -> str:
    return (f"grid '{name}': {steps} steps, but the network was trained at {schedule.steps} times: some would repeat; give at most "
            f"{schedule.steps}")


def path_of(schedule, steps: int, grid) -> Path:
    """The path of a grid, a name or a section dict(name=..., own keys) of GRIDS; its times are the schedule's. Errors as the grid's."""
    return choose(GRIDS, {"name": grid} if isinstance(grid, str) else grid, "grid", schedule=schedule, steps=steps)


GRIDS = {"leading": leading, "trailing": trailing, "linspace": linspace, "quadratic": quadratic, "legacy": legacy, "karras": karras,
         "exponential": exponential, "beta": beta, "log_snr": log_snr}
