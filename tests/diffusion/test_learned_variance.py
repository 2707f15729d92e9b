"""DDPM with a variance that the network predicts: against diffusers, and against the table it generalises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import base_key, key_for
from ldm_jax.core.types import Condition, Level
from ldm_jax.diffusion.grids import trailing
from ldm_jax.diffusion.guidance import OFF, ClassifierFree, Guided, Limited
from ldm_jax.diffusion.learned_variance import LearnedVariance, RangeDenoiser
from ldm_jax.diffusion.limits import Clip
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


def by_hand(steps, estimates):
    """DDPM with the learned variance, row by row; estimates(x, level, time [B]) -> (clean, fraction)."""
    path, noise = trailing(SD, steps), draws(steps)
    x = np.stack([jax.random.normal(key_for(base_key(seed), "start"), SHAPE) for seed in SEEDS])
    for r, (_, (a, s), (b, t)) in enumerate(path.steps()):
        clean, fraction = (np.asarray(part) for part in estimates(x.astype(np.float32), Level(jnp.float32(a), jnp.float32(s)),
                                                                  jnp.full(len(SEEDS), path.time[r], jnp.float32)))
        beta = 1 - (a / b) ** 2
        x = (b * beta * clean + a / b * t**2 * x) / s**2
        if t > 0:
            share = (fraction + 1) / 2
            x = x + np.exp((share * np.log(beta) + (1 - share) * np.log(beta * t**2 / s**2)) / 2) * noise[r]
    return x


GIVEN, NULL = Condition(vector=jnp.ones((2, 2))), Condition(vector=jnp.zeros((2, 2)))


def test_guidance_is_of_the_estimate_alone():
    """Catches a fraction that is guided too or is that of the null condition, and a guidance that is left out: w = 3, by hand."""
    def estimates(x, level, time):
        (given, _, fraction), (null, *_) = (DENOISE(PARAMS, x, level, time, condition) for condition in (GIVEN, NULL))
        return null + 3 * (given - null), fraction

    got = LearnedVariance(SD, 4).sample(DENOISE, PARAMS, SHAPE, image_keys(SEEDS), Guided(GIVEN, NULL), ClassifierFree(), (3.0,))
    wanted = by_hand(4, estimates)
    np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("guidance, condition, weights", [(OFF, GIVEN, ()), (ClassifierFree(), Guided(GIVEN, NULL), (3.0,))])
def test_a_limit_limits(guidance, condition, weights):
    """Catches a limit that is skipped where there is no guidance to weigh, and one in front of the guidance."""
    def estimates(x, level, time):
        (given, _, fraction), (null, *_) = (DENOISE(PARAMS, x, level, time, condition) for condition in (GIVEN, NULL))
        return np.clip(null + (weights or (1.0,))[0] * (given - null), -0.1, 0.1), fraction

    limited = Limited(guidance, Clip(0.1))
    got = LearnedVariance(SD, 4).sample(DENOISE, PARAMS, SHAPE, image_keys(SEEDS), condition, limited, weights)
    assert np.abs(got).max() <= 0.1 + 1e-6
    np.testing.assert_allclose(got, by_hand(4, estimates), atol=1e-5)


def test_guidance_and_one_program():
    """Catches weight 1 unlike off, and a step count or a weight that became static."""
    keys = image_keys(SEEDS)
    run = lambda steps, weight: LearnedVariance(SD, steps).sample(DENOISE, PARAMS, SHAPE, keys, Guided(GIVEN, NULL),  # noqa: E731
                                                                   ClassifierFree(), (weight,))
    np.testing.assert_allclose(run(5, 1.0), LearnedVariance(SD, 5).sample(DENOISE, PARAMS, SHAPE, keys, GIVEN), atol=1e-5)
    TRACES.clear()
    run(4, 3.0)
    assert not TRACES
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
