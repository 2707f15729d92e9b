"""Sampling grids: published numbers, one step, and what is refused."""

import numpy as np
import pytest

from ldm_jax.core.choose import choose
from ldm_jax.core.errors import UserError
from ldm_jax.diffusion.grids import GRIDS, after, karras, leading, linspace, trailing
from ldm_jax.diffusion.schedule import cosine, scaled_linear

SD = scaled_linear()


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 30, 50, 333, 999])
@pytest.mark.parametrize("schedule", [SD, cosine()], ids=["sd", "cosine"])
def test_times_fall_strictly_inside_the_schedule(name, steps, schedule):
    """Catches repeated times by rounding, an extra time (float arange), -1 or T, and a count that is not the one asked for."""
    steps = max(steps, 2) if name == "leading" else steps  # leading refuses 1 step, see below
    times = GRIDS[name](schedule, steps)
    assert times.shape == (steps,) and times.dtype == np.float64
    assert times[0] <= 999 and times[-1] >= 0 and np.all(np.diff(times) < 0)


def test_published_times():
    """Catches LDM's + 1 forgotten, and trailing or linspace that does not start at T-1."""
    np.testing.assert_array_equal(leading(SD, 50), np.arange(981, 0, -20))
    np.testing.assert_array_equal(leading(SD, 10, offset=0), np.arange(900, -1, -100))
    np.testing.assert_array_equal(trailing(SD, 50), np.arange(999, 0, -20))
    np.testing.assert_array_equal(trailing(SD, 1000), np.arange(999, -1, -1))
    np.testing.assert_allclose(linspace(SD, 3), [999, 499.5, 0])
    for grid in (trailing, linspace, karras):
        np.testing.assert_allclose(grid(SD, 1), [999], rtol=1e-9)


def test_karras_is_even_in_the_root():
    """Catches a ramp in sigma instead of sigma/alpha, and rho applied only one way."""
    level = SD.level_at(karras(SD, 9))
    roots = (level.sigma / level.alpha) ** (1 / 7)
    np.testing.assert_allclose(np.diff(roots), (roots[-1] - roots[0]) / 8, rtol=1e-6)
    np.testing.assert_allclose((level.sigma / level.alpha)[[0, -1]], [14.6146, 0.02917], rtol=1e-3)


def test_after_keeps_the_last_steps():
    """Catches image-to-image that keeps the first steps, and 0.7 * 10 = 7 rounded down to 6."""
    times = trailing(SD, 10)
    np.testing.assert_array_equal(after(times, 0.7), times[3:])
    np.testing.assert_array_equal(after(times, 1.0), times)
    np.testing.assert_array_equal(after(trailing(SD, 100), 0.29), trailing(SD, 100)[71:])


@pytest.mark.parametrize("build, says", [
    (lambda: trailing(SD, 1001), "trained at 1000 times"),
    (lambda: karras(SD, 1001), "trained at 1000 times"),
    (lambda: trailing(SD, 0), "steps=0"),
    (lambda: linspace(SD, 2.5), "steps=2.5"),
    (lambda: leading(SD, 1000), "start at time 1000"),
    (lambda: leading(SD, 501, offset=600), "start at time 1100"),
    (lambda: leading(SD, 1), "choose 'trailing'"),
    (lambda: leading(SD, 5, offset=-1), "offset=-1"),
    (lambda: karras(SD, 5, rho=0.0), "rho=0"),
    (lambda: after(trailing(SD, 10), 0.0), "strength=0"),
    (lambda: after(trailing(SD, 10), float("nan")), "strength=nan"),
    (lambda: after(trailing(SD, 10), 0.01), "leaves no step"),
    (lambda: choose(GRIDS, {"name": "traling"}, "grid", schedule=SD, steps=5), "trailing, "),
])
def test_bad_arguments_get_a_line(build, says):
    """Catches the peers' crash at time 1000, a start from a nearly clean level, and an empty image-to-image run."""
    with pytest.raises(UserError, match=says):
        build()
