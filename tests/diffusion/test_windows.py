"""Denoising by windows that overlap. Each test says which mistake it catches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.core.types import Condition, Level
from ldm_jax.diffusion.windows import Window, Windowed
from ldm_jax.ops.tiling import shares, starts

RNG = np.random.default_rng(0)
NOISY, IMAGE = (np.float32(RNG.standard_normal((2, 12, 22, c))) for c in (2, 3))
LEVEL, TIME = Level(jnp.float32([0.6, 0.8]), jnp.float32([0.8, 0.6])), jnp.float32([5.0, 9.0])
CONDITION = Condition(vector=jnp.float32([[0.3], [-0.5]]), image=jnp.asarray(IMAGE))


def near(params, noisy, level, time, condition):
    """Looks at one position alone, and at all that it is told."""
    alpha, sigma = (x[:, None, None, None] for x in (level.alpha, level.sigma))
    clean = jnp.tanh(noisy * condition.vector[:, :, None, None] + condition.image[..., :2] + time[:, None, None, None])
    return clean, (noisy - alpha * clean) / sigma


def far(params, noisy, level, time, condition):
    """Looks at all that it is shown."""
    return noisy.mean((1, 2), keepdims=True) + 0 * noisy, noisy.max((1, 2), keepdims=True) + 0 * noisy


@pytest.mark.parametrize("window", [Window(8), Window(8, 0.25, 4), Window(6, 0.9, 5), Window(16)], ids=str)
def test_what_looks_near_is_made_exactly(window):
    """Catches a condition that is not cut as the point is, levels and examples of another window, a group that counts what fills it, and
    weights that do not add to 1."""
    wanted = near(None, NOISY, LEVEL, TIME, CONDITION)
    for found, want in zip(Windowed(near, window, 2)(None, NOISY, LEVEL, TIME, CONDITION), wanted, strict=True):
        np.testing.assert_allclose(found, want, atol=1e-5)


def test_one_window_is_the_denoiser():
    """Catches a blend where there is nothing to blend: bit for bit."""
    for window in (Window(22), Window(64, together=3)):
        for found, want in zip(Windowed(far, window)(None, NOISY, LEVEL, TIME, None), far(None, NOISY, LEVEL, TIME, None)):
            np.testing.assert_array_equal(found, want)


def test_windows_that_disagree_are_blended():
    """Catches a hard seam, windows of one axis only, and D and E of other weights: against sums over windows in numpy."""
    found = Windowed(far, Window(8, together=2), 2)(None, NOISY, LEVEL, TIME, None)
    wanted = np.zeros((2, *NOISY.shape))
    for y, down in zip(starts(12, 8, 0.5, 2), shares(starts(12, 8, 0.5, 2), 8)):
        for x, across in zip(starts(22, 8, 0.5, 2), shares(starts(22, 8, 0.5, 2), 8)):
            part = NOISY[:, y:y + 8, x:x + 8]
            for k, value in enumerate((part.mean((1, 2), keepdims=True), part.max((1, 2), keepdims=True))):
                wanted[k, :, y:y + 8, x:x + 8] += value * (down[:, None] * across)[..., None]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.abs(np.diff(wanted, axis=3)).max() < 0.8 < np.ptp(wanted[1])


@pytest.mark.parametrize("side, tile, overlap, step", [(64, 16, 0.5, 4), (44, 16, 0.25, 4), (40, 8, 0.25, 4), (100, 20, 0.9, 4)])
def test_windows_start_on_the_networks_grid(side, tile, overlap, step):
    """Catches starts between two steps, the same start twice, and neighbours that overlap by less than a step's rounding."""
    places = starts(side, tile, overlap, step)
    gaps = np.diff(places)
    assert places[0] == 0 and places[-1] == side - tile and (np.array(places) % step == 0).all() and (gaps > 0).all()
    assert gaps.max() <= max(step, tile - int(tile * overlap)), places


def test_memory_does_not_grow_with_the_windows():
    """Catches all windows in one evaluation: the temporaries of 25 times the windows are less than twice as large."""
    def wide(params, noisy, level, time, condition):
        x = jnp.sin(jnp.repeat(noisy, 512, axis=3) + noisy.mean((1, 2), keepdims=True).repeat(512, axis=3))
        return x.reshape(*noisy.shape[:3], 512, -1).max(3), noisy

    def bytes_of(side):
        point = jax.ShapeDtypeStruct((1, side, side, 2), jnp.float32)
        run = jax.jit(lambda x: Windowed(wide, Window(8))(None, x, jax.tree.map(lambda y: y[0], LEVEL), TIME[:1], None))
        return run.lower(point).compile().memory_analysis().temp_size_in_bytes

    small, large = bytes_of(12), bytes_of(44)
    assert large < 2 * small, (small, large)


@pytest.mark.parametrize("keys, says", [({"side": 2}, "side=2: expected a whole number from 4"), ({"side": 8.0}, "side=8.0"),
                                        ({"side": 8, "overlap": 1.0}, "from 0.1 to 0.9"), ({"side": 8, "together": 0}, "together=0")])
def test_bad_windows_get_a_line(keys, says):
    """Catches a window of no overlap or no side."""
    with pytest.raises(UserError, match=says):
        Window(**keys)
    with pytest.raises(UserError, match="multiples of 4 latents; nearest: 8"):
        Window(10).check(4)
