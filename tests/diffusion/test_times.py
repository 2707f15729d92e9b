"""Training times: their distributions, and the memory of importance sampling against a plain reimplementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import base_key, key_for
from ldm_jax.diffusion.continuous import Edm, Flow
from ldm_jax.diffusion.schedule import cosine, scaled_linear
from ldm_jax.diffusion.times import TIMES, Importance, LogitNormal, LogNormal, Times, bin_at, bins_of

MANY = 20_000


def keys(number=MANY, seed=0):
    return key_for(base_key(seed), "time", example=jnp.arange(number))


def test_log_normal_moments():
    """Catches the mean of the SNR's log or of sigma for that of ln sigma, a deviation for a variance, and a sign: EDM's P_mean, P_std."""
    schedule = Edm(1e-4, 1e4)
    t = np.asarray(LogNormal(-1.2, 0.7)(keys(), None, schedule), np.float64)
    assert t.mean() == pytest.approx(-1.2, abs=5 * 0.7 / MANY**0.5) and t.std() == pytest.approx(0.7, abs=5 * 0.7 / (2 * MANY) ** 0.5)
    discrete = scaled_linear()
    t = np.asarray(LogNormal(0.3, 0.7)(keys(), None, discrete))
    assert t.dtype == np.int32
    level = discrete.level_at(t)
    assert np.median(np.log(level.sigma / level.alpha)) == pytest.approx(0.3, abs=5 * 1.25 * 0.7 / MANY**0.5)


def test_logit_normal_quantiles():
    """Catches a normal that is not squashed, or squashed by another function: the quantiles of t are the logistic of the normal's."""
    t = np.asarray(LogitNormal(0.5, 1.0)(keys(), None, Flow(1e-3)), np.float64)
    z = np.asarray([-1.0, 0.0, 1.0])
    wanted = 1 / (1 + np.exp(-(0.5 + z)))
    np.testing.assert_allclose(np.quantile(t, [0.158655, 0.5, 0.841345]), wanted, atol=0.01)
    t = np.asarray(LogitNormal()(keys(), None, scaled_linear()))
    assert t.dtype == np.int32 and t.min() >= 0 and t.max() <= 999 and np.median(t) == pytest.approx(500, abs=15)


class Plain:
    """The same memory as lists, one example after the other (guided-diffusion, resample.py: LossSecondMomentResampler)."""

    def __init__(self, number, remembered, floor):
        self.lists, self.remembered, self.floor = [[] for _ in range(number)], remembered, floor

    def update(self, at, losses):
        for i, loss in zip(at, losses):
            self.lists[i] = (self.lists[i] + [loss])[-self.remembered:]

    def chances(self):
        if any(len(row) < self.remembered for row in self.lists):
            return np.full(len(self.lists), 1 / len(self.lists))
        size = np.asarray([np.sqrt(np.mean(np.square(row))) for row in self.lists])
        return (1 - self.floor) * size / size.sum() + self.floor / len(self.lists)


def test_the_memory_is_the_published_one():
    """Catches the oldest loss kept and the newest dropped, two losses of one time in one batch that overwrite each other, more of them
    than are remembered, sampling before every time is known, a mean without the square root, and a floor of another size."""
    schedule, times, dice = scaled_linear(steps=6), Importance(remembered=3, floor=0.1), np.random.default_rng(0)
    memory, plain = times.start(schedule), Plain(6, 3, 0.1)
    update = jax.jit(lambda t, losses, memory: times.update(t, losses, schedule, memory))
    known = 0
    for step in range(12):
        t = dice.choice(6, 8, p=[0.6, 0.1, 0.1, 0.1, 0.05, 0.05]) if step != 5 else np.full(8, 2)
        losses = dice.lognormal(t - 2.0, 0.5).astype(np.float32)
        memory = update(jnp.asarray(t), jnp.asarray(losses), memory)
        plain.update(t, losses)
        np.testing.assert_allclose(times.chances(memory), plain.chances(), rtol=1e-5)
        for row, kept in zip(np.asarray(memory["losses"]), plain.lists):
            assert sorted(row[row != 0]) == sorted(kept)
        known += len(set(plain.chances())) > 1
    assert 0 < known < 12 and times.told(memory)["times/known"] == 1


def known_memory(times, schedule, sizes):
    """The memory after losses of these sizes at all parts."""
    return {"losses": jnp.asarray(np.repeat(sizes, times.remembered, 0).reshape(-1, times.remembered), jnp.float32),
            "seen": jnp.full(len(sizes), times.remembered, jnp.int32)}


