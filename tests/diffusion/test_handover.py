"""Where a table is handed to a second network, against the rule that diffusers and SDXL have. No network."""

import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.diffusion.continuous import Edm, Flow
from ldm_jax.diffusion.handover import handover_row
from ldm_jax.diffusion.samplers import table_for
from ldm_jax.diffusion.schedule import cosine, scaled_linear

SD = scaled_linear()


@pytest.mark.parametrize("grid", ["trailing", "leading", {"name": "leading", "offset": 0}, "linspace"])
@pytest.mark.parametrize("steps, share", [(10, 0.8), (25, 0.8), (50, 0.8), (40, 0.5), (30, 0.9), (7, 0.3)])
def test_the_base_has_the_times_that_diffusers_gives_it(grid, steps, share):
    """Catches a share counted in rows, and a time that falls on the limit and goes to the wrong network."""
    table = table_for(SD, steps, "ddim", grid)
    base = np.sum(table.time >= round(1000 - share * 1000))  # StableDiffusionXLPipeline, denoising_end
    assert handover_row(table, SD, share) == base


def test_a_step_is_not_divided():
    """Catches a refiner that is given the second half of a step that the base began."""
    table = table_for(SD, 12, "heun", "karras")
    rows = []
    for share in np.linspace(0.3, 0.95, 40):
        row, limit = handover_row(table, SD, float(share)), 999 - 1000 * share
        assert table.opens[row]
        assert (table.time[:row][table.opens[:row]] > limit).all() and (table.time[row:][table.opens[row:]] <= limit).all()
        rows.append(row)
    assert len(set(rows)) > 3


@pytest.mark.parametrize("schedule, grid", [(Flow(), "trailing"), (Edm(), "karras"), (cosine(zero_terminal=True), "trailing")])
def test_other_clocks(schedule, grid):
    """Catches a limit that only discrete schedules with alpha above 0 have; of a flow the share is that of its time."""
    rows = [handover_row(table_for(schedule, 20, "ddim", grid), schedule, share) for share in (0.2, 0.5, 0.8)]
    assert rows == sorted(set(rows)) and rows[0] > 0
    if isinstance(schedule, Flow):
        assert rows == [4, 10, 16]


@pytest.mark.parametrize("share, says", [(0.0, "between 0 and 1"), (1.0, "between 0 and 1"), (1.2, "between 0 and 1"), ("0.8", "between"),
                                         (float("nan"), "between"), (True, "between"), (0.999, "leaves the refiner none")])
def test_a_share_is_inside(share, says):
    """Catches a share that leaves one network nothing to do, which would be ignored in silence."""
    with pytest.raises(UserError, match=f"handover={share}|handover='0.8'") as error:
        handover_row(table_for(SD, 10, "ddim", "trailing"), SD, share)
    assert says in str(error.value)
    with pytest.raises(UserError, match="leaves the base none"):
        handover_row(table_for(SD, 10, "ddim", "trailing", strength=0.1), SD, 0.8)
