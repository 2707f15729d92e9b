"""Predictor-corrector sampling against the paper's formulas in sigma and in beta, and against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import base_key, key_for
from ldm_jax.core.types import Condition
from ldm_jax.diffusion.guidance import ClassifierFree, Guided
from ldm_jax.diffusion.predictor_corrector import PREDICTORS, PredictorCorrector
from ldm_jax.diffusion.sample import image_keys, sample
from ldm_jax.diffusion.samplers import table_for
from ldm_jax.diffusion.schedule import geometric, scaled_linear
from tests.diffusion import exact

VE, VP = geometric(0.01, 10.0, 100), scaled_linear(0.0015, 0.0195)
SHAPE = (4, 3, 2)
A = {"a": np.float32(0.8)}


def draw(seed, level, inner):
    key = key_for(key_for(base_key(seed), "predictor_corrector", step=level), "inner", step=inner)
    return np.asarray(jax.random.normal(key, SHAPE), np.float64)


def curved(x, sigma, time):
    noise = np.tanh(0.8 * x + 1e-3 * time - 0.3)
    return 0.9 * x - 0.5 * sigma * noise, noise


def langevin(x, sigma, time, z, snr, alpha):
    """Algorithms 4 and 5, one image."""
    g = -curved(x, sigma, time)[1] / sigma
    epsilon = 2 * alpha * (snr * np.linalg.norm(z) / np.linalg.norm(g)) ** 2
    return x + epsilon * g + np.sqrt(2 * epsilon) * z


def paper_ve(predictor, x, seed, snr, corrections):
    sigmas, times = np.geomspace(10.0, 0.01, 5), np.linspace(99, 0, 5)
    for i, (sigma, time) in enumerate(zip(sigmas, times)):
        for k in range(corrections):
            x = langevin(x, sigma, time, draw(seed, i, k), snr, 1.0)
        clean, noise = curved(x, sigma, time)
        if i == 4:
            return clean
        below, z = sigmas[i + 1], draw(seed, i, corrections)
        gap, score = sigma**2 - below**2, -noise / sigma
        if predictor == "reverse_diffusion":
            x = x + gap * score + np.sqrt(gap) * z
        elif predictor == "ancestral":
            x = x + gap * (clean - x) / sigma**2 + np.sqrt(below**2 * gap / sigma**2) * z
        else:
            x = x + gap / 2 * score


def paper_vp(predictor, x, seed, snr, corrections):
    times = np.arange(999, 0, -200)
    bars = np.append(np.square(np.asarray(VP.alphas)[times]), 1.0)
    for i, time in enumerate(times):
        beta, sigma, alpha = 1 - bars[i] / bars[i + 1], np.sqrt(1 - bars[i]), np.sqrt(bars[i])
        for k in range(corrections):
            x = langevin(x, sigma, time, draw(seed, i, k), snr, 1 - beta)
        clean, noise = curved(x, sigma, time)
        if i == 4:
            return clean
        z, score = draw(seed, i, corrections), -noise / sigma
        if predictor == "reverse_diffusion":
            x = (2 - np.sqrt(1 - beta)) * x + beta * score + np.sqrt(beta) * z
        elif predictor == "ancestral":
            small = beta * (1 - bars[i + 1]) / (1 - bars[i])
            x = (x + beta * (alpha * clean - x) / sigma**2) / np.sqrt(1 - beta) + np.sqrt(small) * z
        else:
            x = (2 - np.sqrt(1 - beta)) * x + beta / 2 * score


@pytest.mark.parametrize("corrections", [0, 2])
@pytest.mark.parametrize("predictor", sorted(PREDICTORS))
@pytest.mark.parametrize("schedule, grid, paper", [(VE, "exponential", paper_ve), (VP, "trailing", paper_vp)], ids=["VE", "VP"])
def test_it_is_the_papers_algorithm(schedule, grid, paper, predictor, corrections):
    """Catches the factor 2 of the corrector, a beta or a norm of a neighbour, and a last step that adds noise."""
    method = PredictorCorrector(schedule, 5, grid, predictor=predictor, corrections=corrections, snr=0.2)
    keys = image_keys([7, 8])
    x = np.asarray(sample(keep, {}, table_for(schedule, 1), SHAPE, keys), np.float64)[0]
    wanted = paper(predictor, x, 7, 0.2, corrections)
    np.testing.assert_allclose(method.sample(exact.curved, A, SHAPE, keys)[0], wanted, atol=2e-5, rtol=1e-4)
    assert method.evaluations == 5 * (corrections + 1)


def keep(params, noisy, level, time, condition):
    return noisy, noisy


@pytest.mark.parametrize("schedule", [VE, VP], ids=["VE", "VP"])
def test_the_corrector_settles_at_its_own_variance(schedule):
    """Catches a step that is half or double, or norms that are means: at a level of variance S^2 it settles at S^2 (1 + k snr^2)."""
    shape, snr = (32, 32, 8), 0.3
    method = PredictorCorrector(schedule, 1, "trailing", corrections=150, snr=snr)
    x = np.asarray(method.sample(exact.gaussian, {}, shape, image_keys(range(2))), np.float64)
    alpha, sigma = method.path.alpha[0], method.path.sigma[0]
    total = alpha**2 * exact.STD**2 + sigma**2
    settled = total * (1 + alpha**2 * snr**2)  # k = (alpha / 1)^2, the level being left for clean data
    slope = alpha * exact.STD**2 / total
    assert abs(x.var() / (slope**2 * settled) - 1) < 5 * np.sqrt(2 / x.size) + 2 * alpha**2 * snr**2 / np.prod(shape)


def test_ancestral_is_ddpm():
    """Catches a posterior of another level: without corrections the same mean and variance as the table sampler's rows."""
    for schedule in (VE, VP):
        table, method = table_for(schedule, 6, "ddpm", "linspace"), PredictorCorrector(schedule, 6, "linspace", predictor="ancestral")
        np.testing.assert_allclose(method._numbers()[:, :4], table.u[:, [0, 1, 2, 6]], rtol=1e-9, atol=1e-12)