@pytest.mark.parametrize("schedule, bins", [(scaled_linear(steps=8), 0), (scaled_linear(steps=8), 4), (Flow(), 5), (Edm(), 5)],
                         ids=["times", "pairs of times", "flow", "edm"])
def test_importance_draws_by_its_chances_and_is_unbiased(schedule, bins):
    """Catches a cumulative sum that is off by one, shares of another distribution than the draws', and shares that do not sum to one:
    the measured mean of share * f is the mean of f over all times, within five standard errors, and nearer for a fitting f."""
    times = Importance(bins=bins)
    number = bins_of(schedule, bins)
    sizes = np.linspace(1, 9, number)
    memory = known_memory(times, schedule, sizes)
    t = times(keys(), None, schedule, memory)
    at = np.asarray(bin_at(schedule, t, number))
    wanted = 0.999 * sizes / sizes.sum() + 0.001 / number
    np.testing.assert_allclose(times.chances(memory), wanted, rtol=1e-5)
    np.testing.assert_allclose(np.bincount(at, minlength=number) / MANY, wanted, atol=5 * 0.5 / MANY**0.5)
    share = np.asarray(times.share(t, schedule, memory), np.float64)
    uniform = schedule.pick((jnp.arange(MANY) + 0.5) / MANY)
    for function in (lambda t: 1 + 0 * t, lambda t: (t - schedule.first) / (schedule.last - schedule.first)):
        terms = share * function(np.asarray(t, np.float64))
        assert terms.mean() == pytest.approx(function(np.asarray(uniform, np.float64)).mean(), abs=5 * terms.std() / MANY**0.5 + 1e-4)
    fitting = share * sizes[at]
    assert fitting.std() < 0.05 * fitting.mean() < sizes[np.asarray(bin_at(schedule, uniform, number))].std()


def test_an_example_depends_on_its_key_and_the_memory_alone():
    """Catches draws that know the batch, and a start that is not uniform."""
    schedule, times = scaled_linear(steps=10), Importance()
    whole = times(keys(64), None, schedule, times.start(schedule))
    np.testing.assert_array_equal(whole[8:12], times(keys(64)[8:12], None, schedule, times.start(schedule)))
    counts = np.bincount(np.asarray(times(keys(), None, schedule, times.start(schedule))), minlength=10)
    np.testing.assert_allclose(counts, MANY / 10, atol=6 * (MANY / 10) ** 0.5)
    np.testing.assert_array_equal(times.share(whole, schedule, times.start(schedule)), np.ones(64, np.float32))


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("schedule", [cosine(steps=16), cosine(steps=16, zero_terminal=True), Flow(), Edm()],
                         ids=["cosine", "zero_terminal", "flow", "edm"])
def test_times_are_of_the_schedule(name, schedule):
    """Catches times outside a schedule, whole ones for a schedule of real time, and a sampler without the words of the others."""
    times = TIMES[name]()
    assert isinstance(times, Times)
    times.check_schedule(schedule)
    memory = times.start(schedule)
    t = times(keys(256), jnp.arange(256), schedule, memory)
    assert t.shape == (256,) and t.dtype == (jnp.int32 if schedule.steps else jnp.float32)
    assert schedule.first - 1e-6 <= t.min() and t.max() <= schedule.last + 1e-6
    after = times.update(t, jnp.ones(256), schedule, memory)
    assert jax.tree.structure(after) == jax.tree.structure(memory) and times.share(t, schedule, after).shape == (256,)


def test_what_cannot_work_is_refused():
    """Catches parts that do not divide (biased shares), a floor of 0 (times forgotten for ever), a log-normal beside its schedule."""
    for make, told in ((lambda: Importance(floor=0.0), "floor=0"), (lambda: Importance(remembered=0), "remembered=0"),
                       (lambda: LogNormal(std=0.0), "std=0"), (lambda: LogitNormal(mean=float("nan")), "mean=nan"),
                       (lambda: Importance(bins=7).check_schedule(scaled_linear()), "bins=7: expected a divisor of the 1000"),
                       (lambda: Importance(bins=-1).check_schedule(Flow()), "bins=-1: expected a number above 0"),
                       (lambda: LogNormal(mean=9.0).check_schedule(scaled_linear()), "mean=9.0: expected a number between")):
        with pytest.raises(UserError, match=told):
            make()
