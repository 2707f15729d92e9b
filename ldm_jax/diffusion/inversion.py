"""Inversion: from clean data up to the noise that a deterministic sampler would make it of (arXiv 2010.02502, section 4.3).

The path of a grid is walked backwards, from the schedule's lowest level, which stands for clean data (the difference is of
the second order in its sigma), to the grid's first.
"""

import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.diffusion.checks import check
from ldm_jax.diffusion.grids import path_of
from ldm_jax.diffusion.path import Path, fed
from ldm_jax.diffusion.prediction import INDEX
from ldm_jax.diffusion.sample import State, at
from ldm_jax.diffusion.table import Row, Table, make

SAME = 1e-12
"""Levels whose sigma/alpha differ by less are one: what a grid's arithmetic makes of the schedule's lowest."""


def inversion_table(schedule, steps: int, grid="trailing", *, time_input=INDEX) -> Table:
    """The rows of DDIM inversion over a grid; order 1, one evaluation a row.

    A grid that ends in clean data has as many rows as steps: its last level is replaced by the schedule's lowest (one fewer
    where it has reached that itself). Sampling the result with the same grid brings the data back, to the order of the steps.

    Args:
      schedule, steps, grid, time_input: as in `samplers.table_for`.

    Raises:
      UserError: as the grid; 1 step that has nowhere to go.
    """
    path = path_of(schedule, steps, grid)
    if path.end[1] == 0:
        lowest = schedule.level_at(schedule.first)
        higher = path.ratios[:-1] > lowest.sigma / lowest.alpha * (1 + SAME)
        if not higher.any():
            raise UserError(f"inversion: {steps} step of this grid starts at the schedule's lowest level; take more steps")
        path = Path(np.append(path.alpha[:-1][higher], lowest.alpha), np.append(path.sigma[:-1][higher], lowest.sigma),
                    np.append(path.time[:-1][higher], schedule.first), path.at)
    return invert(fed(path, schedule, time_input))


def invert(path: Path) -> Table:
    """The rows from the path's last level up to its first: x+ = b D + t E, the estimates those of the level that is left.

    Raises:
      UserError: a path that ends in clean data, where there is no noise to follow.
    """
    if path.end[1] == 0:
        raise UserError("inversion: the path must end at a level with noise; make it with end='lowest'")
    points = list(zip(path.alpha.tolist(), path.sigma.tolist(), np.asarray(path.time, float).tolist()))[::-1]
    rows = [Row((a, s), time, (b, t), clean=b, noise=t) for (a, s, time), (b, t, _) in zip(points, points[1:])]
    return check(make("inversion", rows, "noise"), path.end, path.begin)


def start_inversion(table: Table, clean, keys) -> State:
    """The state before row 0: data clean [B, ...] at the lowest level, without a draw; keys [B], which nothing reads."""
    return at(np.float32(table.level[0, 0]) * clean, keys)