def gaussian_moments(method):
    """Mean and variance of the samples of Gaussian data in many dimensions, by the recursion of the method's own weights."""
    mean, variance = 0.0, method.path.alpha[0] ** 2 + method.path.sigma[0] ** 2
    for (_, (alpha, sigma), _), (x, clean, noise, z, factor) in zip(method.path.steps(), method._numbers()):
        total, middle = alpha**2 * exact.STD**2 + sigma**2, alpha * exact.MEAN
        for _ in range(method.corrections):
            epsilon = factor * total**2 / (variance + (mean - middle) ** 2)
            mean, variance = middle + (1 - epsilon / total) * (mean - middle), (1 - epsilon / total) ** 2 * variance + 2 * epsilon
        slope = x + clean * alpha * exact.STD**2 / total + noise * sigma / total
        mean, variance = x * middle + clean * exact.MEAN + slope * (mean - middle), slope**2 * variance + z**2
    return mean, variance


def sampled(method, denoise):
    x = np.asarray(method.sample(denoise, {}, (16, 16, 4), image_keys(range(8))), np.float64)
    return x, x.mean(), x.var()


@pytest.mark.parametrize("schedule", [VE, VP], ids=["VE", "VP"])
def test_the_moments_are_the_recursions_and_the_datas(schedule):
    """Catches a drift of mean or variance by either half of the method, with 12 steps and 1 correction as with 80 and 2."""
    for steps, corrections, predictor in ((12, 1, "reverse_diffusion"), (80, 2, "ancestral")):
        method = PredictorCorrector(schedule, steps, "exponential", predictor=predictor, corrections=corrections, snr=0.16)
        mean, variance = gaussian_moments(method)
        x, got_mean, got_variance = sampled(method, exact.gaussian)
        assert abs(got_mean - mean) < 5 * np.sqrt(variance / x.size)
        assert abs(got_variance / variance - 1) < 5 * np.sqrt(2 / x.size)
    assert abs(mean - exact.MEAN) < 0.002 and abs(variance / exact.STD**2 - 1) < 0.03


