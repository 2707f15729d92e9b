"""Noise schedules against published numbers, their inverse, and bad arguments."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.core.choose import choose
from ldm_jax.core.errors import UserError
from ldm_jax.diffusion.continuous import SCHEDULES, Edm, Flow
from ldm_jax.diffusion.schedule import Discrete, cosine, from_alpha_bars, from_betas, geometric, linear, scaled_linear, sqrt

BUILT = {name: ({"values": tuple(np.linspace(1e-4, 0.02, 1000).tolist())} if name == "betas" else {}) for name in SCHEDULES}
BUILT |= {f"{name}, zero terminal": {"zero_terminal": True} for name in ("scaled_linear", "cosine")}


def built(name):
    return SCHEDULES[name.split(",")[0]](**BUILT[name])


def bars(schedule):
    return np.asarray(schedule.alphas) ** 2


@pytest.mark.parametrize("start, end, first, middle, last, ratio", [
    (1e-4, 2e-2, 0.9999, 0.33318777, 7.33412e-4, 36.912),
    (0.0015, 0.0195, 0.9985, 0.11584449, 1.42304e-4, 83.8225),
    (0.0015, 0.0155, 0.9985, 0.15107742, 6.68665e-4, 38.659),
    (0.0015, 0.0205, 0.9985, 0.10857600, 9.69109e-5, 101.576),
    (0.00085, 0.012, 0.99915, 0.27766965, 4.66010e-3, 14.6146),
])
def test_scaled_linear_has_the_published_numbers(start, end, first, middle, last, ratio):
    """Catches the two "linear"s mixed up (linear in beta, not in its root) and an alpha-bar shifted by one step."""
    schedule = scaled_linear(start, end)
    np.testing.assert_allclose(bars(schedule)[[0, 499, 999]], [first, middle, last], rtol=2e-6)
    np.testing.assert_allclose(schedule.sigmas[-1] / schedule.alphas[-1], ratio, rtol=2e-5)


def test_linear_is_the_product_of_its_betas():
    """Catches linear made linear in sqrt(beta): DDPM's table ends at 4.0358e-5 (product in exact rational steps)."""
    product = 1.0
    for t in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * t / 999)
    np.testing.assert_allclose(bars(linear())[-1], product, rtol=1e-12)
    np.testing.assert_allclose(product, 4.0358e-5, rtol=1e-4)


