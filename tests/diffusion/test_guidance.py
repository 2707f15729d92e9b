"""Guidance against closed forms, its own formulas in numpy, and diffusers; and how many programs it makes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import base_key
from ldm_jax.core.types import Condition, Level
from ldm_jax.diffusion import guiding
from ldm_jax.diffusion.guidance import (
    OFF,
    Autoguidance,
    Classifier,
    ClassifierFree,
    Guided,
    Labelled,
    Limited,
    Perturbed,
    rescale,
)
from ldm_jax.diffusion.limits import Clip
from ldm_jax.diffusion.prediction import PREDICTIONS, denoiser
from ldm_jax.diffusion.sample import image_keys, sample
from ldm_jax.diffusion.samplers import table_for
from ldm_jax.diffusion.schedule import scaled_linear
from ldm_jax.diffusion.table import with_guidance

SD = scaled_linear()
SHAPE = (3, 2, 2)
LEVEL, TIME = Level(jnp.float32(0.6), jnp.float32(0.8)), jnp.full(2, 500.0)
CONDITION = Condition(vector=jnp.asarray([[1.0, 0.2], [0.5, -1.0]]))
OTHER = Condition(vector=jnp.asarray([[0.1, 0.0], [0.3, 0.4]]))
X = jax.random.normal(base_key(0), (2, *SHAPE))
CALLS = []


def network(params, noisy, time, condition):
    """A small nonlinear network; notes how often it is traced and on how many examples."""
    CALLS.append(noisy.shape[0])
    return jnp.tanh(params["a"] * noisy + 1e-3 * time[:, None, None, None] - 0.3 + condition.vector[:, None, None, :])


def disturbed(params, noisy, time, condition):
    return network({"a": params["a"] * 0.5}, noisy, time, condition)


MODEL, GUIDE = denoiser(network, PREDICTIONS["v"]()), denoiser(disturbed, PREDICTIONS["noise"]())
PARAMS = {"a": jnp.float32(0.8)}


def pair(denoise, condition, params=PARAMS):
    return denoise(params, X, LEVEL, TIME, condition)


def same(got, wanted, atol=1e-6):
    for g, w in zip(got, wanted, strict=True):
        np.testing.assert_allclose(g, w, atol=atol)


@pytest.mark.parametrize("name", ["noise", "v"])
def test_rescale_is_diffusers(name):
    """Catches a deviation over the batch or one channel, of the wrong side, or taken of clean instead of the network's output."""
    peer = pytest.importorskip("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion").rescale_noise_cfg
    torch, prediction = pytest.importorskip("torch"), PREDICTIONS[name]()
    given, null = (np.asarray(network(PARAMS, X, TIME, c)) * np.asarray([1.0, 3.0])[:, None, None, None] for c in (CONDITION, OTHER))
    out = null + 5.0 * (given - null)
    wanted = peer(torch.tensor(out), torch.tensor(given), guidance_rescale=0.7).numpy()
    got = rescale(prediction, prediction.to_hub(out, X, LEVEL), prediction.to_hub(given, X, LEVEL), X, LEVEL, 0.7)
    same(got, prediction.to_hub(jnp.asarray(wanted), X, LEVEL), 2e-5)
    assert np.abs(wanted - out).max() > 0.1


def test_rescale_of_a_flat_image_changes_nothing():
    """Catches 0 / 0."""
    flat = jnp.zeros_like(X)
    out = rescale(PREDICTIONS["noise"](), (X, flat), (X, flat), X, LEVEL, 0.7)
    assert np.isfinite(out[0]).all() and (out[1] == 0).all()


def test_rescaled_guidance_reads_its_own_column():
    """Catches phi fixed in the program, and a rescaling towards the null's deviation."""
    program, told = ClassifierFree(rescaled=MODEL.prediction), Guided(CONDITION, OTHER)
    better, worse = pair(MODEL, CONDITION), pair(MODEL, OTHER)
    plain = [w + 3 * (b - w) for b, w in zip(better, worse)]
    for phi in (0.0, 0.7, 1.0):
        got = program(MODEL)(PARAMS, X, LEVEL, TIME, told, jnp.asarray([3.0, phi]))
        same(got, rescale(MODEL.prediction, plain, better, X, LEVEL, phi), 1e-5)
    assert program.terms == 2 and ClassifierFree().terms == 1