@pytest.mark.parametrize("schedule", [VE, VP], ids=["VE", "VP"])
def test_a_mixture_keeps_its_proportions(schedule):
    """Catches what a Gaussian cannot see: modes in the wrong proportion."""
    x, mean, variance = sampled(PredictorCorrector(schedule, 80, "exponential", predictor="ancestral"), exact.mixture)
    wanted_mean, wanted_variance = exact.mixture_moments()
    assert abs(mean - wanted_mean) < 5 * np.sqrt(wanted_variance / x.size) and abs(variance / wanted_variance - 1) < 0.05
    assert abs((x < -0.2).mean() - 0.3) < 5 * np.sqrt(0.21 / x.size) + 0.005


@pytest.mark.parametrize("schedule", [VE, VP], ids=["VE", "VP"])
@pytest.mark.parametrize("predictor", sorted(PREDICTORS))
def test_corrections_help_at_few_steps(schedule, predictor):
    """Catches a corrector that pulls away from its level's own distribution (the paper's table 1: PC beats its predictor).

    Error of the variance alone and with one correction at snr 0.16, 8 steps: VE reverse_diffusion 213 % and 183 %, ancestral
    56 % and 26 %; VP 169 % and 152 %, 59 % and 36 %. 20 steps: VE 47 % and 20 %, 29 % and 7 %; VP 43 % and 26 %, 32 % and 15 %.
    """
    for steps in (8, 20):
        wrong = []
        for corrections in (0, 1, 3):
            method = PredictorCorrector(schedule, steps, "exponential", predictor=predictor, corrections=corrections)
            wrong.append(abs(gaussian_moments(method)[1] / exact.STD**2 - 1))
        assert wrong[2] < wrong[1] < wrong[0], wrong


def test_image_i_is_image_i_and_one_program_serves_all():
    """Catches norms over the batch (the paper's own), draws for the whole batch, and options that became static."""
    exact.TRACES.clear()
    jax.clear_caches()
    method = PredictorCorrector(VE, 4, "exponential")
    many = method.sample(exact.curved, A, SHAPE, image_keys([10, 11]))
    other = method.sample(exact.curved, A, SHAPE, image_keys([12, 11]))
    np.testing.assert_array_equal(many[1], other[1])
    for changed in (PredictorCorrector(VP, 9, "trailing", predictor="ancestral", corrections=2), PredictorCorrector(VE, 5, snr=0.01)):
        changed.sample(exact.curved, A, SHAPE, image_keys([0, 2**32 - 1]))
    given, null = (Condition(vector=v * jnp.ones((2, 2))) for v in (1.0, 0.0))
    told = method.sample(exact.curved, A, SHAPE, image_keys([10, 11]), given)
    guided = method.sample(exact.curved, A, SHAPE, image_keys([10, 11]), Guided(given, null), ClassifierFree(), (1.0,))
    np.testing.assert_allclose(guided, told, atol=5e-5)
    assert not np.allclose(told, many, atol=1e-2)
    assert sorted(exact.TRACES) == [2, 2, 4], exact.TRACES
    np.testing.assert_allclose(method.sample(exact.curved, A, SHAPE, image_keys([11]))[0], many[1], atol=2e-6)


def test_bad_options_get_a_line():
    """Catches a ratio or a count out of range, and a discretisation that pure noise makes meaningless."""
    with pytest.raises(UserError, match="corrections=-1: expected a whole number from 0"):
        PredictorCorrector(VE, 5, corrections=-1)
    with pytest.raises(UserError, match="snr=0"):
        PredictorCorrector(VE, 5, snr=0.0)
    terminal = scaled_linear(zero_terminal=True)
    with pytest.raises(UserError, match="predictor='ancestral'"):
        PredictorCorrector(terminal, 5)
    assert np.isfinite(PredictorCorrector(terminal, 5, predictor="ancestral")._numbers()).all()
