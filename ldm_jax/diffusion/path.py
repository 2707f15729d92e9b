"""A path: the levels that a sampler visits, and what the network is fed there."""

import dataclasses
from collections.abc import Callable

import numpy as np

from ldm_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Path:
    """Levels float64 [n + 1], the last one the path's end; `time` [n + 1], the schedule's or what is fed (see `fed`).

    at(ratio) -> (alpha, sigma, time): the point of any sigma / alpha, for methods that evaluate between two levels.

    Raises:
      UserError: fewer than two levels, levels at which sigma/alpha does not fall, sigma 0 before the end, or alpha 0
        after the start.
    """

    alpha: np.ndarray
    sigma: np.ndarray
    time: np.ndarray
    at: Callable

    def __post_init__(self):
        alpha, sigma = self.alpha, self.sigma
        if not (len(alpha) == len(sigma) == len(self.time) >= 2):
            raise UserError(f"path: {len(alpha)} alphas, {len(sigma)} sigmas, {len(self.time)} times; expected at least 2 of each")
        if not (np.isfinite(alpha).all() and np.isfinite(sigma).all() and alpha[0] >= 0 and (alpha[1:] > 0).all()
                and (sigma[:-1] > 0).all() and sigma[-1] >= 0):
            raise UserError("path: every alpha but the first must be above 0, and every sigma but the last")
        if not np.all(np.diff(self.ratios) < 0):
            raise UserError("path: sigma/alpha must fall from each level to the next")

    @property
    def ratios(self) -> np.ndarray:
        """sigma / alpha, float64 [n + 1]; infinite where alpha is 0."""
        with np.errstate(divide="ignore"):
            return self.sigma / self.alpha

    def steps(self):
        """(i, level, reach) of each step."""
        points = list(zip(self.alpha.tolist(), self.sigma.tolist()))
        return [(i, points[i], points[i + 1]) for i in range(len(points) - 1)]

    @property
    def begin(self) -> tuple[float, float]:
        """The first level."""
        return float(self.alpha[0]), float(self.sigma[0])

    @property
    def end(self) -> tuple[float, float]:
        """The last level, normally (1, 0)."""
        return float(self.alpha[-1]), float(self.sigma[-1])

    def between(self, ratio: float) -> tuple[tuple[float, float], float]:
        """(level, time) of the point with this sigma / alpha."""
        alpha, sigma, time = self.at(ratio)
        return (float(alpha), float(sigma)), float(time)

    def need_alpha(self, sampler: str) -> None:
        """Raises UserError if the path starts in pure noise, for samplers that divide by the first alpha."""
        if self.alpha[0] == 0:
            raise UserError(f"sampler '{sampler}': the path starts in pure noise (alpha = 0), where its first step is infinitely long; "
                            "choose ddim, euler, or one of the dpmpp family")


def on_schedule(schedule, times, end: str = "clean", level=None) -> Path:
    """The path over falling times of a schedule, then to clean data (1, 0), or with end="lowest" to its smallest time.

    Args:
      level: of the times, where a grid knows it better than `schedule.level_at(times)`; float64 [n] each.

    Raises:
      UserError: end="lowest" where the times have reached it already.
    """
    times = np.asarray(times, np.float64)
    level = schedule.level_at(times) if level is None else level
    last = (1.0, 0.0)
    if end == "lowest":
        final = schedule.level_at(schedule.first)
        last = (float(final.alpha), float(final.sigma))
        if level.sigma[-1] * last[0] <= last[1] * level.alpha[-1] * (1 + 1e-12):
            raise UserError("end='lowest': these times end at the schedule's smallest time themselves; write end='clean'")

    def at(ratio):
        found = schedule.level_of(ratio)
        return found.alpha, found.sigma, schedule.time_at(-np.log(ratio))

    return Path(np.append(level.alpha, last[0]), np.append(level.sigma, last[1]), np.append(times, schedule.first), at)


def fed(path: Path, schedule, time_input) -> Path:
    """The path with its times as the network is fed them."""
    def at(ratio):
        alpha, sigma, time = path.at(ratio)
        return alpha, sigma, time_input(schedule, np.float64(time))

    return dataclasses.replace(path, time=time_input(schedule, path.time), at=at)


def after(path: Path, strength: float) -> Path:
    """The part left for image-to-image: the last floor(strength * n) of n steps.

    The image is noised to the level of the first one (diffusers' convention; CompVis noises one index higher).

    Raises:
      UserError: strength outside (0, 1], or so small that no step is left.
    """
    if not (isinstance(strength, int | float) and 0 < strength <= 1):
        raise UserError(f"strength={strength!r}: expected a number above 0 and up to 1")
    steps = len(path.time) - 1
    kept = int(steps * strength + 1e-9)
    if not kept:
        raise UserError(f"strength={strength} of {steps} steps leaves no step; give at least {1 / steps:.3g} or more steps")
    first = steps - kept
    return dataclasses.replace(path, alpha=path.alpha[first:], sigma=path.sigma[first:], time=path.time[first:])
