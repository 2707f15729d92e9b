"""Known regions and inversion: what is kept is kept exactly, and a way up is the way down turned around."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import base_key
from ldm_jax.diffusion.continuous import Edm, Flow
from ldm_jax.diffusion.inversion import inversion_table, invert, start_inversion
from ldm_jax.diffusion.sample import advance, image_keys, sample, start, trajectory
from ldm_jax.diffusion.samplers import table_for
from ldm_jax.diffusion.schedule import scaled_linear
from ldm_jax.diffusion.table import run_on_host

SD, SHAPE, KEYS = scaled_linear(), (4, 4, 2), image_keys([3, 4])
CLEAN = jax.random.normal(base_key(1), (2, *SHAPE))
KEEP = jnp.zeros((2, 4, 4, 1)).at[:, :, :2].set(1.0)
TRACES = []


def denoise(params, noisy, level, time, condition):
    """Not exact: what it makes of the known region is wrong, so that only the projection can keep it."""
    TRACES.append(1)
    clean = jnp.tanh(noisy) * 0.5
    return clean, (noisy - level.alpha * clean) / level.sigma


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "heun", "dpmpp_2m"])
def test_the_known_region_is_exact_and_on_its_level_at_every_row(sampler):
    """Catches a projection to the level that is left instead of the one reached, a mask turned around, and a region that is nearly kept."""
    table = table_for(SD, 6, sampler)
    state = start(table, KEYS, SHAPE, CLEAN, KEEP)
    noise = start(table, KEYS, SHAPE).x / table.gain
    for after in trajectory(denoise, {}, table, state):
        alpha, sigma = table.reach[after.row - 1]
        np.testing.assert_allclose(after.x[:, :, :2], (alpha * CLEAN + sigma * noise)[:, :, :2], atol=1e-5)
    np.testing.assert_array_equal(after.x[:, :, :2], CLEAN[:, :, :2])
    free = advance(denoise, {}, table, start(table, KEYS, SHAPE, CLEAN)).x
    assert np.abs(free - CLEAN)[:, :, :2].max() > 0.1, "the denoiser keeps the region by itself"
    np.testing.assert_allclose(after.x[:, :, 2:], free[:, :, 2:], atol=1e-5)  # this denoiser looks at one position only


def test_nothing_known_costs_nothing():
    """Catches a projection by a mask of zeros in every program: without one the program has no draw for it, and its own trace."""
    table = table_for(SD, 3)
    plain = start(table, KEYS, SHAPE)
    assert plain.known is None
    jax.clear_caches()
    TRACES.clear()
    sample(denoise, {}, table, SHAPE, KEYS)
    advance(denoise, {}, table, start(table, KEYS, SHAPE, CLEAN))
    assert len(TRACES) == 1
    for steps in (3, 5):
        table = table_for(SD, steps)
        advance(denoise, {}, table, start(table, KEYS, SHAPE, CLEAN, KEEP))
    assert len(TRACES) == 2


def test_bad_masks_get_a_line():
    """Catches a mask that broadcasts over the wrong axes, or that has nothing to keep."""
    table = table_for(SD, 3)
    for keep, clean in ((jnp.ones((2, 4, 4)), CLEAN), (jnp.ones((2, 4, 3, 1)), CLEAN), (KEEP, None)):
        with pytest.raises(UserError, match="keep: expected a mask"):
            start(table, KEYS, SHAPE, clean, keep)


X = np.asarray([-1.0, 0.0, 0.5, 2.0])


@pytest.mark.parametrize("schedule, grid", [(SD, "trailing"), (SD, "linspace"), (Edm(), "karras"), (Flow(), "linspace")],
                         ids=["sd, trailing", "sd, linspace", "edm", "flow"])
def test_inversion_has_order_1(schedule, grid, gaussian):
    """The way up against the exact flow on Gaussian data, and up and down again. Catches a step that uses the level it goes to, and
    times of the wrong end."""
    errors, backs = [], []
    for steps in (40, 80, 160):
        up = inversion_table(schedule, steps, grid)
        begun = up.level[0, 0] * X
        noise = run_on_host(up, gaussian.denoise, begun)
        errors.append(np.abs(noise - gaussian.flow(begun, up.level[0], up.reach[-1])).max() / np.hypot(*up.reach[-1]))
        backs.append(np.abs(run_on_host(table_for(schedule, steps, "ddim", grid), gaussian.denoise, noise) - X).max())
    orders = np.log2(np.asarray(errors[:-1]) / errors[1:])
    print(grid, "way up", errors, "orders", orders, "round trip", backs)
    assert np.all((orders > 0.8) & (orders < 1.25)), orders
    assert backs[2] < 0.62 * backs[1] < 0.4 * backs[0], backs


def test_inversion_walks_the_path_of_its_grid():
    """Catches a level left out, the time of the level that is reached, and a start that is noised."""
    up, down = inversion_table(SD, 5), table_for(SD, 5)
    np.testing.assert_allclose(up.reach[::-1], down.level, atol=1e-12)
    assert up.time.tolist() == [0, 199, 399, 599, 799] and up.rows == 5
    state = start_inversion(up, CLEAN, KEYS)
    np.testing.assert_allclose(state.x, SD.alphas[0] * CLEAN, atol=1e-6)
    np.testing.assert_array_equal(inversion_table(SD, 5, {"name": "linspace"}).level[0], [SD.alphas[0], SD.sigmas[0]])
    with pytest.raises(UserError, match="end='lowest'"):
        invert(table_path())


def table_path():
    from ldm_jax.diffusion.grids import trailing

    return trailing(SD, 3)
