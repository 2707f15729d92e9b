"""The error measures, offset noise, the learned log-variance, and what training descends."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import base_key
from ldm_jax.diffusion.continuous import Edm, Flow
from ldm_jax.diffusion.log_variance import LOG_VARIANCES, Learned
from ldm_jax.diffusion.loss import LOSSES, Huber, Losses, Objective, denoising_loss, descended, draw
from ldm_jax.diffusion.prediction import PREDICTIONS, TIME_INPUTS
from ldm_jax.diffusion.schedule import geometric, scaled_linear
from ldm_jax.diffusion.times import TIMES, Importance
from ldm_jax.diffusion.weights import WEIGHTS, check_weight


def objective(schedule, prediction="v", weight="simple", loss="l2", times="uniform", **others):
    made = WEIGHTS[weight](schedule=schedule) if weight == "elbo" else WEIGHTS[weight]()
    return Objective(schedule, PREDICTIONS[prediction](), TIME_INPUTS["index"](), TIMES[times]() if isinstance(times, str) else times,
                     made, LOSSES[loss](), **others)


def test_huber_is_the_published_one():
    """Catches the other convention (half the square, or c |e| without the 2), and the loss of all digits at small errors."""
    error = np.asarray([[1e-6, -1e-3, 0.05], [0.1, -2.0, 30.0]])
    wanted = np.mean(2 * 0.3 * (np.sqrt(error**2 + 0.3**2) - 0.3), axis=1)
    np.testing.assert_allclose(Huber(0.3)(jnp.asarray(error)), wanted, rtol=1e-5)
    tiny = jnp.full((1, 4), 1e-5)
    np.testing.assert_allclose(Huber()(tiny), LOSSES["l2"]()(tiny), rtol=1e-4)
    large = jnp.full((1, 4), 1e5)
    np.testing.assert_allclose(Huber()(large), 2 * 0.1 * LOSSES["l1"]()(large), rtol=1e-4)
    with pytest.raises(UserError, match="c=0"):
        Huber(0.0)


@pytest.mark.parametrize("schedule", [scaled_linear(zero_terminal=True), geometric(), Flow(), Edm()],
                         ids=["zero_terminal", "geometric", "flow", "edm"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_network_has_no_loss(prediction, schedule):
    """Catches a target or a corruption at another level than the one that the network is fed, for every schedule it can serve."""
    goal = objective(schedule, prediction, times="stratified")
    try:
        goal.prediction.check(schedule)
    except UserError:
        return
    shape, clean = (2, 2, 1), np.full((8, 2, 2, 1), 0.3, np.float32)
    t, noise = draw(goal, base_key(1), jnp.arange(8), shape)

    def perfect(params, shown, time, condition):
        level = schedule.level(time.astype(jnp.int32) if schedule.steps else time)
        alpha, sigma = (x.reshape(-1, 1, 1, 1) for x in (level.alpha, level.sigma))
        noisy = alpha * 0.3 + sigma * noise
        np.testing.assert_allclose(shown, goal.prediction.inputs(noisy, level), rtol=1e-5, atol=1e-6)
        return goal.prediction.target(0.3 + 0 * noisy, noise, level)

    losses = denoising_loss(goal, perfect, None, clean, None, t, noise)
    np.testing.assert_allclose(losses.unweighted, 0, atol=1e-8)


def test_offset_noise_has_its_covariance_and_leaves_the_rest_alone():
    """Catches one offset for all channels or examples, its square for its strength, and other draws of the noise under it."""
    plain, offset = (draw(objective(scaled_linear(), offset_noise=s), base_key(0), jnp.arange(20_000), (2, 1, 2))[1] for s in (0.0, 0.5))
    shift = np.asarray(offset - plain)
    np.testing.assert_allclose(shift[:, 0], shift[:, 1], atol=1e-6)
    np.testing.assert_allclose(np.cov(shift[:, 0, 0].T), 0.25 * np.eye(2), atol=5 * 0.25 * (2 / 20_000) ** 0.5)
    rows = np.asarray(offset).reshape(20_000, 4)  # (place 0, channel 0), (0, 1), (1, 0), (1, 1)
    wanted = np.eye(4) + 0.25 * (np.arange(4)[:, None] % 2 == np.arange(4) % 2)
    np.testing.assert_allclose(np.cov(rows.T), wanted, atol=5 * 1.25 * (2 / 20_000) ** 0.5)
    part = draw(objective(scaled_linear(), offset_noise=0.5), base_key(0), jnp.arange(8, 12), (2, 1, 2))[1]
    np.testing.assert_array_equal(offset[8:12], part)


@pytest.mark.parametrize("schedule, bins", [(scaled_linear(steps=4), 0), (Flow(), 4)], ids=["times", "bins"])
def test_a_log_variance_learns_the_log_of_its_loss(schedule, bins):
    """Catches loss * exp(u), u / 2, one number for all times, or a bin beside its time: at the least, u_t = ln(mean loss at t)."""
    goal = objective(schedule, log_variance=Learned(bins=bins))
    params, wanted = goal.log_variance.init(schedule), np.log([0.02, 0.3, 1.0, 5.0])
    t = schedule.pick((jnp.arange(8) + 0.5) / 8)
    loss = jnp.exp(jnp.repeat(jnp.asarray(wanted), 2)) * jnp.asarray([0.5, 1.5] * 4)
    descent = optax.adam(0.05)

    @jax.jit
    def run(params):
        def step(_, held):
            params, state = held
            grads = jax.grad(lambda p: jnp.mean(descended(goal, Losses(loss, loss, t), p, None)[0]))(params)
            updates, state = descent.update(grads, state)
            return optax.apply_updates(params, updates), state
        return jax.lax.fori_loop(0, 1000, step, (params, descent.init(params)))[0]

    learned = run(params)
    np.testing.assert_allclose(learned["u"], wanted, atol=0.02)
    value = descended(goal, Losses(loss, loss, t), learned, None)[0]
    np.testing.assert_allclose(value.reshape(4, 2).mean(1), 1 + wanted, atol=0.02)


def test_what_is_descended_and_what_is_remembered():
    """Catches shares in what is remembered (they would feed on themselves), the u itself in it (its sum with the loss may be 0, and that
    time is never drawn again), or the loss without its weight."""
    schedule, times = scaled_linear(steps=4), Importance(remembered=1)
    goal = objective(schedule, "noise", "min_snr", times=times, log_variance=Learned())
    memory = {"losses": jnp.asarray([[1.0], [2.0], [3.0], [4.0]]), "seen": jnp.ones(4, jnp.int32)}
    t, weighted, u = jnp.asarray([3, 1]), jnp.asarray([0.5, 0.7]), jnp.asarray([0.0, 1.0, 2.0, -1.0])
    value, share, after = descended(goal, Losses(weighted, weighted * 9, t), {"u": u}, memory)
    chances = 0.999 * np.arange(1, 5) / 10 + 0.001 / 4
    scaled = np.asarray([0.5 * np.e, 0.7 / np.e])
    np.testing.assert_allclose(share, 1 / (4 * chances[[3, 1]]), rtol=1e-5)
    np.testing.assert_allclose(value, (scaled + [-1.0, 1.0]) * share, rtol=1e-5)
    np.testing.assert_allclose(after["losses"][:, 0], [1.0, scaled[1], 3.0, scaled[0]], rtol=1e-5)
    np.testing.assert_array_equal(after["seen"], [1, 2, 1, 2])


ALL = {"scaled_linear": scaled_linear(steps=20), "zero_terminal": scaled_linear(steps=20, zero_terminal=True),
       "geometric": geometric(steps=20), "flow": Flow(), "edm": Edm()}


@pytest.mark.parametrize("name", ALL)
def test_every_combination_that_is_allowed_has_a_finite_loss(name):
    """Catches a choice that the ends of a schedule make infinite or NaN, and one that cannot be traced with the others."""
    schedule, tried, clean = ALL[name], 0, jnp.full((20, 2, 2, 1), 0.3)
    for turn, prediction in enumerate(PREDICTIONS):
        for number, weight in enumerate(WEIGHTS):
            if (turn + number) % 2 and number != turn % len(WEIGHTS):  # half of them: every choice is met, with half of the others
                continue
            times, loss = list(TIMES)[number % len(TIMES)], list(LOSSES)[number % len(LOSSES)]
            try:
                goal = objective(schedule, prediction, weight, loss, times, log_variance=Learned(), offset_noise=0.1)
                goal.prediction.check(schedule)
                check_weight(goal.weight, schedule, goal.prediction)
            except UserError:
                continue
            tried += 1

            def total(scale, goal=goal):
                memory = goal.times.start(schedule)
                t, noise = draw(goal, base_key(0), jnp.arange(20), (2, 2, 1), memory or None)
                ends = jnp.asarray([schedule.first, schedule.last], t.dtype)
                t = jnp.where(jnp.arange(20) < 2, jnp.pad(ends, (0, 18)), t)
                losses = denoising_loss(goal, lambda p, x, time, c: scale * x, None, clean, None, t, noise)
                value, _, after = descended(goal, losses, goal.log_variance.init(schedule), memory or None)
                return jnp.mean(value), after

            shapes = jax.eval_shape(total, jnp.float32(0.5))
            assert shapes[0].shape == ()
            if number == turn % len(WEIGHTS):  # each choice once; that weights are finite, test_weights.py shows for all
                value, slope = jax.value_and_grad(total, has_aux=True)(jnp.float32(0.5))
                assert np.isfinite(value[0]) and np.isfinite(slope), (prediction, weight, times, loss)
    assert tried == (16 if name in ("scaled_linear", "geometric", "edm") else 7)


def test_without_a_log_variance_nothing_is_trained():
    """Catches a parameter that no gradient reaches, which a checkpoint would carry."""
    assert LOG_VARIANCES["none"]().init(scaled_linear()) == {} and not LOG_VARIANCES["none"].learned
    with pytest.raises(UserError, match="bins=3: expected a divisor of the 1000"):
        Learned(bins=3).check_schedule(scaled_linear())
