"""Annealed Langevin sampling against the papers' algorithm and closed forms, and the score against the density's gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.core.choose import choose
from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import base_key, key_for
from ldm_jax.core.types import Condition, Level
from ldm_jax.diffusion.guidance import ClassifierFree, Guided
from ldm_jax.diffusion.langevin import AnnealedLangevin, balanced_step, excess, langevin_step
from ldm_jax.diffusion.loss import LOSSES, Objective, denoising_loss
from ldm_jax.diffusion.methods import METHODS
from ldm_jax.diffusion.prediction import PREDICTIONS, TIME_INPUTS
from ldm_jax.diffusion.sample import image_keys, sample
from ldm_jax.diffusion.samplers import table_for
from ldm_jax.diffusion.schedule import from_alpha_bars, geometric, scaled_linear
from ldm_jax.diffusion.score import score_of
from ldm_jax.diffusion.times import TIMES
from ldm_jax.diffusion.weights import WEIGHTS
from tests.diffusion import exact

LADDER = geometric(0.01, 10.0, 100)
SHAPE = (4, 3, 2)
A = {"a": np.float32(0.8)}


def draw(seed, purpose, level, inner, shape=SHAPE):
    key = key_for(key_for(base_key(seed), purpose, step=level), "inner", step=inner)
    return np.asarray(jax.random.normal(key, shape), np.float64)


def start(schedule, seed, shape=SHAPE):
    return np.asarray(sample(keep, {}, table_for(schedule, 1), shape, image_keys([seed])), np.float64)[0]


def keep(params, noisy, level, time, condition):
    return noisy, noisy


def curved(x, sigma, time):
    noise = np.tanh(0.8 * x + 1e-3 * time - 0.3)
    return 0.9 * x - 0.5 * sigma * noise, noise


@pytest.mark.parametrize("alpha, sigma", [(1.0, 3.0), (0.6, 0.8), (1.0, 0.05)])
def test_the_score_is_the_gradient_of_the_log_density(alpha, sigma):
    """Catches a sign, a sigma for its square, and an alpha left out: all against autodiff of the density of noisy data."""
    level, x = Level(jnp.float32(alpha), jnp.float32(sigma)), jnp.asarray([[-1.3], [0.2], [2.0]])

    def log_density(x):
        total = alpha**2 * np.square(exact.STDS) + sigma**2
        return jax.nn.logsumexp(np.log(exact.WEIGHTS) - np.log(total) / 2 - (x - alpha * np.asarray(exact.MEANS)) ** 2 / (2 * total))

    wanted = jax.vmap(jax.grad(log_density))(x[:, 0])[:, None]
    _, noise = exact.mixture(None, x, level, None, None)
    np.testing.assert_allclose(score_of(noise, level), wanted, rtol=2e-4, atol=1e-5)


def test_the_loss_is_denoising_score_matching():
    """Catches the prediction "score" trained on anything but sigma^2 |s + noise / sigma|^2 (arXiv 1907.05600, equations 5 and 6)."""
    objective = Objective(LADDER, PREDICTIONS["score"](), TIME_INPUTS["index"](), TIMES["uniform"](), WEIGHTS["simple"](), LOSSES["l2"]())
    clean, noise = (jax.random.normal(key_for(base_key(0), word), (2, *SHAPE)) for word in ("clean", "noise"))
    times = jnp.asarray([10, 70])
    given = {}

    def network(params, shown, time, condition):
        given["shown"] = shown
        return jnp.sin(shown)

    got = denoising_loss(objective, network, {}, clean, None, times, noise).weighted
    sigma = np.asarray(LADDER.sigmas)[np.asarray(times)][:, None, None, None]
    score = np.sin(np.asarray(given["shown"])) / sigma
    np.testing.assert_allclose(got, np.mean(sigma**2 * (score + noise / sigma) ** 2, (1, 2, 3)), rtol=1e-5)


def test_the_chain_settles_at_its_own_variance():
    """Catches a step that is half or double, and noise of another size: S^2 / (1 - step sigma^2 / (4 S^2)), the unadjusted chain's."""
    ladder = geometric(0.5, 2.0, 2)
    for step in (0.2, 1.5):
        method = AnnealedLangevin(ladder, 1, "trailing", inner=300, step=step, final=False)
        x = np.asarray(method.sample(exact.gaussian, {}, (16, 16, 8), image_keys(range(4))), np.float64)
        total = exact.STD**2 + 4.0
        wanted = total / (1 - step * 4.0 / (4 * total))
        assert abs(x.mean() - exact.MEAN) < 5 * np.sqrt(wanted / x.size)
        assert abs(x.var() / wanted - 1) < 5 * np.sqrt(2 / x.size)


