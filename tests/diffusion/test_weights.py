"""Weights of the levels, against the published formulas in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.core.types import Level
from ldm_jax.diffusion.continuous import Edm, Flow
from ldm_jax.diffusion.prediction import PREDICTIONS
from ldm_jax.diffusion.schedule import cosine, from_betas, geometric, scaled_linear
from ldm_jax.diffusion.weights import WEIGHTS, Elbo, MinSnr, SoftMinSnr, check_weight
from ldm_jax.diffusion.weights import Edm as EdmWeight

BETAS = np.linspace(0.0015**0.5, 0.0195**0.5, 50) ** 2
VP = from_betas(BETAS)
SCHEDULES = {"vp": VP, "zero_terminal": scaled_linear(steps=20, zero_terminal=True), "geometric": geometric(steps=20), "flow": Flow(),
             "edm": Edm()}


def levels(schedule, times):
    level = schedule.level_at(times)
    return Level(jnp.asarray(level.alpha, jnp.float32), jnp.asarray(level.sigma, jnp.float32))


def published(name):
    """The weight on the squared error in noise of a variance-preserving model, float64 [T], from betas and alpha-bars alone."""
    bars = np.cumprod(1 - BETAS)
    snr, before = bars / (1 - bars), np.concatenate([[1.0], bars[:-1]])
    if name == "elbo":  # ddpm.py of the LDM code: register_schedule
        posterior = BETAS * (1 - before) / (1 - bars)
        with np.errstate(divide="ignore"):
            found = BETAS**2 / (2 * posterior * (1 - BETAS) * (1 - bars))
        found[0] = found[1]
        return found
    sigma = np.sqrt((1 - bars) / bars)  # k-diffusion's coordinates: clean + sigma noise
    return {"min_snr": np.minimum(snr, 5) / snr,
            "soft_min_snr": (sigma * 0.5) ** 2 / (sigma**2 + 0.5**2) ** 2 * (sigma**2 + 0.5**2) / (sigma * 0.5) ** 2 * sigma**2,
            "edm": (sigma**2 + 0.5**2) / (sigma * 0.5) ** 2 * sigma**2, "simple": np.ones(50)}[name]


MADE = {"simple": WEIGHTS["simple"](), "min_snr": MinSnr(5.0), "soft_min_snr": SoftMinSnr(4.0), "edm": EdmWeight(0.5), "elbo": Elbo(VP)}


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_weights_are_the_published_ones(name):
    """Catches the term of another time in the bound (t+1 for t-1), its first time infinite or left out, a factor 1/2 lost, SNR for its
    root, gamma and sigma_data confused (gamma = 1 / d^2), and a weight in the space of clean used on noise."""
    found = MADE[name](levels(VP, np.arange(50)), PREDICTIONS["noise"]())
    np.testing.assert_allclose(found, published(name), rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in WEIGHTS if name != "simple"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_weight_is_one_objective_in_every_space(name, prediction):
    """Catches a weight that forgets the prediction's gain: weight * gain, the weight in the space of clean, is the same for all."""
    level, kind = levels(VP, np.arange(50)), PREDICTIONS[prediction]()
    wanted = published(name) * (np.asarray(VP.alphas) / np.asarray(VP.sigmas)) ** 2
    np.testing.assert_allclose(MADE[name](level, kind) * kind.gain(level), wanted, rtol=1e-5)


def test_the_bound_of_real_time_is_the_limit_of_steps():
    """Catches a derivative by another time (lambda, or a fraction), its sign, or a factor: for flow (1 - t) / t^3, for edm SNR."""
    t = np.linspace(0.01, 1, 9)
    found = Elbo(Flow())(levels(Flow(), t), PREDICTIONS["clean"]())
    np.testing.assert_allclose(found, (1 - t) / t**3, rtol=1e-4, atol=1e-6)
    t = np.linspace(-5, 4, 9)
    np.testing.assert_allclose(Elbo(Edm())(levels(Edm(), t), PREDICTIONS["clean"]()), np.exp(-2 * t), rtol=1e-4)
    fine = geometric(0.1, 10, steps=2001)
    found = Elbo(fine)(levels(fine, np.asarray([1000])), PREDICTIONS["clean"]())
    np.testing.assert_allclose(found * 2000 / np.log(100), np.exp(0), rtol=1e-2)  # a step there is ln(100) / 2000 of ln sigma


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_finite_where_no_data_is_left(name, schedule):
    """Catches 0 / 0 and infinity at alpha = 0 (zero terminal SNR, flow), for every prediction that can be trained there."""
    chosen = SCHEDULES[schedule]
    weight = WEIGHTS[name](schedule=chosen) if name == "elbo" else WEIGHTS[name]()
    for prediction in PREDICTIONS.values():
        try:
            prediction().check(chosen)
        except UserError:
            continue
        check_weight(weight, chosen, prediction())


def test_what_a_schedule_cannot_have_is_refused():
    """Catches an infinite weight met only as a NaN loss, a learned log-variance that falls for ever, and numbers out of range."""
    zero = SCHEDULES["zero_terminal"]
    with pytest.raises(UserError, match="elbo: the weight is inf at time 19 of this schedule"):
        check_weight(Elbo(zero), zero, PREDICTIONS["noise"]())
    with pytest.raises(UserError, match="min_snr: the weight is 0 at time 19 .* set weight to simple or edm"):
        check_weight(MinSnr(), zero, PREDICTIONS["v"](), above_0=True)
    check_weight(EdmWeight(), zero, PREDICTIONS["v"](), above_0=True)
    check_weight(MinSnr(), cosine(), PREDICTIONS["v"](), above_0=True)
    for make, told in ((lambda: SoftMinSnr(0.0), "gamma=0"), (lambda: EdmWeight(-1.0), "sigma_data=-1"),
                       (lambda: Elbo(scaled_linear(steps=1)), "two times")):
        with pytest.raises(UserError, match=told):
            make()
