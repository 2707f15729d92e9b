"""Samplers that are the same method under two names, and samplers against their published loops, on a nonlinear denoiser."""

import numpy as np
import pytest

from ldm_jax.diffusion import samplers
from ldm_jax.diffusion.continuous import Flow
from ldm_jax.diffusion.grids import karras, linspace, trailing
from ldm_jax.diffusion.path import Path
from ldm_jax.diffusion.schedule import scaled_linear
from ldm_jax.diffusion.table import run_on_host
from tests.diffusion.variants import mixture

SD = scaled_linear()
MIXTURE = mixture()


def result(table, correct=True):
    """The table run on the mixture with fixed draws; correct=False takes UniPC's corrector out."""
    rng = np.random.default_rng(3)
    if not correct:
        table.u[:, [1, 3, 4, 5]] -= table.u[:, :1] * table.correction
    start = rng.standard_normal(11)
    return run_on_host(table, MIXTURE.denoise, start, rng.standard_normal((1000, 11)))


def some_paths(even_path):
    return even_path(9, warp=0.1), trailing(SD, 10), trailing(SD, 10, end="lowest"), trailing(Flow(), 8), trailing(Flow(), 1)


@pytest.mark.parametrize("one, other", [
    (lambda p: samplers.ddim(p), lambda p: samplers.euler(p)),
    (lambda p: samplers.ddim(p, eta=1.0), lambda p: samplers.ddpm(p)),
    (lambda p: samplers.ddim(p, eta=0.4), lambda p: samplers.euler_ancestral(p, eta=0.4)),
    (lambda p: samplers.lms(p, order=1), lambda p: samplers.euler(p)),
    (lambda p: samplers.edm(p, churn=0.0), lambda p: samplers.heun(p)),
    (lambda p: samplers.dpmpp_2s_ancestral(p, eta=0.0), lambda p: samplers.dpmpp_2s(p)),
    (lambda p: samplers.dpmpp_sde(p, eta=0.0), lambda p: samplers.dpmpp_2s(p)),
    (lambda p: samplers.dpmpp_2m_sde(p, eta=0.0), lambda p: samplers.dpmpp_2m(p)),
    (lambda p: samplers.dpmpp_3m_sde(p, eta=0.0), lambda p: samplers.dpmpp_3m(p, start="heun")),
], ids=["ddim euler", "ddim ddpm", "ddim ancestral", "lms euler", "edm heun", "2s ancestral", "sde 2s", "2m sde", "3m sde"])
def test_equal(one, other, even_path):
    """Catches a posterior of the wrong end, a slope in another space than sigma/alpha, an eta that does not vanish at 0."""
    for path in some_paths(even_path):
        np.testing.assert_allclose(result(one(path)), result(other(path)), atol=1e-12)


@pytest.mark.parametrize("order, form, other", [
    (1, "solved", lambda p: samplers.euler(p)),
    (2, "bh2", lambda p: samplers.dpmpp_2m(p, lower_final=True)),
    (2, "solved", lambda p: samplers.dpmpp_2m(p, form="heun", lower_final=True)),
    (3, "solved", lambda p: samplers.dpmpp_3m(p, start="heun", lower_final=True)),
    (3, "bh2", lambda p: samplers.dpmpp_3m(p, lower_final=True))])
def test_unipc_without_its_correction(order, form, other, even_path):
    """Catches UniPC's weights solved with factorials left out; the third order one is 3M with f = 2, not the published f = 1."""
    for path in some_paths(even_path):
        np.testing.assert_allclose(result(samplers.unipc(path, order, form), correct=False), result(other(path)), atol=1e-12)
    path = even_path(9, warp=0.1)
    assert np.abs(result(samplers.unipc(path, order, form)) - result(other(path))).max() > 1e-4


