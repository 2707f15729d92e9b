"""Predictions, weights, times and the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import base_key
from ldm_jax.core.types import Level
from ldm_jax.diffusion.continuous import Flow
from ldm_jax.diffusion.loss import LOSSES, Objective, denoising_loss, draw
from ldm_jax.diffusion.prediction import PREDICTIONS, TIME_INPUTS, corrupt, denoiser
from ldm_jax.diffusion.schedule import scaled_linear
from ldm_jax.diffusion.times import TIMES, Stratified, Uniform
from ldm_jax.diffusion.weights import WEIGHTS, MinSnr

RNG = np.random.default_rng(0)


def pair(shape=(5, 2, 2, 3)):
    return RNG.standard_normal(shape), RNG.standard_normal(shape)


def levels(scale=1.0):
    alpha = np.linspace(0.1, 0.95, 5)
    return Level(scale * alpha, scale * np.sqrt(1 - alpha**2))


@pytest.mark.parametrize("name", PREDICTIONS)
@pytest.mark.parametrize("scale", [1.0, 1.7])
def test_hub_round_trip(name, scale):
    """Catches a sign or a swap of alpha and sigma in any conversion, and the assumption that alpha^2 + sigma^2 = 1."""
    prediction, level = PREDICTIONS[name](), levels(scale)
    clean, noise = pair()
    output = prediction.target(clean, noise, level)
    for got, wanted in zip(prediction.to_hub(output, corrupt(clean, noise, level), level), (clean, noise)):
        np.testing.assert_allclose(got, wanted, atol=1e-12)


def test_flow_and_edm_are_the_published_ones():
    """Catches flow turned around (clean - noise), and c_out, c_skip or c_in of table 1 with s and d swapped."""
    clean, noise = pair()
    np.testing.assert_array_equal(PREDICTIONS["flow"]().target(clean, noise, levels()), noise - clean)
    s, d = 3.0, 0.5
    level, edm = Level(np.ones(5), np.full(5, s)), PREDICTIONS["edm"](sigma_data=d)
    y, output = clean + s * noise, noise
    wanted = d**2 / (s**2 + d**2) * y + s * d / np.sqrt(s**2 + d**2) * output
    np.testing.assert_allclose(edm.to_hub(output, y, level)[0], wanted)
    np.testing.assert_allclose(edm.inputs(y, level), y / np.sqrt(s**2 + d**2))
    np.testing.assert_allclose(edm.gain(level), (s**2 + d**2) / (s * d) ** 2)


@pytest.mark.parametrize("name", ["edm", "score"])
def test_the_network_sees_unit_variance(name):
    """Catches inputs that are not scaled: at sigma 50 the network would see values of 50; and a denoiser that forgets to."""
    seen = {}

    def network(params, noisy, time, condition):
        seen["std"] = float(jnp.std(noisy))
        return noisy

    level = Level(jnp.ones(2), jnp.full(2, 50.0))
    clean, noise = (jnp.asarray(x, jnp.float32) for x in pair((2, 16, 16, 3)))
    denoiser(network, PREDICTIONS[name]())(None, corrupt(clean, noise, level), level, jnp.zeros(2), None)
    assert seen["std"] == pytest.approx(1, abs=0.1)


def test_noise_cannot_serve_a_schedule_that_ends_in_pure_noise():
    """Catches a division by alpha = 0 met only when samples turn out NaN."""
    for name in ("noise", "score", "edm"):
        with pytest.raises(UserError, match="set the prediction to v, clean or flow"):
            PREDICTIONS[name]().check(scaled_linear(zero_terminal=True))
    for name in ("v", "clean", "flow"):
        PREDICTIONS[name]().check(Flow())
        PREDICTIONS[name]().check(scaled_linear(zero_terminal=True))


def test_v_is_the_published_one():
    """Catches v with its sign turned (which the round trip cannot see): v = alpha noise - sigma clean (2202.00512)."""
    clean, noise = pair()
    level = Level(np.full(5, 0.8), np.full(5, 0.6))
    np.testing.assert_allclose(PREDICTIONS["v"]().target(clean, noise, level), 0.8 * noise - 0.6 * clean)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_any_output_gives_a_pair_that_makes_noisy(name):
    """Catches a hub whose two estimates do not belong together: alpha D + sigma E must be noisy for every output."""
    level, (noisy, output) = levels(), pair()
    clean, noise = PREDICTIONS[name]().to_hub(output, noisy, level)
    np.testing.assert_allclose(corrupt(clean, noise, level), noisy, atol=1e-12)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_min_snr_is_one_objective_in_clean_space(name):
    """Catches the noise form used for v (divides by SNR, not SNR + 1): weight * own loss = min(SNR, 5) * clean loss."""
    prediction, level = PREDICTIONS[name](), levels()
    clean, noise = pair()
    noisy, target = corrupt(clean, noise, level), prediction.target(clean, noise, level)
    output = target + 0.1 * pair()[0]
    square = lambda x: np.mean(x**2, axis=(1, 2, 3))  # noqa: E731
    in_clean = square(prediction.to_hub(output, noisy, level)[0] - clean)
    snr = level.alpha**2 / level.sigma**2
    np.testing.assert_allclose(MinSnr(5.0)(level, prediction) * square(output - target), np.minimum(snr, 5) * in_clean, rtol=1e-6)
    published = {"noise": np.minimum(snr, 5) / snr, "clean": np.minimum(snr, 5), "v": np.minimum(snr, 5) / (snr + 1)}
    if name in published:
        np.testing.assert_allclose(MinSnr(5.0)(level, prediction), published[name], rtol=1e-6)


def objective(prediction="noise", weight="simple", loss="l2", times="uniform", time_input="index"):
    return Objective(scaled_linear(), PREDICTIONS[prediction](), TIME_INPUTS[time_input](), TIMES[times](),
                     WEIGHTS[weight](), LOSSES[loss]())


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_network_has_no_loss(prediction):
    """Catches a target or a corruption at another level than the one the network is fed."""
    goal = objective(prediction)
    clean = np.full((6, 2, 2, 1), 0.3, np.float32)
    t, noise = draw(goal, base_key(1), jnp.arange(6), (2, 2, 1))

    def perfect(params, noisy, time, condition):
        level = goal.schedule.level(time.astype(int))
        alpha, sigma = (x.reshape(-1, 1, 1, 1) for x in (level.alpha, level.sigma))
        return goal.prediction.target(0.3 + 0 * noisy, (noisy - alpha * 0.3) / sigma, level)

    losses = denoising_loss(goal, perfect, None, clean, None, t, noise)
    np.testing.assert_allclose(losses.unweighted, 0, atol=1e-8)


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_loss_is_a_mean_over_one_example(loss):
    """Catches a mean over the batch, a sum over h, w, c, the weight left out or put into `unweighted`."""
    goal = objective("v", "min_snr", loss)
    clean, noise = (x.astype(np.float32) for x in pair((4, 2, 3, 2)))
    t = jnp.asarray([0, 10, 500, 999])
    losses = denoising_loss(goal, lambda params, noisy, time, condition: noisy * 0, None, jnp.asarray(clean), None, t, noise)
    level = goal.schedule.level_at(np.asarray(t))
    target = level.alpha[:, None, None, None] * noise - level.sigma[:, None, None, None] * clean
    wanted = np.mean(np.abs(target) ** {"l1": 1, "l2": 2}[loss], axis=(1, 2, 3))
    snr = level.alpha**2 / level.sigma**2
    np.testing.assert_allclose(losses.unweighted, wanted, rtol=1e-5)
    np.testing.assert_allclose(losses.weighted, wanted * np.minimum(snr, 5) / (snr + 1), rtol=1e-5)


def test_time_inputs():
    """Catches the index rescaled to 0 .. 1, and ln(alpha/sigma) that differs between training and sampling."""
    schedule, t = scaled_linear(), np.asarray([0, 499, 999])
    fed = {name: (make()(schedule, jnp.asarray(t)), make()(schedule, t)) for name, make in TIME_INPUTS.items()}
    np.testing.assert_array_equal(fed["index"][0], [0.0, 499.0, 999.0])
    np.testing.assert_array_equal(fed["index"][1], [0.0, 499.0, 999.0])
    np.testing.assert_allclose(fed["log_snr"][0], schedule.lambdas()[t], rtol=1e-5)
    np.testing.assert_allclose(fed["log_snr"][1], schedule.lambdas()[t], rtol=1e-12)


@pytest.mark.parametrize("times", [Uniform(), Stratified(4)])
def test_draws_do_not_depend_on_the_batch(times):
    """Catches one draw of shape [B] (other examples' numbers when B changes) and time and noise from one key."""
    goal = Objective(scaled_linear(), PREDICTIONS["noise"](), TIME_INPUTS["index"](), times, WEIGHTS["simple"](), LOSSES["l2"]())
    t, noise = draw(goal, base_key(3), jnp.arange(64), (2, 2, 1))
    part_t, part_noise = draw(goal, base_key(3), jnp.arange(8, 12), (2, 2, 1))
    np.testing.assert_array_equal(t[8:12], part_t)
    np.testing.assert_array_equal(noise[8:12], part_noise)


@pytest.mark.parametrize("times", [Uniform(), Stratified(8)])
def test_every_time_is_equally_likely(times):
    """Catches a range that leaves out time 0 or T-1, and strata that overlap or leave gaps."""
    examples = jnp.arange(40000)
    keys = jax.vmap(lambda i: jax.random.fold_in(base_key(0), i))(examples)
    counts = np.bincount(np.asarray(times(keys, examples, scaled_linear(steps=10))), minlength=10)
    assert counts.shape == (10,)
    np.testing.assert_allclose(counts, 4000, atol=6 * np.sqrt(4000))
    if isinstance(times, Stratified):
        assert (np.asarray(times(keys, examples, scaled_linear())).reshape(-1, 8).argsort(axis=1) == np.arange(8)).all()


def test_bad_arguments_get_a_line():
    """Catches a batch that stratified times would bias, gamma 0 (all weights 0) and outputs that broadcast."""
    with pytest.raises(UserError, match="multiple of strata=8"):
        Stratified(8).check(12)
    with pytest.raises(UserError, match="gamma=0"):
        MinSnr(0.0)
    with pytest.raises(UserError, match="gamma=nan"):
        MinSnr(float("nan"))
    goal, clean = objective(), jnp.zeros((2, 2, 2, 1))
    with pytest.raises(UserError, match=r"output \[2, 2, 2, 2\]"):
        denoising_loss(goal, lambda p, x, t, c: jnp.concatenate([x, x], -1), None, clean, None, jnp.asarray([1, 2]), clean)
    with pytest.raises(UserError, match="noise: expected"):
        denoising_loss(goal, lambda p, x, t, c: x, None, clean, None, jnp.asarray([1, 2]), clean[:1])
    with pytest.raises(UserError, match=r"output \[2, 2, 2, 2\]"):
        level = Level(jnp.float32(0.6), jnp.float32(0.8))
        denoiser(lambda p, x, t, c: jnp.concatenate([x, x], -1), PREDICTIONS["noise"]())(None, clean, level, None, None)
