"""Where a table passes from one network to a second: an ensemble of experts by noise level (arXiv 2211.01324; SDXL, 2307.01952)."""

import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.diffusion.table import Table


def handover_row(table: Table, schedule, share: float) -> int:
    """The first row of the second network: the first that opens a step at or below the level where `share` of the way is done.

    The way is the schedule's time, from its last to clean data: with T = 1000 and share 0.8 the second network gets the times
    below 200, as diffusers' denoising_end and denoising_start count them. A step of two evaluations is never divided.

    Raises:
      UserError: a share outside (0, 1), or one that leaves either network no row.
    """
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise UserError(f"handover={share!r}: expected a number between 0 and 1, the share of the way that the base goes (published: 0.8)")
    clean = schedule.first if schedule.origin is None else schedule.origin
    time = clean + (1 - share) * (schedule.last - clean)
    level = schedule.level_at(np.clip(time, schedule.first, schedule.last))
    with np.errstate(divide="ignore"):
        ratios, limit = table.level[:, 1] / table.level[:, 0], level.sigma / level.alpha
    rows = np.flatnonzero(table.opens & (ratios <= limit * (1 + 1e-9)))
    if not len(rows) or rows[0] == 0:
        raise UserError(f"handover={share}: of {table.rows} rows it leaves {'the refiner' if not len(rows) else 'the base'} none; "
                        "take more steps, or another handover")
    return int(rows[0])