def test_autoguidance_is_the_formula():
    """Catches the guide's parameters given to the model, its condition swapped with the model's, and sides exchanged."""
    both = {"model": PARAMS, "guide": {"a": jnp.float32(1.3)}}
    better, worse = pair(MODEL, CONDITION), pair(GUIDE, OTHER, both["guide"])
    got = Autoguidance(guide=GUIDE)(MODEL)(both, X, LEVEL, TIME, Guided(CONDITION, OTHER), jnp.asarray([2.5]))
    same(got, [w + 2.5 * (b - w) for b, w in zip(better, worse)], 1e-5)
    with pytest.raises(UserError, match=r"autoguidance: expected Guided\(given, null\)"):
        Autoguidance(guide=GUIDE)(MODEL)(both, X, LEVEL, TIME, CONDITION, jnp.asarray([2.5]))


def test_perturbed_guidance_is_the_formula():
    """Catches a weight counted from 0 (the paper's s is w - 1), and sides exchanged."""
    better, worse = pair(MODEL, CONDITION), pair(GUIDE, CONDITION)
    got = Perturbed(perturbed=GUIDE)(MODEL)(PARAMS, X, LEVEL, TIME, CONDITION, jnp.asarray([4.0]))
    same(got, [b + 3.0 * (b - w) for b, w in zip(better, worse)], 1e-5)


MEANS, SHARE, SPREAD = jnp.asarray([-1.0, 1.5]), jnp.asarray([0.3, 0.7]), 0.5  # two classes of 1-d data, one deviation


def of_class(noisy, level, label):
    """log p(noisy | class) up to a constant [B, ...], and the exact estimates of that class."""
    variance = level.alpha**2 * SPREAD**2 + level.sigma**2
    mean = MEANS[label].reshape((-1,) + (1,) * (noisy.ndim - 1)) if jnp.ndim(label) else MEANS[label]
    away = noisy - level.alpha * mean
    return -away**2 / (2 * variance), mean + level.alpha * SPREAD**2 / variance * away


def posterior(noisy, level):
    """p(class | noisy), [2, B, ...]."""
    return jax.nn.softmax(jnp.stack([jnp.log(SHARE[k]) + of_class(noisy, level, k)[0] for k in (0, 1)]), axis=0)


def mixed(params, noisy, level, time, condition):
    """The exact unconditional denoiser of the mixture."""
    clean = sum(p * of_class(noisy, level, k)[1] for k, p in enumerate(posterior(noisy, level)))
    return clean, (noisy - level.alpha * clean) / level.sigma


def log_posterior(params, noisy, time, label):
    """Fed alpha as its time; sigma is sqrt(1 - alpha^2)."""
    level = Level(time[0], jnp.sqrt(1 - time[0] ** 2))
    logs = jnp.log(posterior(noisy, level))[:, :, 0]
    return jnp.take_along_axis(logs, label[None], axis=0)[0]


@pytest.mark.parametrize("alpha", [0.05, 0.6, 0.95])
def test_a_perfect_classifier_makes_the_conditional_denoiser(alpha):
    """Bayes: grad log p(x) + grad log p(y | x) = grad log p(x | y). Catches a missing sigma or alpha, a sign, the gradient of the mean of
    the batch, and labels that reach their neighbours."""
    level = Level(jnp.float32(alpha), jnp.sqrt(1 - jnp.float32(alpha) ** 2))
    x, label = jnp.linspace(-2, 2, 6)[:, None], jnp.asarray([0, 1, 1, 0, 0, 1])
    guided = Classifier(log_posterior)(mixed)
    told, params = Labelled(None, label), {"model": {}, "guide": {}}
    clean, noise = guided(params, x, level, jnp.full(6, alpha), told, jnp.ones(1))
    wanted = of_class(x, level, label)[1]
    np.testing.assert_allclose(clean, wanted, atol=1e-5)
    np.testing.assert_allclose(noise, (x - alpha * wanted) / level.sigma, atol=1e-5)
    same(guided(params, x, level, jnp.full(6, alpha), told, jnp.zeros(1)), mixed({}, x, level, None, None))


