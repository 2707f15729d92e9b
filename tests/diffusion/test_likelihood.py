"""The variational bound against closed forms: Gaussian data with the exact denoiser, for which every term is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import base_key, key_for
from ldm_jax.diffusion.continuous import SCHEDULES
from ldm_jax.diffusion.likelihood import Bound, bits, log_pixel, measure, prior, term
from ldm_jax.diffusion.prediction import INDEX

MEAN, STD = 0.7, 0.4
VP = {"linear": {}, "scaled_linear": {"start": 0.0015, "end": 0.0195, "steps": 100, "zero_terminal": True}, "cosine": {"steps": 50},
      "betas": {"values": (0.1, 0.3, 0.2)}}


def exact(params, noisy, level, time, condition):
    """The best estimate for data N(MEAN, STD^2), per element; `params` is added to it, to be wrong by a known amount."""
    alpha, sigma = (x.reshape(-1, *[1] * (noisy.ndim - 1)) for x in (level.alpha, level.sigma))
    clean = MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (noisy - alpha * MEAN) + params
    return clean, (noisy - alpha * clean) / sigma


def made(name, **changes):
    return Bound(SCHEDULES[name](**VP[name]), INDEX, **changes)


def terms(bound, clean, noise, wrong=0.0):
    """float64 [T, B] at one noise."""
    run = jax.jit(lambda t: jax.lax.map(lambda t: term(bound, exact, wrong, clean, None, (jnp.full(len(clean), t), noise)), t))
    return np.asarray(run(jnp.arange(bound.schedule.steps)), np.float64)


def gaussian_kl(mean, variance, other, other_variance):
    return 0.5 * ((mean - other) ** 2 / other_variance + variance / other_variance - 1 - np.log(variance / other_variance))


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("name", VP)
def test_the_bound_of_a_gaussian_is_its_closed_form(name, variance):
    """Catches a wrong or a missing term: of two Gaussian chains the bound is the data's entropy, the prior's divergence, and that of

    each reverse step N(E[x_{t-1} | x_t], v), whose true variance is known: nothing of the code's own way. Every term is a square in
    the noise and in the data, so that +-1 and MEAN +- STD are exact quadratures. 1e-4 nats a dimension, all terms together.
    """
    bound = made(name, variance=variance)
    clean, noise = jnp.asarray([[MEAN - STD], [MEAN - STD], [MEAN + STD], [MEAN + STD]]), jnp.asarray([[-1.0], [1.0], [-1.0], [1.0]])
    each = terms(bound, clean, noise).mean(axis=1)
    start = float(prior(bound, clean).mean())

    alpha, sigma = np.asarray(bound.schedule.alphas), np.asarray(bound.schedule.sigmas)
    marginal = np.append(STD**2, alpha**2 * STD**2 + sigma**2)
    damping = alpha / np.append(1.0, alpha[:-1])  # of x_t in x_{t-1}, with the data before x_0
    true = marginal[:-1] - damping**2 * marginal[:-1] ** 2 / marginal[1:]
    beta = 1 - damping**2
    posterior = beta[1:] * sigma[:-1] ** 2 / sigma[1:] ** 2
    chosen = np.append(sigma[0] ** 2, posterior if variance == "small" else beta[1:])
    steps = 0.5 * (true / chosen - 1 - np.log(true / chosen))
    entropy = 0.5 * np.log(2 * np.pi * np.e * STD**2)
    wanted = entropy + gaussian_kl(alpha[-1] * MEAN, marginal[-1], 0.0, 1.0) + steps.sum()
    print(f"{name} {variance}: bound {start + each.sum():.6f}, closed form {wanted:.6f}, entropy {entropy:.6f}")
    assert abs(start + each.sum() - wanted) < 1e-4
    information = 0.5 * np.log(true[1:] / posterior)  # of x_0 about x_{t-1}, given x_t: L_t knows x_0, the reverse step does not
    np.testing.assert_allclose(each[1:], steps[1:] + information, atol=2e-5)
    assert abs(start - gaussian_kl(alpha[-1] * MEAN, marginal[-1], 0, 1) - 0.5 * np.log(marginal[-1] / sigma[-1] ** 2)) < 1e-5


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("name", ["scaled_linear", "betas"])
def test_each_term_is_a_divergence_of_two_gaussians(name, variance):
    """At one x_0 and one noise, with an estimate that is wrong. Catches beta in the place of beta-tilde, an index that is off by one,
    and the last step to alpha = 0. q(x_{t-1} | x_t, x_0) comes from the covariance of the pair."""
    bound, wrong = made(name, variance=variance), 0.3
    clean, noise = jnp.asarray([[1.1, -0.4]]), jnp.asarray([[0.5, -1.2]])
    found = terms(bound, clean, noise, wrong)[:, 0]
    alpha, sigma = np.asarray(bound.schedule.alphas), np.asarray(bound.schedule.sigmas)
    for t in range(1, bound.schedule.steps):
        damp = alpha[t] / alpha[t - 1]
        noisy = alpha[t] * np.asarray(clean[0]) + sigma[t] * np.asarray(noise[0])
        gain = damp * sigma[t - 1] ** 2 / sigma[t] ** 2
        left = sigma[t - 1] ** 2 - gain * damp * sigma[t - 1] ** 2
        guess = MEAN + alpha[t] * STD**2 / (alpha[t] ** 2 * STD**2 + sigma[t] ** 2) * (noisy - alpha[t] * MEAN) + wrong
        means = [alpha[t - 1] * x + gain * (noisy - alpha[t] * x) for x in (np.asarray(clean[0]), guess)]
        wanted = gaussian_kl(means[0], left, means[1], left if variance == "small" else 1 - damp**2).sum()
        assert abs(found[t] - wanted) < 1e-4 * max(1, wanted), (t, found[t], wanted)
    away = np.asarray(alpha[0] * (clean[0] - MEAN) + sigma[0] * noise[0])
    guess = MEAN + alpha[0] * STD**2 / (alpha[0] ** 2 * STD**2 + sigma[0] ** 2) * away + wrong
    wanted = -scipy.stats.norm(guess, sigma[0]).logpdf(np.asarray(clean[0])).sum()
    assert abs(found[0] / wanted - 1) < 1e-4


@pytest.mark.parametrize("deviation", [0.003, 0.02, 0.5])
def test_pixel_probabilities(deviation):
    """Catches half a pixel too much or too little, closed ends, and a logarithm of a difference that rounds to 0: the 256 add up to 1,
    and far from the mean they are scipy's."""
    levels = np.arange(256)
    clean = levels / 127.5 - 1
    for mean in (-1.3, -0.998, 0.1, 0.9):
        found = np.asarray(log_pixel(jnp.asarray(clean, jnp.float32), jnp.full(256, mean, jnp.float32), deviation), np.float64)
        assert abs(np.exp(found).sum() - 1) < 2e-4
        away = scipy.stats.norm(mean, deviation)
        edges = np.concatenate([[-np.inf], (levels[1:] - 0.5) / 127.5 - 1, [np.inf]])
        wanted = np.log(np.maximum(np.where(edges[1:] > mean, away.sf(edges[:-1]) - away.sf(edges[1:]), np.diff(away.cdf(edges))), 1e-300))
        seen = wanted > -100
        np.testing.assert_allclose(found[seen], wanted[seen], rtol=2e-3, atol=2e-3)
        assert np.isfinite(found).all()


