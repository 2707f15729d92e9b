"""Every diffusers scheduler with an equivalent here, as users of Stable Diffusion 1.5, 2.1 and XL get it: from the stored config."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.core.keys import base_key, key_for
from ldm_jax.diffusion.prediction import PREDICTIONS, denoiser
from ldm_jax.diffusion.sample import advance, image_keys, start
from ldm_jax.diffusion.samplers import table_for
from tests.diffusion.peers import KINDS, MODELS, SD, SIGMA_SPACE, SIZE, START, agree, brownian, of, theirs, torch

pytestmark = pytest.mark.filterwarnings("ignore:__array")  # diffusers' own, of numpy 2

LEADING, LOWEST, EULER = {"name": "leading"}, {"name": "leading", "end": "lowest"}, {"name": "linspace", "levels": "linear"}
DPM, DPM_LEADING = {"name": "linspace", "rounded": True, "drop_lowest": True}, {"name": "leading", "drop_lowest": True}

# scheduler: our sampler, and our grid with the class's own spacing and with the one stored for SDXL, "leading"
DEFAULTS = {
    "DDPM": ("ddpm", LEADING, LEADING),
    "DDIM": ("ddim", LOWEST, LOWEST),
    "PNDM": ("plms", LOWEST, LOWEST),
    "LMS": ("lms", EULER, LEADING),
    "Euler": ("euler", EULER, LEADING),
    "EulerAncestral": ("euler_ancestral", EULER, LEADING),
    "Heun": ("heun", EULER, LEADING),
    "KDPM2": ("dpm_2", EULER, LEADING),
    "KDPM2Ancestral": ({"name": "dpm_2", "eta": 1.0}, EULER, LEADING),
    "DPMSolverMultistep": ({"name": "dpmpp_2m", "lower_final": True}, DPM, DPM_LEADING),
    "DPMSolverSinglestep": ({"name": "dpmpp_2s", "middle": "grid"}, DPM, DPM),
    "DPMSolverSDE": ({"name": "dpmpp_sde", "shared": "sigma"}, EULER, LEADING),
    "UniPC": ("unipc", DPM, DPM_LEADING),
}
FROM_ONE = {"DPMSolverMultistep", "DPMSolverSinglestep", "UniPC"}  # the others' one step starts where hardly any noise is left
CASES = [(model, name) for model in MODELS for name in DEFAULTS if (model, name) != ("sd21", "PNDM")]  # see test_parity_faults


def settings(model, name):
    sampler, own, leading = DEFAULTS[name]
    return sampler, leading if "timestep_spacing" in MODELS[model] else own, brownian() if name == "DPMSolverSDE" else None


@pytest.mark.parametrize("model, name, steps", [(*case, steps) for case in CASES for steps in (1, 3, 10, 25)
                                                if steps > 1 or case[1] in FROM_ONE])
def test_formulas(model, name, steps):
    """Catches any wrong weight, level or time: a start one time late, an offset left out, a second evaluation fed the first's
    time, a warm-up or a last step of another order, noise of another row. 1e-9 by the peer's formulas, 1e-5 as shipped."""
    sampler, grid, draw = settings(model, name)
    agree(name, MODELS[model], sampler, grid, steps, draw=draw)


def network(params, noisy, time, condition):
    """The toy in float32."""
    return jnp.tanh(0.9 * noisy + 8e-4 * time[:, None, None]) + 0.1 * jnp.sin(3 * noisy)


def toy32(x, time):
    x = x.astype(np.float32)
    return np.tanh(np.float32(0.9) * x + np.float32(8e-4) * np.float32(time)) + np.float32(0.1) * np.sin(np.float32(3) * x)


@pytest.fixture(scope="module")
def drawn():
    """(keys of two images, what the loop draws from them in rows 0 .. 63)."""
    rows = jax.jit(lambda row: jnp.stack([jax.random.normal(key_for(base_key(seed), "row", step=row), SIZE[1:]) for seed in (5, 6)]))
    return image_keys([5, 6]), np.stack([rows(r) for r in range(64)])


@pytest.mark.parametrize("model, name", CASES)
def test_compiled_loop_in_float32(model, name, drawn):
    """Catches weights that cancel in float32 though they are right in float64; both sides in float32, 1e-5 relative."""
    sampler, grid, _ = settings(model, name)
    keys, draws = drawn
    table, kind = table_for(SD, 20, sampler, grid), KINDS[MODELS[model].get("prediction_type", "epsilon")]
    state = dataclasses.replace(start(table, keys, SIZE[1:]), x=jnp.asarray(START, jnp.float32))
    got = np.asarray(advance(denoiser(network, PREDICTIONS[kind]()), {}, table, state).x)
    draw = brownian(draws) if name == "DPMSolverSDE" else lambda i, *levels: draws[i]
    wanted = theirs(name, MODELS[model], 20, table.level[0, 0], table.reach[-1, 0], START.astype(np.float32), draw, toy32, exact=False,
                    dtype=torch.float32)
    error = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
    print(f"relative error {error:.1e}")
    assert wanted.dtype == got.dtype == np.float32 and error < 1e-5


@pytest.mark.parametrize("model, name", CASES)
def test_start(model, name):
    """Catches a start of another size. Ours is noise of the deviation that noisy data of unit variance has, and so is theirs,
    but for the Euler family with linspace or trailing times: that leaves the data's variance out, 0.23 % of the deviation."""
    sampler, grid, _ = settings(model, name)
    table, scheduler = table_for(SD, 20, sampler, grid), of(name).from_config(MODELS[model])
    scheduler.set_timesteps(20)
    alpha, sigma = table.level[0]
    theirs_at = float(scheduler.init_noise_sigma) * (alpha if name in SIGMA_SPACE else 1)
    less = name in SIGMA_SPACE and grid == EULER
    np.testing.assert_allclose(theirs_at, sigma if less else table.gain, rtol=1e-5)
    assert abs(table.gain - 1) < 1e-9 and (not less or 0.997 < theirs_at < 0.998)


def test_from_a_loaded_scheduler_as_from_the_stored_file():
    """Catches a stored config that a pipeline would pass on differently: X.from_config(pipe.scheduler.config) is what users write."""
    stored = theirs("DPMSolverMultistep", MODELS["sd15"], 10)
    loaded = of("PNDM").from_config(MODELS["sd15"]).config
    np.testing.assert_array_equal(theirs("DPMSolverMultistep", loaded, 10), stored)
    assert np.abs(stored - theirs("DPMSolverMultistep", MODELS["sdxl"], 10)).max() > 1e-2