def test_a_classifier_says_nothing_of_pure_noise():
    """Catches a division by alpha = 0."""
    def pure(params, noisy, level, time, condition):
        return jnp.full_like(noisy, 0.4), noisy / level.sigma

    guided = Classifier(lambda params, x, time, label: jnp.sum(x, axis=1))(pure)
    x = jnp.ones((2, 1))
    out = guided({"model": {}, "guide": {}}, x, Level(jnp.float32(0), jnp.float32(1)), TIME, Labelled(None, TIME), jnp.full(1, 5.0))
    same(out, (0.4 * x, x))


def test_a_classifier_over_classifier_free_guidance():
    """Catches the weights of the two exchanged, and the pair given to the wrong parameters."""
    def log_probability(params, noisy, time, label):
        return params["b"] * jnp.sum(noisy**2, axis=(1, 2, 3)) * label

    program = Classifier(log_probability, ClassifierFree())
    params, label = {"model": PARAMS, "guide": {"b": jnp.float32(0.2)}}, jnp.asarray([1.0, 2.0])
    got = program(MODEL)(params, X, LEVEL, TIME, Labelled(Guided(CONDITION, OTHER), label), jnp.asarray([3.0, 1.5]))
    free = ClassifierFree()(MODEL)(PARAMS, X, LEVEL, TIME, Guided(CONDITION, OTHER), jnp.asarray([1.5]))
    push = 3.0 * 0.2 * 2 * X * label[:, None, None, None]
    same(got, (free[0] + LEVEL.sigma**2 / LEVEL.alpha * push, free[1] - LEVEL.sigma * push), 1e-5)
    assert program.terms == 2
    with pytest.raises(UserError, match="classifier guidance: expected Labelled"):
        program(MODEL)(params, X, LEVEL, TIME, CONDITION, jnp.ones(2))


def test_limits_come_after_guidance():
    """Catches a threshold on each side of a guidance, which drives the estimate out of range again."""
    guided = Limited(ClassifierFree(), Clip(limit=0.5))
    clean, _ = guided(MODEL)(PARAMS, X, LEVEL, TIME, Guided(CONDITION, OTHER), jnp.asarray([8.0]))
    assert float(jnp.abs(clean).max()) == 0.5 and guided.terms == 1
    raw, _ = ClassifierFree()(MODEL)(PARAMS, X, LEVEL, TIME, Guided(CONDITION, OTHER), jnp.asarray([8.0]))
    np.testing.assert_allclose(clean, jnp.clip(raw, -0.5, 0.5), atol=1e-6)


def made(value, **given):
    return guiding.choice(value, prediction=MODEL.prediction, guide=given.get("guide"), perturbed=given.get("perturbed"))


def test_weights_over_the_rows():
    """Catches an interval with its ends exchanged or in another unit, and a ramp that runs backwards."""
    ratios = np.asarray([np.inf, 8.0, 4.0, 2.0, 1.0])
    free = {"name": "classifier_free", "weight": 3.0}
    for changes, wanted in [({}, [3, 3, 3, 3, 3]), ({"low": 1.0, "high": 4.0}, [1, 1, 3, 3, 1]), ({"low": 4.0}, [3, 3, 1, 1, 1]),
                            ({"begin": 0.2, "stop": 0.6}, [1, 3, 3, 1, 1]), ({"ramp": "linear"}, [1, 1.5, 2, 2.5, 3]),
                            ({"ramp": "linear", "start": 5.0}, [5, 4.5, 4, 3.5, 3]),
                            ({"ramp": "cosine"}, [1, 2 - np.sqrt(0.5), 2, 2 + np.sqrt(0.5), 3]),
                            ({"ramp": "linear", "high": 2.0}, [1, 1, 1, 2.5, 3])]:
        np.testing.assert_allclose(made(free | changes).columns(ratios), [wanted], atol=1e-12, err_msg=str(changes))
    assert made(free | {"ramp": "linear"}).columns([7.0])[0].tolist() == [3.0]
    np.testing.assert_allclose(made(free | {"rescale": 0.7}).columns(ratios), [[3] * 5, [0.7] * 5])
    by_class = made({"name": "classifier", "weight": 4.0, "high": 2.0, "free": 1.5}, guide=network)
    np.testing.assert_allclose(by_class.columns(ratios), [[0, 0, 0, 4, 4], [1.5] * 5])


