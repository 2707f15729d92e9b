"""Sampling grids: published numbers, one step, and what is refused."""

import numpy as np
import pytest

from ldm_jax.core.choose import choose
from ldm_jax.core.errors import UserError
from ldm_jax.diffusion.continuous import Edm, Flow
from ldm_jax.diffusion.grids import GRIDS, beta, exponential, karras, leading, legacy, linspace, log_snr, quadratic, trailing
from ldm_jax.diffusion.path import after
from ldm_jax.diffusion.schedule import cosine, geometric, scaled_linear

SD, ZERO = scaled_linear(), scaled_linear(zero_terminal=True)


def times(path):
    """Of the steps: all but the end's."""
    return path.time[:-1]


def ratios(path):
    return path.ratios[:-1]


@pytest.mark.parametrize("name", [name for name in GRIDS if name not in ("legacy", "quadratic")])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 30, 50, 333, 999])
@pytest.mark.parametrize("schedule", [SD, cosine(), geometric()], ids=["sd", "cosine", "geometric"])
def test_times_fall_strictly_inside_the_schedule(name, steps, schedule):
    """Catches repeated times by rounding, an extra time (float arange), -1 or T, and a count that is not the one asked for."""
    steps = max(steps, 2) if name == "leading" else steps  # leading refuses 1 step, see below
    path = GRIDS[name](schedule, steps)
    assert len(path.time) == steps + 1 and path.time.dtype == np.float64
    assert path.time[0] <= 999 and path.time[-1] >= 0 and np.all(np.diff(times(path)) < 0)
    known = schedule.level_at(times(path))
    np.testing.assert_allclose(ratios(path), known.sigma / known.alpha, rtol=1e-9)
    end = (schedule.alphas[0], schedule.sigmas[0]) if name == "log_snr" else (1.0, 0.0)
    assert path.end == pytest.approx(end, rel=1e-9)


def test_published_times():
    """Catches LDM's + 1 forgotten, and trailing or linspace that does not start at T-1."""
    np.testing.assert_array_equal(times(leading(SD, 50)), np.arange(981, 0, -20))
    np.testing.assert_array_equal(times(leading(SD, 10, offset=0)), np.arange(900, -1, -100))
    np.testing.assert_array_equal(times(leading(SD, 9, offset=0, drop_lowest=True)), np.arange(900, 0, -100))
    np.testing.assert_array_equal(times(trailing(SD, 50)), np.arange(999, 0, -20))
    np.testing.assert_array_equal(times(trailing(SD, 1000)), np.arange(999, -1, -1))
    np.testing.assert_allclose(times(linspace(SD, 3)), [999, 499.5, 0])
    np.testing.assert_allclose(times(linspace(SD, 3, drop_lowest=True, rounded=True)), [999, 666, 333])
    for grid in (trailing, linspace, karras):
        np.testing.assert_allclose(times(grid(SD, 1)), [999], rtol=1e-9)


@pytest.mark.parametrize("asked, got, top", [(10, 10, 901), (20, 20, 951), (30, 31, 991), (50, 50, 981), (75, 77, 989), (150, 167, 997),
                                             (400, 500, 999), (3, 4, 999), (9, 10, 999), (111, 112, 999), (750, 999, 999)])
def test_legacy_has_compvis_counts_without_its_crashes(asked, got, top):
    """Catches floor(T / S) replaced by a division that gives the count asked for, and time T at counts like 3 and 111."""
    path = legacy(SD, asked)
    assert len(times(path)) == got and path.time[0] == top and path.time[-2] == 1
    assert path.end == pytest.approx((SD.alphas[0], SD.sigmas[0]))


def test_quadratic_is_compvis():
    """Catches the root left out of the ramp, and the missing + 1."""
    published = (np.linspace(0, np.sqrt(800), 10) ** 2).astype(int) + 1
    np.testing.assert_array_equal(times(quadratic(SD, 10)), published[::-1])


def test_ramps_are_even_where_they_say():
    """Catches a ramp in sigma instead of sigma/alpha, rho applied only one way, and quantiles counted from the wrong end."""
    roots = ratios(karras(SD, 9)) ** (1 / 7)
    np.testing.assert_allclose(np.diff(roots), (roots[-1] - roots[0]) / 8, rtol=1e-6)
    for grid in (karras, exponential, beta):
        np.testing.assert_allclose(ratios(grid(SD, 9))[[0, -1]], [14.6146, 0.02917], rtol=1e-3)
    logs = np.log(ratios(exponential(SD, 9)))
    np.testing.assert_allclose(np.diff(logs), (logs[-1] - logs[0]) / 8, rtol=1e-9)
    lambdas = -np.log(log_snr(SD, 9).ratios)
    np.testing.assert_allclose(np.diff(lambdas), (lambdas[-1] - lambdas[0]) / 9, rtol=1e-9)
    from scipy.stats import beta as distribution
    share = (ratios(beta(SD, 9)) - 0.0291675) / (14.61464 - 0.0291675)
    np.testing.assert_allclose(distribution.cdf(share, 0.6, 0.6), 1 - np.linspace(0, 1, 9), atol=1e-4)