def test_the_pixel_decoder_is_at_time_0_only():
    """Catches a decoder with the first step's own variance: published, it has the posterior's at the second; and L_t that changed."""
    clean, noise = jnp.asarray([[3 / 127.5 - 1, 0.2 + 0.1 / 127.5]]), jnp.asarray([[0.3, -0.2]])
    bound = made("linear", decoder="pixels")
    found, plain = terms(bound, clean, noise)[:, 0], terms(made("linear"), clean, noise)[:, 0]
    np.testing.assert_array_equal(found[1:], plain[1:])
    betas = np.linspace(1e-4, 0.02, 1000)
    assert abs(bound.decoder_variance / (betas[1] * betas[0] / (1 - (1 - betas[0]) * (1 - betas[1]))) - 1) < 1e-9
    assert abs(made("linear").decoder_variance / betas[0] - 1) < 1e-9


@functools.cache
def drawn(draws, count=2048):
    """`count` estimates for one datum, each from its own key; and the sum of all terms, with the noise averaged."""
    bound = made("cosine", draws=draws)
    clean = jnp.full((count, 2), 1.3)
    keys = key_for(base_key(3), "image", example=jnp.arange(count))
    found = jax.device_get(measure(bound, exact, 0.0, clean, None, keys))
    whole = (terms(bound, clean[:1], jnp.full((1, 2), 1.0)) + terms(bound, clean[:1], jnp.full((1, 2), -1.0)))[:, 0] / 2
    return found, whole