def test_cosine_follows_its_curve_until_the_clip():
    """Catches a missing normalisation by f(0), a time shifted by one, and a clip that is absent (alpha-bar 0 at the end)."""
    schedule = cosine()
    wanted = np.cos((np.arange(1, 1000) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(bars(schedule)[:-1], wanted, rtol=1e-9)
    np.testing.assert_allclose(bars(schedule)[-1] / bars(schedule)[-2], 1e-3, rtol=1e-9)


def test_sqrt_is_the_root_of_a_line():
    """Catches the square of the line, which is the scaled-linear schedule."""
    np.testing.assert_allclose(bars(sqrt())[:2], [1 - 0.01, (1 - 0.01) * (1 - np.sqrt(1e-4 + 0.0199 / 999))], rtol=1e-12)


def test_zero_terminal_snr_is_the_published_rescaling():
    """Catches a rescaling of alpha-bar instead of its root, and one that moves the first level too."""
    before, after = scaled_linear(), scaled_linear(zero_terminal=True)
    assert after.alphas[-1] == 0 and after.sigmas[-1] == 1
    np.testing.assert_allclose(after.alphas[0], before.alphas[0], rtol=1e-12)
    first, last = before.alphas[0], before.alphas[-1]
    np.testing.assert_allclose(after.alphas, (np.asarray(before.alphas) - last) * first / (first - last), atol=1e-9)


@pytest.mark.parametrize("name", BUILT)
def test_times_and_lambdas_invert(name):
    """Catches an inverse that interpolates another quantity than the way there, integers that are not exact, and a kind lost."""
    schedule = built(name)
    t = np.random.default_rng(0).uniform(schedule.first, schedule.last, 200)
    if schedule.steps:
        level = schedule.level_at(np.arange(1000.0))
        np.testing.assert_allclose(level.alpha, schedule.alphas, rtol=1e-12)
        np.testing.assert_allclose(level.sigma, schedule.sigmas, rtol=1e-12)
        t = np.concatenate([np.arange(999.0), [998.25], t])
    level = schedule.level_at(t)
    total = {"flow": level.alpha + level.sigma, "edm": level.alpha, "geometric": level.alpha}.get(name, level.alpha**2 + level.sigma**2)
    np.testing.assert_allclose(total, 1, rtol=1e-12)
    np.testing.assert_allclose(schedule.time_at(np.log(level.alpha / level.sigma)), t, atol=1e-6)
    again = schedule.level_of(level.sigma / level.alpha)
    np.testing.assert_allclose([again.alpha, again.sigma], [level.alpha, level.sigma], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", BUILT)
def test_training_times_from_fractions_and_from_levels(name):
    """Catches a fraction near 1 that gives time T, a nearest time that is off by one, and levels on the device unlike the host's."""
    schedule = built(name)
    t = schedule.pick(jnp.asarray([0.0, 0.25, 0.5, 1 - 2.0**-24]))
    assert float(t[0]) == pytest.approx(schedule.first) and float(t[-1]) == pytest.approx(schedule.last, abs=1e-5)
    level, host = schedule.level(t), schedule.level_at(np.clip(np.asarray(t, np.float64), schedule.first, schedule.last))
    np.testing.assert_allclose(level.alpha, host.alpha, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(level.sigma, host.sigma, rtol=1e-5)
    inner = t[1:3]
    lambdas = np.log(host.alpha[1:3] / host.sigma[1:3])
    np.testing.assert_allclose(schedule.nearest(jnp.asarray(lambdas, jnp.float32)), inner, rtol=1e-5)
    ends = schedule.nearest(jnp.asarray([50.0, -2e4]))
    np.testing.assert_allclose(ends, [schedule.first, schedule.last], rtol=1e-5)


def test_between_integers_the_log_ratio_is_linear():
    """Catches interpolation of alpha-bar itself (0.1 % off already at t = 0.5 of a coarse schedule)."""
    schedule = scaled_linear(steps=10)
    lambdas = schedule.lambdas()
    middle = schedule.level_at(4.5)
    np.testing.assert_allclose(np.log(middle.alpha / middle.sigma), (lambdas[4] + lambdas[5]) / 2, rtol=1e-12)


def test_device_levels_are_the_host_table():
    """Catches a gather off by one, levels computed in float32, and a schedule that cannot be a static argument."""
    schedule = scaled_linear()
    t = jnp.asarray([0, 499, 999])
    level = jax.jit(lambda s, t: s.level(t), static_argnums=0)(schedule, t)
    np.testing.assert_allclose(level.alpha, np.float32(schedule.alphas)[[0, 499, 999]], rtol=0)
    np.testing.assert_allclose(level.sigma, np.float32(schedule.sigmas)[[0, 499, 999]], rtol=0)
    assert hash(schedule) == hash(scaled_linear()) and schedule == scaled_linear() and schedule != linear()
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.alphas = ()


@pytest.mark.parametrize("build, says", [
    (lambda: scaled_linear(start=float("nan")), "start=nan"),
    (lambda: scaled_linear(start=0.02, end=0.01), "start <= end"),
    (lambda: linear(end=1.0), "end=1.0"),
    (lambda: linear(steps=0), "steps=0"),
    (lambda: cosine(s=-1.0), "s=-1.0"),
    (lambda: from_betas([0.1, float("nan")]), "time 1"),
    (lambda: from_betas([0.1], zero_terminal=True), "there is one time"),
    (lambda: from_alpha_bars((0.5, 0.6)), "from time 0 to 1"),
    (lambda: from_alpha_bars((0.5, 0.0, 0.0)), "from time 1 to 2"),
    (lambda: Discrete((), ()), "one level per training time"),
    (lambda: Discrete((0.9, 0.8), (0.3, 0.4)), "alpha.2"),
    (lambda: Discrete((1.0, 1.0), (2.0, 1.0)), "does not grow from time 0"),
    (lambda: geometric(2.0, 1.0), "sigma_min < sigma_max"),
    (lambda: Flow(low=0.0), "low=0"),
    (lambda: Edm(sigma_min=0.0), "sigma_min=0"),
    (lambda: Flow().level_at(0.0), "0.001 .. 1"),
    (lambda: scaled_linear().level_at(1000), "0 .. 999"),
    (lambda: scaled_linear().level_at(float("nan")), "0 .. 999"),
    (lambda: scaled_linear().time_at(9.0), "outside the schedule"),
    (lambda: choose(SCHEDULES, {"name": "cosine", "start": 0.1}, "config.schedule"), "does not take start"),
])
def test_bad_arguments_get_a_line(build, says):
    """Catches NaN passing a comparison, a rising schedule, and times outside it extrapolated silently."""
    with pytest.raises(UserError, match=says):
        build()