def test_rounding_moves_the_times_and_not_the_levels():
    """Catches levels that follow the rounded times."""
    path, exact = karras(SD, 9, rounded=True), karras(SD, 9)
    np.testing.assert_array_equal(path.time, np.round(exact.time))
    np.testing.assert_array_equal(path.ratios, exact.ratios)


def test_linear_levels_are_diffusers_euler():
    """Catches a line in sigma instead of sigma/alpha."""
    path = linspace(SD, 4, levels="linear")
    every = np.asarray(SD.sigmas) / np.asarray(SD.alphas)
    np.testing.assert_allclose(ratios(path), np.interp([999, 666, 333, 0], np.arange(1000), every), rtol=1e-12)


def test_flow_steps_are_even_and_shift():
    """Catches a last step that is not like the others, and a shift applied to the time instead of sigma/alpha."""
    flow = Flow()
    np.testing.assert_allclose(times(trailing(flow, 4)), [1, 0.75, 0.5, 0.25])
    np.testing.assert_allclose(times(linspace(flow, 3)), [1, 0.5005, 0.001])
    t = np.asarray([1, 0.75, 0.5, 0.25])
    np.testing.assert_allclose(times(trailing(flow, 4, shift=3.0)), 3 * t / (1 + 2 * t), rtol=1e-12)


def test_edm_is_the_published_ramp():
    """Catches equation 5 of the paper on ln sigma, and a time that is not ln sigma."""
    ramp = (80 ** (1 / 7) + np.arange(18) / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    path = karras(Edm(), 18)
    np.testing.assert_allclose(path.sigma[:-1], ramp, rtol=1e-12)
    np.testing.assert_allclose(times(path), np.log(ramp), rtol=1e-9, atol=1e-12)


def test_the_point_between_two_levels():
    """Catches a middle level of another kind than the schedule's, and a time that is not its own."""
    for schedule in (SD, Flow(), Edm(), geometric()):
        (alpha, sigma), time = trailing(schedule, 4).between(0.7) if schedule.origin is not None else karras(schedule, 4).between(0.7)
        level = schedule.level_at(time)
        np.testing.assert_allclose([alpha, sigma, sigma / alpha], [level.alpha, level.sigma, 0.7], rtol=1e-9)


def test_after_keeps_the_last_steps():
    """Catches image-to-image that keeps the first steps, and 0.7 * 10 = 7 rounded down to 6."""
    path = trailing(SD, 10)
    np.testing.assert_array_equal(after(path, 0.7).time, path.time[3:])
    np.testing.assert_array_equal(after(path, 1.0).alpha, path.alpha)
    np.testing.assert_array_equal(after(trailing(SD, 100), 0.29).sigma, trailing(SD, 100).sigma[71:])


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
    (lambda: after(trailing(SD, 10), "half"), "strength='half'"),
    (lambda: after(trailing(SD, 10), 0.01), "leaves no step"),
    (lambda: karras(ZERO, 5), "infinite"),
    (lambda: exponential(Flow(), 5), "infinite"),
    (lambda: linspace(ZERO, 5, levels="linear"), "infinite"),
    (lambda: karras(SD, 5, low=500.0, high=400.0), "not below high"),
    (lambda: leading(Flow(), 5), "no integer times"),
    (lambda: legacy(Edm(), 5), "no integer times"),
    (lambda: trailing(Edm(), 5), "never reaches clean"),
    (lambda: trailing(Flow(), 2000), "fewer steps"),
    (lambda: linspace(Flow(), 5, rounded=True), "integer times"),
    (lambda: quadratic(SD, 400), "repeat"),
    (lambda: trailing(SD, 5, shift=2.0), "outside the schedule"),
    (lambda: trailing(Flow(), 5, shift=0.0), "shift=0"),
    (lambda: linspace(SD, 5, end="lowest"), "write end='clean'"),
    (lambda: beta(SD, 5, a=0.0), "a=0"),
    (lambda: choose(GRIDS, {"name": "traling"}, "grid", schedule=SD, steps=5), "trailing, "),
])
def test_bad_arguments_get_a_line(build, says):
    """Catches the peers' crash at time 1000, a start from a nearly clean level, and an empty image-to-image run."""
    with pytest.raises(UserError, match=says):
        build()