@pytest.mark.parametrize("final", [True, False])
def test_it_is_algorithm_1(final):
    """Catches levels, draws, times or steps of a neighbour, a step that does not follow sigma, and the last denoising lost."""
    epsilon, inner, seed = 3e-5, 3, 7
    method = AnnealedLangevin(LADDER, 4, "exponential", inner=inner, step=epsilon / 0.01**2, final=final)
    got = method.sample(exact.curved, A, SHAPE, image_keys([seed, 8]))[0]
    sigmas = np.geomspace(10.0, 0.01, 4)
    x = start(LADDER, seed)
    for i, (sigma, time) in enumerate(zip(sigmas, np.linspace(99, 0, 4))):
        step = epsilon * sigma**2 / sigmas[-1] ** 2
        for k in range(inner):
            score = -curved(x, sigma, time)[1] / sigma
            x = x + step / 2 * score + np.sqrt(step) * draw(seed, "langevin", i, k)
    x = curved(x, sigma, time)[0] if final else x
    np.testing.assert_allclose(got, x, atol=3e-5)
    assert method.evaluations == 4 * inner + final


def test_where_variance_is_preserved_it_is_the_same_chain_over_alpha():
    """Catches a point that is carried to another alpha without being scaled, and a last denoising that is scaled twice."""
    damped = from_alpha_bars(1 / (1 + np.square(LADDER.sigmas)))
    for final in (True, False):
        run = [AnnealedLangevin(s, 5, "exponential", inner=4, step=0.3, final=final).sample(exact.mixture, {}, SHAPE, image_keys([3, 4]))
               for s in (LADDER, damped)]
        gain = np.hypot(1, LADDER.sigmas[-1])  # both starts are gain * noise; over alpha they are equal
        assert gain == pytest.approx(1 / damped.alphas[-1])
        np.testing.assert_allclose(*run, atol=2e-4)


def moments(method, denoise, count=8, shape=(16, 16, 4)):
    x = np.asarray(method.sample(denoise, {}, shape, image_keys(range(count))), np.float64)
    return x, x.mean(), x.var()


@pytest.mark.parametrize("schedule", [LADDER, scaled_linear()], ids=["exploding", "preserving"])
def test_samples_have_the_moments_of_gaussian_data(schedule):
    """Catches any bias beyond the chain's own, which the recursion of mean and variance gives exactly.

    Its own falls with inner * step: what a level below the data's deviation no longer moves keeps the noise of those above.
    """
    method = AnnealedLangevin(schedule, 20, "exponential", inner=60, step=0.2)
    mean, variance = 0.0, method.path.alpha[0] ** 2 + method.path.sigma[0] ** 2
    for i, (alpha, sigma) in enumerate(zip(method.path.alpha[:-1], method.path.sigma[:-1])):
        scale = alpha / method.path.alpha[max(i - 1, 0)]
        mean, variance, total = mean * scale, variance * scale**2, alpha**2 * exact.STD**2 + sigma**2
        for _ in range(60):
            pull = 0.1 * sigma**2 / total
            mean, variance = mean + pull * (alpha * exact.MEAN - mean), (1 - pull) ** 2 * variance + 0.2 * sigma**2
    slope = alpha * exact.STD**2 / total
    mean, variance = exact.MEAN + slope * (mean - alpha * exact.MEAN), slope**2 * variance
    x, got_mean, got_variance = moments(method, exact.gaussian)
    assert abs(got_mean - mean) < 5 * np.sqrt(variance / x.size)
    assert abs(got_variance / variance - 1) < 5 * np.sqrt(2 / x.size)
    assert abs(mean - exact.MEAN) < 0.01 and abs(variance / exact.STD**2 - 1) < 0.08  # and the chain's own bias is small


def test_a_mixture_keeps_its_proportions():
    """Catches what a Gaussian cannot see: modes in the wrong proportion, which steps at the lowest level alone would never mix."""
    x, mean, variance = moments(AnnealedLangevin(LADDER, 20, "exponential", inner=40, step=0.2), exact.mixture, count=8)
    wanted_mean, wanted_variance = exact.mixture_moments()
    assert abs(mean - wanted_mean) < 5 * np.sqrt(wanted_variance / x.size) and abs(variance / wanted_variance - 1) < 0.05
    assert abs((x < -0.2).mean() - 0.3) < 5 * np.sqrt(0.21 / x.size) + 0.005


