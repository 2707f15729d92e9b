"""Noise schedules against published numbers, their inverse, and bad arguments."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.core.choose import choose
from ldm_jax.core.errors import UserError
from ldm_jax.diffusion.schedule import SCHEDULES, Schedule, cosine, from_betas, linear, scaled_linear


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
    bars = np.asarray(schedule.alpha_bars)
    np.testing.assert_allclose(bars[[0, 499, 999]], [first, middle, last], rtol=2e-6)
    np.testing.assert_allclose(schedule.sigmas()[-1] / schedule.alphas()[-1], ratio, rtol=2e-5)


def test_linear_is_the_product_of_its_betas():
    """Catches linear made linear in sqrt(beta): DDPM's table ends at 4.0358e-5 (product in exact rational steps)."""
    product = 1.0
    for t in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * t / 999)
    np.testing.assert_allclose(linear().alpha_bars[-1], product, rtol=1e-12)
    np.testing.assert_allclose(product, 4.0358e-5, rtol=1e-4)


def test_cosine_follows_its_curve_until_the_clip():
    """Catches a missing normalisation by f(0), a time shifted by one, and a clip that is absent (alpha-bar 0 at the end)."""
    schedule = cosine()
    wanted = np.cos((np.arange(1, 1000) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(schedule.alpha_bars[:-1], wanted, rtol=1e-9)
    np.testing.assert_allclose(schedule.alpha_bars[-1] / schedule.alpha_bars[-2], 1e-3, rtol=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_times_and_lambdas_invert(name):
    """Catches an inverse that interpolates another quantity than the way there, and integers that are not exact."""
    schedule = SCHEDULES[name]()
    t = np.concatenate([np.arange(1000.0), np.random.default_rng(0).uniform(0, 999, 200)])
    level = schedule.level_at(t)
    np.testing.assert_allclose(level.alpha[:1000], schedule.alphas(), rtol=1e-12)
    np.testing.assert_allclose(level.sigma[:1000], schedule.sigmas(), rtol=1e-9)
    np.testing.assert_allclose(level.alpha**2 + level.sigma**2, 1, rtol=1e-13)
    np.testing.assert_allclose(schedule.time_at(np.log(level.alpha / level.sigma)), t, atol=1e-6)


def test_between_integers_log_alpha_bar_is_linear():
    """Catches interpolation of alpha-bar itself (0.1 % off already at t = 0.5 of a coarse schedule)."""
    schedule = scaled_linear(steps=10)
    middle = schedule.level_at(4.5).alpha ** 2
    np.testing.assert_allclose(middle, np.sqrt(schedule.alpha_bars[4] * schedule.alpha_bars[5]), rtol=1e-12)


def test_device_levels_are_the_host_table():
    """Catches a gather off by one, levels computed in float32, and a schedule that cannot be a static argument."""
    schedule = scaled_linear()
    t = jnp.asarray([0, 499, 999])
    level = jax.jit(lambda s, t: s.level(t), static_argnums=0)(schedule, t)
    np.testing.assert_allclose(level.alpha, schedule.alphas()[[0, 499, 999]].astype(np.float32), rtol=0)
    np.testing.assert_allclose(level.sigma, schedule.sigmas()[[0, 499, 999]].astype(np.float32), rtol=0)
    assert hash(schedule) == hash(scaled_linear()) and schedule == scaled_linear() and schedule != linear()
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.alpha_bars = ()


@pytest.mark.parametrize("build, says", [
    (lambda: scaled_linear(start=float("nan")), "start=nan"),
    (lambda: scaled_linear(start=0.02, end=0.01), "start <= end"),
    (lambda: linear(end=1.0), "end=1.0"),
    (lambda: linear(steps=0), "steps=0"),
    (lambda: cosine(s=-1.0), "s=-1.0"),
    (lambda: from_betas([0.1, float("nan")]), "time 1"),
    (lambda: Schedule((0.5, 0.6)), "from time 0 to 1"),
    (lambda: Schedule(()), "one alpha-bar"),
    (lambda: scaled_linear().level_at(1000), "0 .. 999"),
    (lambda: scaled_linear().level_at(float("nan")), "0 .. 999"),
    (lambda: scaled_linear().time_at(9.0), "outside the schedule"),
    (lambda: choose(SCHEDULES, {"name": "cosine", "start": 0.1}, "config.schedule"), "does not take start"),
])
def test_bad_arguments_get_a_line(build, says):
    """Catches NaN passing a comparison, a rising schedule, and times outside it extrapolated silently."""
    with pytest.raises(UserError, match=says):
        build()
