"""The compiled loop: equal to its numpy definition, one program for everything, and image i is image i."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import base_key, key_for
from ldm_jax.core.types import Condition, Level
from ldm_jax.diffusion.guidance import ClassifierFree, Guided
from ldm_jax.diffusion.prediction import PREDICTIONS, denoiser
from ldm_jax.diffusion.sample import advance, image_keys, sample, start, trajectory
from ldm_jax.diffusion.samplers import table_for
from ldm_jax.diffusion.schedule import scaled_linear
from ldm_jax.diffusion.table import run_on_host

SD = scaled_linear()
SHAPE = (3, 2, 2)
TRACES = []


def network(params, noisy, time, condition):
    """A small nonlinear network of position, time and condition; counts how often it is traced and on how many examples."""
    TRACES.append(noisy.shape[0])
    shift = 0.0 if condition is None or condition.vector is None else condition.vector[:, None, None, :]
    return jnp.tanh(params["a"] * noisy + 1e-3 * time[:, None, None, None] - 0.3 + shift)


DENOISE = denoiser(network, PREDICTIONS["noise"]())
PARAMS = {"a": jnp.float32(0.8)}


def on_host(x, alpha, sigma, time):
    noise = np.tanh(0.8 * x + 1e-3 * time - 0.3)
    return (x - sigma * noise) / alpha, noise


@pytest.mark.parametrize("sampler", [
    "ddpm", {"name": "ddim", "eta": 0.7}, "euler", "heun", {"name": "heun", "form": "flow"}, "plms", "lms", "dpm_3", "dpmpp_3s",
    "dpmpp_sde", "dpmpp_2m", "dpmpp_3m_sde", {"name": "unipc", "order": 3}, "edm"], ids=str)
def test_the_compiled_loop_is_the_numpy_loop(sampler):
    """Catches a memory shifted the wrong way, a term with its neighbour's weight, and draws from other keys than stated."""
    table, keys = table_for(SD, 7, sampler), image_keys([5, 6])
    state = start(table, keys, SHAPE)
    draws = [jnp.stack([jax.random.normal(key_for(base_key(seed), "row", step=r), SHAPE) for seed in (5, 6)])
             for r in range(table.rows)]
    wanted = run_on_host(table, on_host, np.asarray(state.x, np.float64), np.asarray(draws, np.float64))
    np.testing.assert_allclose(sample(DENOISE, PARAMS, table, SHAPE, keys), wanted, atol=2e-5)


def test_nothing_recompiles():
    """Catches a row count, a weight or a seed that became static, and a denoiser compared by identity."""
    with_weight = Condition(vector=jnp.ones((2, 2))), Condition(vector=jnp.zeros((2, 2)))
    jax.clear_caches()
    TRACES.clear()
    for seed, (sampler, steps) in enumerate([("ddim", 5), ("ddpm", 9), ("heun", 4), ("dpmpp_2m", 1), ("euler", 30),
                                             ({"name": "ddim", "eta": 1.0}, 3), ("plms", 6), ("lms", 5), ("dpm_3", 4), ("dpmpp_3s", 7),
                                             ("dpmpp_sde", 5), ("dpmpp_3m_sde", 6), ({"name": "unipc", "order": 3}, 8), ("edm", 5)]):
        keys = image_keys([seed, 2**32 - 1 - seed])
        again = denoiser(network, PREDICTIONS["noise"]())
        sample(again, PARAMS, table_for(SD, steps, sampler), SHAPE, keys)
        weight = 1.5 + seed
        sample(again, PARAMS, table_for(SD, steps, sampler, guidance=(weight,)), SHAPE, keys, Guided(*with_weight), ClassifierFree())
    assert len(set(TRACES)) == 2 and sorted(set(TRACES)) == [2, 4], TRACES  # off: B examples, on: 2 B
    first = len(TRACES)
    list(trajectory(DENOISE, PARAMS, table_for(SD, 5), start(table_for(SD, 5), keys, SHAPE), every=2))
    sample(DENOISE, {"a": jnp.float32(0.1)}, table_for(SD, 3), SHAPE, keys)
    assert len(TRACES) == first == 2, TRACES


def test_image_i_depends_on_its_own_seed_only():
    """Catches noise drawn for the whole batch at once, and a generator (rbg) that draws other numbers under vmap."""
    table = table_for(SD, 4, "ddpm")
    many = sample(DENOISE, PARAMS, table, SHAPE, image_keys(range(10, 26)))
    for i in (0, 3, 15):
        alone = sample(DENOISE, PARAMS, table, SHAPE, image_keys([10 + i]))
        np.testing.assert_allclose(many[i], alone[0], atol=1e-6)
    assert np.unique(np.asarray(many).reshape(16, -1).round(3), axis=0).shape[0] == 16


def test_image_keys_are_base_keys():
    """Catches large seeds wrapped through int32 on the way to the device."""
    for seed in (0, 1, 2**31, 2**32 - 1):
        assert (jax.random.key_data(image_keys([seed])[0]) == jax.random.key_data(base_key(seed))).all()


def test_pieces_equal_the_whole():
    """Catches a row counter that restarts (other draws, other weights) and a memory that is lost between pieces."""
    keys = image_keys([1])
    for table in (table_for(SD, 6, "ddpm"), table_for(SD, 6, "dpmpp_2m")):
        whole = sample(DENOISE, PARAMS, table, SHAPE, keys)
        states = list(trajectory(DENOISE, PARAMS, table, start(table, keys, SHAPE), every=4))
        assert [s.row for s in states] == [4, 6]
        np.testing.assert_array_equal(states[-1].x, whole)
        np.testing.assert_array_equal(advance(DENOISE, PARAMS, table, states[-1]).x, whole)