@pytest.mark.parametrize("draws", [2, 8, 0])
def test_drawn_times_give_the_sum_of_all(draws):
    """Catches a term that is left out or weighed twice, chances that are not those drawn by, and a sum that is a mean: within 4 standard
    errors. The told variance is the true one (with every time, drawn noise alone, it may be a little above)."""
    found, whole = drawn(draws)
    for name, wanted in (("steps", whole[1:].sum()), ("reconstruction", whole[0])):
        values = getattr(found, name).astype(np.float64)
        error = values.std() / len(values) ** 0.5
        print(f"draws {draws} {name}: {values.mean():.4f} +- {error:.4f}, wanted {wanted:.4f}")
        assert abs(values.mean() - wanted) < 4 * error
    ratio = found.variance.mean() / np.var(found.steps + found.reconstruction)
    print(f"draws {draws}: told variance over the true one {ratio:.3f}")
    assert 0.85 < ratio < (1.5 if draws == 0 else 1.15)


def test_an_example_is_itself_in_any_batch():
    """Catches keys that are drawn for the batch."""
    bound, keys = made("cosine", draws=4), key_for(base_key(0), "image", example=jnp.arange(5))
    clean = jnp.linspace(-1, 1, 10).reshape(5, 2)
    whole = measure(bound, exact, 0.0, clean, None, keys)
    part = measure(bound, exact, 0.0, clean[3:], None, keys[3:])
    np.testing.assert_allclose(whole.total[3:], part.total, rtol=1e-5)
    assert len(np.unique(np.asarray(whole.variance))) == 5


def test_one_time_has_no_transition():
    """Catches a chain of one step that divides by no chances."""
    bound = Bound(SCHEDULES["betas"](values=(0.5,)), INDEX)
    found = measure(bound, exact, 0.0, jnp.ones((2, 3)), None, key_for(base_key(0), "image", example=jnp.arange(2)))
    assert (np.asarray(found.steps) == 0).all() and np.isfinite(np.asarray(found.total)).all()


def test_bits():
    """Catches bits that are nats: a fair coin has ln 2 nats and 1 bit."""
    assert abs(bits(np.log(2)) - 1) < 1e-12


@pytest.mark.parametrize("section, word", [
    ({"schedule": SCHEDULES["flow"]()}, "time is real"), ({"schedule": SCHEDULES["edm"]()}, "time is real"),
    ({"schedule": SCHEDULES["geometric"](steps=5)}, "variance exploding"), ({"draws": 3}, "draws=3: expected an even"),
    ({"draws": -2}, "draws=-2"), ({"variance": "medium"}, "expected one of small, large"), ({"decoder": "image"}, "gaussian, pixels")])
def test_refusals(section, word):
    """Catches a bound that is computed where it has no meaning."""
    with pytest.raises(UserError, match=word):
        Bound(**{"schedule": SCHEDULES["linear"](steps=5), "time_input": INDEX} | section)
