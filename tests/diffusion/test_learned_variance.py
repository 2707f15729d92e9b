"""DDPM with a variance that the network predicts: against diffusers, and against the table it generalises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import base_key, key_for
from ldm_jax.core.types import Condition
from ldm_jax.diffusion.guidance import ClassifierFree, Guided
from ldm_jax.diffusion.learned_variance import LearnedVariance, RangeDenoiser
from ldm_jax.diffusion.prediction import PREDICTIONS, denoiser
from ldm_jax.diffusion.sample import image_keys, sample
from ldm_jax.diffusion.samplers import table_for
from ldm_jax.diffusion.schedule import scaled_linear

SD = scaled_linear()
SHAPE, SEEDS = (3, 2, 2), (5, 6)
TRACES = []


def network(params, noisy, time, condition):
    """Noise, then the fraction, nonlinear in the point, the time and the condition; counts its traces."""
    TRACES.append(noisy.shape[0])
    shift = 0.0 if condition is None else condition.vector[:, None, None, :]
    noise = jnp.tanh(params["a"] * noisy + 1e-3 * time[:, None, None, None] - 0.3 + shift)
    return jnp.concatenate([noise, jnp.sin(2 * noisy + params["b"] + shift)], -1)


DENOISE = RangeDenoiser(network, PREDICTIONS["noise"]())
PARAMS = {"a": jnp.float32(0.8), "b": jnp.float32(0.1)}


def draws(rows):
    return [np.stack([jax.random.normal(key_for(base_key(seed), "row", step=r), SHAPE) for seed in SEEDS]) for r in range(rows)]


@pytest.mark.parametrize("steps", [2, 10])
def test_as_diffusers(steps, monkeypatch):
    """Catches the two logarithms swapped, f in [-1, 1] used as a share, a variance used as a deviation, noise in the last row."""
    torch = pytest.importorskip("torch", reason="torch is not installed: no independent implementation to compare with")
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: no independent implementation to compare with")
    peer = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                                   variance_type="learned_range", timestep_spacing="leading")
    peer.set_timesteps(steps)
    x = np.stack([jax.random.normal(key_for(base_key(seed), "start"), SHAPE) for seed in SEEDS])
    x, noise = torch.tensor(x, dtype=torch.float64).movedim(-1, 1), draws(steps)
    for i, t in enumerate(peer.timesteps):
        output = torch.cat([torch.tanh(0.8 * x + 1e-3 * float(t) - 0.3), torch.sin(2 * x + 0.1)], 1)
        monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor",
                            lambda *a, i=i, **k: torch.tensor(noise[i]).double().movedim(-1, 1))
        x = peer.step(output, t, x).prev_sample
    got = LearnedVariance(SD, steps, {"name": "leading", "offset": 0}).sample(DENOISE, PARAMS, SHAPE, image_keys(SEEDS))
    np.testing.assert_allclose(got, x.movedim(1, -1).numpy(), atol=1e-5)


def ends(params, noisy, time, condition):
    """The fraction is params["f"] everywhere."""
    return jnp.concatenate([jnp.tanh(noisy), jnp.full_like(noisy, 1.0) * params["f"]], -1)


def half(params, noisy, time, condition):
    return jnp.tanh(noisy)


@pytest.mark.parametrize("fraction, variance", [(-1.0, "small"), (1.0, "large")])
def test_its_ends_are_the_two_fixed_variances(fraction, variance):
    """Catches bounds that are not DDPM's: f = -1 is the table with the small variance, f = 1 the one with the large."""
    keys = image_keys(SEEDS)
    got = LearnedVariance(SD, 8).sample(RangeDenoiser(ends, PREDICTIONS["noise"]()), {"f": jnp.float32(fraction)}, SHAPE, keys)
    table = table_for(SD, 8, {"name": "ddpm", "variance": variance})
    np.testing.assert_allclose(got, sample(denoiser(half, PREDICTIONS["noise"]()), {}, table, SHAPE, keys), atol=1e-5)


def test_guidance_and_one_program():
    """Catches a fraction that is guided too, weight 1 unlike off, and a step count or a weight that became static."""
    given, null = Condition(vector=jnp.ones((2, 2))), Condition(vector=jnp.zeros((2, 2)))
    keys = image_keys(SEEDS)
    run = lambda steps, weight: LearnedVariance(SD, steps).sample(DENOISE, PARAMS, SHAPE, keys, Guided(given, null),  # noqa: E731
                                                                   ClassifierFree(), (weight,))
    np.testing.assert_allclose(run(5, 1.0), LearnedVariance(SD, 5).sample(DENOISE, PARAMS, SHAPE, keys, given), atol=1e-5)
    TRACES.clear()
    strong = run(4, 3.0)
    assert not TRACES and np.isfinite(strong).all()
    assert LearnedVariance(SD, 7, grid={"name": "leading"}).evaluations == 7


def test_bad_arguments_get_a_line():
    """Catches a network without its second half, a pair where three are needed, too many steps, and a weight nobody reads."""
    keys = image_keys(SEEDS)
    for call, says in [
        (lambda: LearnedVariance(SD, 5).sample(RangeDenoiser(half, PREDICTIONS["noise"]()), {}, SHAPE, keys), "twice the channels"),
        (lambda: LearnedVariance(SD, 5).sample(denoiser(half, PREDICTIONS["noise"]()), {}, SHAPE, keys), "gives no fraction"),
        (lambda: LearnedVariance(SD, 1001), "1001 steps"),
        (lambda: LearnedVariance(SD, 5).sample(DENOISE, PARAMS, SHAPE, keys, weights=(2.0,)), "reads 0 weights a row, got 1"),
    ]:
        with pytest.raises(UserError, match=says):
            call()