def test_one_program_for_all_weights():
    """Catches a weight, an interval, a ramp or a phi that became part of the program; off costs one evaluation."""
    keys, told = image_keys([1, 2]), Guided(CONDITION, OTHER)
    free = {"name": "classifier_free"}
    sections = [free | {"weight": w, **changes} for w in (1.5, 7.0) for changes in
                ({}, {"ramp": "linear"}, {"ramp": "cosine", "start": 3.0}, {"low": 0.3, "high": 4.0}, {"begin": 0.5})]

    def run(section, told):
        choice, table = made(section), table_for(SD, 5)
        table = with_guidance(table, *choice.columns(table.level[:, 1] / table.level[:, 0]))
        return sample(MODEL, PARAMS, table, SHAPE, keys, told, choice.program)

    jax.clear_caches()
    CALLS.clear()
    images = [run(section, told) for section in sections]
    assert CALLS == [4], CALLS
    assert len({np.asarray(image).round(4).tobytes() for image in images}) == len(images), "two sections gave one image"
    for phi in (0.3, 0.7):
        run(free | {"weight": 3.0, "rescale": phi}, told)
    assert CALLS == [4, 4], CALLS
    for section in (1, {"name": "off"}, free | {"weight": 1.0}, free | {"weight": 1.0, "ramp": "linear"}):
        run(section, CONDITION)
    assert CALLS == [4, 4, 2], CALLS


def test_choices_name_their_programs():
    """Catches weight 1 that still pays twice, and a program that does not compare equal (each call would compile)."""
    assert made(1).program is OFF and made(2.0).program == ClassifierFree() == made(7.0).program
    assert made({"name": "autoguidance", "weight": 2.0}, guide=GUIDE).program == Autoguidance(guide=GUIDE)
    assert made({"name": "perturbed", "weight": 2.0}, perturbed=lambda places: (places, GUIDE)).program == Perturbed(
        perturbed=(("middle",), GUIDE))
    both = made({"name": "classifier", "weight": 2.0, "free": 3.0}, guide=network)
    assert both.program == Classifier(network, ClassifierFree()) and both.needs == "guide and null"
    off = made({"name": "classifier", "weight": 0.0}, guide=network)
    assert off.program is OFF and off.needs == "nothing" and off.columns(np.ones(3)) == ()
    free = made({"name": "classifier", "weight": 0.0, "free": 3.0}, guide=network)
    assert free.program == ClassifierFree() and free.needs == "null" and free.columns(np.ones(3))[0].tolist() == [3.0] * 3


@pytest.mark.parametrize("section, says", [
    ("strong", "guidance='strong': expected a number"), (True, "expected a number"), (float("nan"), "weight nan is not finite"),
    ({"name": "cfg"}, "guidance.name='cfg': expected one of"), ({"name": "classifier_free"}, "needs weight"),
    ({"name": "classifier_free", "weight": 2.0, "phi": 1.0}, "does not take phi"),
    ({"name": "classifier_free", "weight": 2.0, "rescale": 1.5}, "rescale=1.5: expected a number from 0"),
    ({"name": "classifier_free", "weight": 2.0, "low": 3.0, "high": 2.0}, "0 <= low < high"),
    ({"name": "classifier_free", "weight": 2.0, "stop": 1.5}, "begin=0.0, stop=1.5"),
    ({"name": "classifier_free", "weight": 2.0, "start": 3.0}, "a constant weight has no start"),
    ({"name": "classifier_free", "weight": 2.0, "ramp": "up"}, "ramp='up'"),
    ({"name": "autoguidance", "weight": 2.0}, "needs a guide, a weaker diffusion model"),
    ({"name": "classifier", "weight": 2.0}, "needs a guide, a classifier"),
    ({"name": "perturbed", "weight": 2.0, "places": ()}, "at least one place"),
    ({"name": "off", "weight": 2.0}, "does not take weight")], ids=str)
def test_bad_guidance_gets_a_line(section, says):
    """Catches names and numbers that would be ignored, or break inside the compiled program."""
    with pytest.raises(UserError, match=says):
        made(section)