def test_the_balanced_step_is_technique_4():
    """Catches a formula in the other paper's convention (step for step / 2): the recursion and the minimum, both by brute force."""
    for growth, inner in ((1.2, 5), (2.0, 3), (1.02, 20)):
        for step in (0.1, 0.7):
            variance = growth**2
            for _ in range(inner):
                variance = (1 - step / 2) ** 2 * variance + step
            assert excess(step, growth, inner) == pytest.approx(variance)
        best = balanced_step(growth, inner)
        assert excess(best, growth, inner) <= min(excess(s, growth, inner) for s in np.linspace(0.001, 2, 3000)) + 1e-5
    method = AnnealedLangevin(LADDER, 10, inner=4)
    np.testing.assert_allclose(method._numbers()[:, 0], balanced_step(1000 ** (1 / 9), 4))


def test_image_i_is_image_i_and_one_program_serves_all():
    """Catches draws for the whole batch, and steps, levels, counts or weights that became static."""
    exact.TRACES.clear()
    jax.clear_caches()
    method = AnnealedLangevin(LADDER, 4, inner=2)
    many = method.sample(exact.curved, A, SHAPE, image_keys([10, 11]))
    other = method.sample(exact.curved, A, SHAPE, image_keys([12, 11]))
    np.testing.assert_array_equal(many[1], other[1])
    assert not np.allclose(many[0], other[0], atol=1e-2)
    for changed in (AnnealedLangevin(LADDER, 9, inner=3, step=0.3), AnnealedLangevin(scaled_linear(), 5, "trailing", final=False)):
        changed.sample(exact.curved, A, SHAPE, image_keys([0, 2**32 - 1]))
    given, null = (Condition(vector=v * jnp.ones((2, 2))) for v in (1.0, 0.0))
    told = method.sample(exact.curved, A, SHAPE, image_keys([10, 11]), given)
    for weights in ((1.0,), (np.full(4, 1.0),)):
        guided = method.sample(exact.curved, A, SHAPE, image_keys([10, 11]), Guided(given, null), ClassifierFree(), weights)
        np.testing.assert_allclose(guided, told, atol=2e-5)
    assert not np.allclose(told, many, atol=1e-2)
    assert sorted(exact.TRACES) == [2, 2, 4], exact.TRACES  # no condition, a condition, guidance
    alone = method.sample(exact.curved, A, SHAPE, image_keys([11]))
    np.testing.assert_allclose(alone[0], many[1], atol=1e-6)


def test_langevin_step_takes_a_step_an_image():
    """Catches a step [B] that is broadcast along the wrong axis."""
    x, score, z = (jnp.full((2, 3), v) for v in (1.0, 2.0, 3.0))
    np.testing.assert_allclose(langevin_step(x, score, jnp.asarray([4.0, 0.0]), z), [[11.0] * 3, [1.0] * 3])


@pytest.mark.parametrize("section, match", [
    ({"inner": 0}, "inner=0: expected a whole number from 1"),
    ({"step": 4.5}, "between 0 and 4"),
    ({"step": "best"}, "step='best'"),
    ({"eta": 1.0}, "does not take eta; it takes"),
])
def test_bad_options_get_a_line(section, match):
    with pytest.raises(UserError, match=match):
        choose(METHODS, {"name": "annealed_langevin", **section}, "sampler", schedule=LADDER, steps=5, grid="exponential",
               time_input=TIME_INPUTS["index"]())


def test_bad_paths_and_weights_get_a_line():
    """Catches a ladder that a balance cannot be found for, pure noise divided by alpha, and guidance without its weight."""
    with pytest.raises(UserError, match="give a step"):
        AnnealedLangevin(LADDER, 1)
    with pytest.raises(UserError, match="pure noise"):
        AnnealedLangevin(scaled_linear(zero_terminal=True), 5, "trailing")
    method = AnnealedLangevin(LADDER, 3)
    with pytest.raises(UserError, match="reads 1 weights a row, got 0"):
        method.sample(exact.gaussian, {}, SHAPE, image_keys([0]), None, ClassifierFree())
    with pytest.raises(UserError, match="3 of them"):
        method.sample(exact.gaussian, {}, SHAPE, image_keys([0]), None, ClassifierFree(), (np.ones(4),))
    with pytest.raises(UserError, match="typed key"):
        method.sample(exact.gaussian, {}, SHAPE, jnp.zeros((2, 2)))