def test_start():
    """Catches image-to-image started without its noise or at another level, and generation without the gain."""
    table, keys = table_for(SD, 10, strength=0.5), image_keys([0, 1])
    noise = np.asarray(start(table, keys, SHAPE).x)
    assert 0.5 < noise.std() < 1.5 and not np.allclose(noise[0], noise[1])
    clean = jnp.full((2, *SHAPE), 3.0)
    np.testing.assert_allclose(start(table, keys, SHAPE, clean).x, SD.alphas[499] * 3 + SD.sigmas[499] * noise, atol=1e-5)
    draw = jax.random.normal(key_for(base_key(0), "row", step=0), SHAPE)
    assert not np.allclose(noise[0], draw, atol=1e-3)


def test_a_pair_that_does_not_belong_together_is_respected():
    """Catches E recomputed from D: with D clipped and E raw (diffusers' DDIM), both columns must be what denoise returned."""
    table, keys = table_for(SD, 5), image_keys([3])
    state = start(table, keys, SHAPE)
    out = advance(clipped, PARAMS, table, state).x
    host = lambda x, a, s, t: (lambda pair: (np.clip(pair[0], -1, 1), pair[1]))(on_host(x, a, s, t))  # noqa: E731
    np.testing.assert_allclose(out, run_on_host(table, host, np.asarray(state.x, np.float64)), atol=1e-5)


def clipped(params, noisy, level, time, condition):
    clean, noise = DENOISE(params, noisy, level, time, condition)
    return jnp.clip(clean, -1, 1), noise


def test_guidance_is_the_formula():
    """Catches the halves swapped, w off by one (paper's w = ours - 1), and a null condition paired with other rows."""
    given, null = Condition(vector=jnp.asarray([[1.0, 0.2], [0.5, -1]])), Condition(vector=jnp.asarray([[0.1, 0.0], [0.3, 0.4]]))
    x = jax.random.normal(base_key(0), (2, *SHAPE))
    level, time = Level(jnp.float32(0.6), jnp.float32(0.8)), jnp.full(2, 500.0)
    for name, make in PREDICTIONS.items():
        denoise = denoiser(network, make())
        guided = ClassifierFree()(denoise)(PARAMS, x, level, time, Guided(given, null), jnp.asarray([2.5]))
        out_given, out_null = (network(PARAMS, x, time, c) for c in (given, null))
        by_output = make().to_hub(out_null + 2.5 * (out_given - out_null), x, level)
        for got, wanted in zip(guided, by_output):
            np.testing.assert_allclose(got, wanted, atol=1e-5, err_msg=name)


def test_weight_one_is_off_and_zero_is_null():
    """Catches guidance that is not the identity at 1; and the column of the row not read (interval of weights)."""
    given, null = Condition(vector=jnp.ones((2, 2))), Condition(vector=jnp.zeros((2, 2)))
    keys = image_keys([1, 2])
    run = lambda weight: sample(DENOISE, PARAMS, table_for(SD, 5, guidance=(weight,)), SHAPE, keys,  # noqa: E731
                                Guided(given, null), ClassifierFree())
    np.testing.assert_allclose(run(1.0), sample(DENOISE, PARAMS, table_for(SD, 5), SHAPE, keys, given), atol=1e-5)
    np.testing.assert_allclose(run(0.0), sample(DENOISE, PARAMS, table_for(SD, 5), SHAPE, keys, null), atol=1e-5)
    np.testing.assert_allclose(run(np.ones(5)), run(1.0), atol=1e-6)
    assert not np.allclose(run(np.asarray([1, 1, 3.0, 1, 1])), run(1.0), atol=1e-3)


def test_bad_arguments_get_a_line():
    """Catches guidance without a null or without its column, parts that differ, untyped keys, seeds that would wrap."""
    keys, table = image_keys([1, 2]), table_for(SD, 3, guidance=(2.0,))
    given = Condition(vector=jnp.ones((2, 2)))
    for call, says in [
        (lambda: sample(DENOISE, PARAMS, table, SHAPE, keys, given, ClassifierFree()), r"expected Guided\(given, null\)"),
        (lambda: sample(DENOISE, PARAMS, table, SHAPE, keys, Guided(given, Condition()), ClassifierFree()), "different parts"),
        (lambda: sample(DENOISE, PARAMS, table, SHAPE, keys, Guided(given, Condition(vector=jnp.ones((1, 2)))), ClassifierFree()),
         "of one shape"),
        (lambda: sample(DENOISE, PARAMS, table, SHAPE, keys, given), "reads 0 weights a row, got 1"),
        (lambda: sample(DENOISE, PARAMS, table_for(SD, 3), SHAPE, keys, Guided(given, given), ClassifierFree()), "reads 1 weights"),
        (lambda: start(table, jnp.zeros((2, 2), jnp.uint32), SHAPE), "typed key per image"),
        (lambda: start(table, keys, SHAPE, jnp.zeros((1, *SHAPE))), "clean: expected"),
        (lambda: image_keys([0, 2**32]), r"seeds\[1\]=4294967296"),
        (lambda: image_keys([-1]), r"seeds\[0\]=-1"),
        (lambda: next(trajectory(DENOISE, PARAMS, table, start(table, keys, SHAPE), every=0)), "every=0"),
    ]:
        with pytest.raises(UserError, match=says):
            call()