def test_two_steps_of_the_grid_are_one_step_with_its_middle(even_path):
    """Catches the start of a step found wrongly from the point after it, in one of the two ways to write 2S."""
    path = even_path(12)
    coarse = Path(path.alpha[::2], path.sigma[::2], path.time[::2], path.at)
    grid, between = samplers.dpmpp_2s(path, middle="grid"), samplers.dpmpp_2s(coarse)
    half = lambda table: run_on_host(table, MIXTURE.denoise, np.linspace(-2, 2, 9))  # noqa: E731
    for table in (grid, between):  # the grid's way ends in two short steps: compare where both have taken five
        for name in ("level", "time", "u", "p", "keep"):
            setattr_frozen(table, name, getattr(table, name)[:10])
    np.testing.assert_allclose(half(grid), half(between), atol=1e-12)


def setattr_frozen(table, name, value):
    object.__setattr__(table, name, value)


def test_plms_is_the_published_loop():
    """Catches the first step's mean taken with another weight, a history that holds the provisional estimate, b/a left out."""
    path = trailing(SD, 9)
    levels, estimates, x = list(zip(path.alpha, path.sigma)), [], np.linspace(-2, 2, 9)
    start = x

    def move(x, slope, i):
        (a, s), (b, t) = levels[i], levels[i + 1]
        return b * (x - s * slope) / a + t * slope

    for i in range(9):
        now = MIXTURE.denoise(x, *levels[i])[1]
        old = estimates[::-1]
        if i == 0:
            slope = (now + MIXTURE.denoise(move(x, now, 0), *levels[1])[1]) / 2
        elif i == 1:
            slope = (3 * now - old[0]) / 2
        elif i == 2:
            slope = (23 * now - 16 * old[0] + 5 * old[1]) / 12
        else:
            slope = (55 * now - 59 * old[0] + 37 * old[1] - 9 * old[2]) / 24
        estimates.append(now)
        x = move(x, slope, i)
    np.testing.assert_allclose(run_on_host(samplers.plms(path), MIXTURE.denoise, start), x, atol=1e-11)


def test_flow_heun_is_heun_along_the_straight_line():
    """Catches the velocity of another space: on rectified flow, x + (t' - t)(v + v') / 2 with v = E - D, out of pure noise too."""
    path = linspace(Flow(low=0.05), 6, end="clean")
    x = start = np.linspace(-2, 2, 9)
    for i in range(6):
        a, s, b, t = path.alpha[i], path.sigma[i], path.alpha[i + 1], path.sigma[i + 1]
        clean, noise = MIXTURE.denoise(x, a, s)
        move = x + (t - s) * (noise - clean)
        if t > 0:
            again = MIXTURE.denoise(move, b, t)
            move = x + (t - s) * (noise - clean + again[1] - again[0]) / 2
        x = move
    np.testing.assert_allclose(run_on_host(samplers.heun(path, form="flow"), MIXTURE.denoise, start), x, atol=1e-12)


def test_three_evaluations_are_the_published_formulas(even_path):
    """Catches r2/r1 left out of the middle point, and the step's start not recovered: arXiv 2206.00927, algorithm 2, as printed."""
    path = even_path(5, warp=0.1)
    x = start = np.linspace(-2, 2, 9)
    for i in range(5):
        (a, s), (b, t) = (path.alpha[i], path.sigma[i]), (path.alpha[i + 1], path.sigma[i + 1])
        h = np.log(b / t) - np.log(a / s)
        (first, _), (second, _) = path.between(s / a * np.exp(-h / 3)), path.between(s / a * np.exp(-2 * h / 3))
        e0 = MIXTURE.denoise(x, a, s)[1]
        u1 = first[0] / a * x - first[1] * np.expm1(h / 3) * e0
        d1 = MIXTURE.denoise(u1, *first)[1] - e0
        u2 = second[0] / a * x - second[1] * np.expm1(2 * h / 3) * e0 - second[1] * 2 * (np.expm1(2 * h / 3) / (2 * h / 3) - 1) * d1
        d2 = MIXTURE.denoise(u2, *second)[1] - e0
        x = b / a * x - t * np.expm1(h) * e0 - t * 1.5 * (np.expm1(h) / h - 1) * d2
    np.testing.assert_allclose(run_on_host(samplers.dpm_3(path), MIXTURE.denoise, start), x, atol=1e-12)


