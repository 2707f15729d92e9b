"""The two step builders against closed forms and brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ldm_jax.core.trees import norm
from ldm_jax.train.optim import Average, finished
from ldm_jax.train.state import new_state
from ldm_jax.train.steps import Balance, Descent, Players, adversarial, single

KEY = jax.random.key(0)


def descent(rate=0.1, accumulate=1, decay=0.0, clip=0.0):
    return Descent(finished(optax.sgd(rate), clip, accumulate), lambda step: jnp.asarray(rate), Average(decay, accumulate))


def square(params, frozen, batch, key, step):
    """Half the mean squared distance of w to each row."""
    return 0.5 * jnp.mean(jnp.sum(jnp.square(params["w"] - batch["x"]), -1)), {}


def start(how, w=(1.0, 2.0)):
    return new_state({"w": jnp.asarray(w)}, how.transform, how.average)


def test_single_descends_by_the_mean_gradient():
    """Mistake: a sum over the batch, or an update in the wrong direction. Closed form: w - rate (w - mean x)."""
    how = descent(0.1)
    batch = {"x": jnp.asarray([[3.0, 0.0], [5.0, 2.0]])}
    state, metrics = jax.jit(single(square, how))(start(how), {}, batch, KEY)
    np.testing.assert_allclose(state.params["w"], [1.3, 1.9], rtol=1e-6)
    assert metrics["gradient_norm"] == pytest.approx(np.hypot(3, 1), rel=1e-6)
    assert metrics["update_norm"] == pytest.approx(0.1 * np.hypot(3, 1), rel=1e-6)
    assert int(state.step) == 1


def test_accumulated_steps_equal_one_large_batch():
    """Mistake: an update every step, or a sum instead of the mean of gradients, or an average that counts steps."""
    small, large = descent(0.1, accumulate=2, decay=0.9), descent(0.1, decay=0.9)
    rows = jnp.asarray([[3.0, 0.0], [5.0, 2.0], [-1.0, 4.0], [0.0, 0.0]])
    state = start(small)
    for part in (rows[:2], rows[2:]):
        state, _ = jax.jit(single(square, small))(state, {}, {"x": part}, KEY)
    whole, _ = jax.jit(single(square, large))(start(large), {}, {"x": rows}, KEY)
    np.testing.assert_allclose(state.params["w"], whole.params["w"], rtol=1e-6)
    np.testing.assert_allclose(state.ema["w"], whole.ema["w"], rtol=1e-6)


def test_average_warms_up():
    """Mistake: a constant decay, which keeps the initial parameters for ever; decays are 2/11, 3/12, ... as in the LDM code."""
    average, params = Average(0.9999), {"w": jnp.asarray(1.0)}
    ema = {"w": jnp.asarray(0.0)}
    for step, decay in enumerate((2 / 11, 3 / 12, 4 / 13)):
        expected = decay * float(ema["w"]) + (1 - decay)
        ema = average.update(ema, params, jnp.asarray(step))
        assert float(ema["w"]) == pytest.approx(expected, rel=1e-6)
    late = average.update({"w": jnp.asarray(0.0)}, params, jnp.asarray(10**6))
    assert float(late["w"]) == pytest.approx(1e-4, rel=1e-3)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_bad_step_latches(where):
    """Mistake: a non-finite update that is applied, counted or averaged, or a latch that opens again.

    "gradient": the loss is finite and only its gradient is not.
    """
    how = descent(0.1, decay=0.9)

    def loss(params, frozen, batch, key, step):
        if where == "loss":
            return jnp.sum(params["w"]) * batch["x"], {}
        return jnp.sum(params["w"]) + jnp.sqrt(jnp.square(params["w"][0]) * batch["x"]), {}  # d sqrt(0) is infinite

    step = jax.jit(single(loss, how))
    good = start(how, (0.0, 2.0)) if where == "gradient" else start(how)
    poison = {"x": jnp.asarray(1.0 if where == "gradient" else np.nan)}
    state, metrics = step(good, {}, poison, KEY)
    assert bool(state.bad) and float(metrics["bad"]) == 1 and int(state.step) == 0
    state, metrics = step(state, {}, {"x": jnp.asarray(0.0)}, KEY)
    assert bool(state.bad) and int(state.step) == 0 and float(metrics["bad"]) == 1
    np.testing.assert_array_equal(state.params["w"], good.params["w"])
    np.testing.assert_array_equal(state.ema["w"], good.ema["w"])


def players(critic=True):
    """image = features @ kernel with features = batch @ body; reconstruction L2, critic -mean(image @ direction)."""
    direction = jnp.asarray([[1.0], [-2.0], [0.5]])

    def forward(params, batch, key, step):
        features = jnp.tanh(batch["image"] @ params["body"])
        return (features @ params["kernel"], 0.01 * jnp.sum(jnp.square(params["body"]))), features

    def reconstruction(image, frozen, batch):
        return jnp.mean(jnp.square(image - batch["image"])), {}

    def discriminator(extra, real, fake, active):
        return {"count": extra["count"] + active}, {}

    return Players(forward, reconstruction, (lambda image, extra: -jnp.mean(image @ direction)) if critic else None, discriminator,
                   lambda params, kernel, features: features @ kernel, lambda params: params["kernel"],
                   lambda params, extra, aux, key, step: (params, extra, {}))


def test_adversarial_gradient_and_adaptive_weight_by_brute_force():
    """Mistake: the adaptive weight from another layer's gradients, a penalty lost, the weight differentiated, or a critic's
    gradient not scaled by it. Oracle: three separate jax.grad calls over all parameters."""
    keys = jax.random.split(KEY, 3)
    params = {"body": jax.random.normal(keys[0], (3, 4)), "kernel": jax.random.normal(keys[1], (4, 3))}
    batch = {"image": jax.random.normal(keys[2], (5, 3))}
    game, balance = players(), Balance(weight=0.7, start=0)

    def terms(params):
        (image, penalty), _ = game.forward(params, batch, KEY, 0)
        return game.reconstruction_loss(image, {}, batch)[0], penalty, game.critic_loss(image, {})

    rec, pen, gan = (jax.grad(lambda p, i=i: terms(p)[i])(params) for i in range(3))
    weight = 0.7 * norm(rec["kernel"]) / (norm(gan["kernel"]) + 1e-4)
    expected = jax.tree.map(lambda r, p, g: r + p + weight * g, rec, pen, gan)
    how = descent(1.0)
    state = new_state(params, how.transform, how.average, {"count": jnp.zeros(())})
    after, metrics = jax.jit(adversarial(game, how, balance))(state, {}, batch, KEY)
    assert float(metrics["critic/weight"]) == pytest.approx(float(weight), rel=1e-5)
    for name in params:
        np.testing.assert_allclose(params[name] - after.params[name], expected[name], rtol=2e-4, atol=1e-6)


def test_critic_waits_for_its_start():
    """Mistake: a critic that acts before its start step, or never after it."""
    how, game = descent(0.01), players()
    params = {"body": jnp.ones((3, 4)) * 0.1, "kernel": jnp.ones((4, 3)) * 0.1}
    state = new_state(params, how.transform, how.average, {"count": jnp.zeros(())})
    plain = new_state(params, how.transform, how.average)
    batch = {"image": jnp.eye(3)}
    step, alone = jax.jit(adversarial(game, how, Balance(0.5, start=2))), jax.jit(adversarial(players(False), how, Balance()))
    weights = []
    for i in range(4):
        state, metrics = step(state, {}, batch, KEY)
        plain, _ = alone(plain, {}, batch, KEY)
        weights.append(float(metrics["critic/weight"]) > 0)
        if i == 1:
            np.testing.assert_allclose(state.params["kernel"], plain.params["kernel"], rtol=1e-6)
    assert weights == [False, False, True, True]
    assert float(state.extra["count"]) == 2
    assert not np.allclose(state.params["kernel"], plain.params["kernel"], rtol=1e-6)