def test_churn_raises_each_level_and_never_above_the_first(even_path):
    """Catches churn outside its range, more than sqrt(2) - 1 of it, and a level that the schedule does not reach."""
    path = even_path(10)
    table = samplers.edm(path, churn=1e6, low=0.5, high=4.0, noise=1.0)
    ratio, opened = path.ratios[:-1], table.level[table.opens]
    inside = (ratio >= 0.5) & (ratio <= 4.0) & (ratio < ratio[0])
    wanted = np.where(inside, np.minimum(ratio * np.sqrt(2), ratio[0]), ratio)
    np.testing.assert_allclose(opened[:, 1] / opened[:, 0], wanted, rtol=1e-12)
    assert inside.sum() > 2 and (table.u[:, 6] > 0).sum() == inside.sum()


def churned_heun(path, x, draws, churn=40.0, low=0.05, high=50.0, noise=1.003):
    """(x, kinds of the steps): k-diffusion's sample_heun (arXiv 2206.00364, algorithm 2), on x / alpha, from x at the path's begin.

    Two things are ours: no noise is added before the first step, and no raised level exceeds the first one, because the
    schedule might not reach it. From pure noise (alpha 0, no sigma/alpha) the first step is Euler's. The noise of a step is the
    draw of the row before it.
    """
    def estimates(y, ratio):
        (a, s), _ = path.between(ratio)
        return MIXTURE.denoise(a * y, a, s)

    sigmas, last, row, first, kinds = path.ratios, len(path.time) - 1, 0, 0, set()
    if path.alpha[0] == 0:
        clean, e = MIXTURE.denoise(x, *path.begin)
        y, row, first = clean + sigmas[1] * e, 1, 1
    else:
        y = x / path.alpha[0]
    for i in range(first, last):
        gamma = min(churn / last, 2**0.5 - 1) if low <= sigmas[i] <= high and i > 0 else 0.0
        raised = min(sigmas[i] * (1 + gamma), sigmas[0])
        kinds.add("still" if raised == sigmas[i] else "capped" if raised == sigmas[0] else "raised")
        if gamma > 0:
            y = y + draws[row - 1] * noise * (raised**2 - sigmas[i] ** 2) ** 0.5
        d = (y - estimates(y, raised)[0]) / raised
        euler = y + (sigmas[i + 1] - raised) * d
        if sigmas[i + 1] > 0:
            d2 = (euler - estimates(euler, sigmas[i + 1])[0]) / sigmas[i + 1]
            euler = y + (sigmas[i + 1] - raised) * (d + d2) / 2
        y, row = euler, row + 2
    return path.alpha[-1] * y, kinds


@pytest.mark.parametrize("make, options, kinds", [
    (lambda: karras(SD, 14), {}, {"still", "raised", "capped"}),
    (lambda: karras(SD, 18), {"churn": 4.0}, {"still", "raised"}),
    (lambda: trailing(SD, 12, end="lowest"), {"churn": 30.0, "low": 0.2, "high": 3.0, "noise": 1.1}, {"still", "raised"}),
    (lambda: trailing(Flow(), 8), {"churn": 2.0, "low": 0.0}, {"raised"})], ids=["published", "gentle", "inside", "flow"])
def test_edm_is_the_published_loop(make, options, kinds):
    """Catches churn divided by another count, noise of deviation raised - sigma, the added noise not multiplied by `noise`, the
    first slope of a step kept from the level before it was raised, and noise added after the step that it belongs before."""
    path, rng = make(), np.random.default_rng(5)
    x, draws = rng.standard_normal(11), rng.standard_normal((100, 11))
    wanted, seen = churned_heun(path, x, draws, **options)
    assert seen == kinds
    np.testing.assert_allclose(run_on_host(samplers.edm(path, **options), MIXTURE.denoise, x, draws), wanted, atol=1e-11)
