"""The checks that every table passes, that wrong weights do not, and the identities between samplers."""

import dataclasses

import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.diffusion import samplers
from ldm_jax.diffusion.checks import check, check_constant
from ldm_jax.diffusion.grids import GRIDS, trailing
from ldm_jax.diffusion.path import Path, on_schedule
from ldm_jax.diffusion.prediction import LogSnr
from ldm_jax.diffusion.samplers import SAMPLERS, table_for
from ldm_jax.diffusion.schedule import cosine, linear, scaled_linear
from ldm_jax.diffusion.table import run_on_host, with_guidance

SD = scaled_linear()
SCHEDULES = {"scaled_linear": SD, "linear": linear(), "cosine": cosine()}
VARIANTS = {"ddpm": {}, "ddpm_large": {"variance": "large"}, "ddim": {}, "ddim_half": {"eta": 0.5}, "ddim_one": {"eta": 1.0},
            "euler": {}, "heun": {}, "dpmpp_2m": {}}


def variant(name, path):
    base = name if name in SAMPLERS else name.split("_")[0]
    return SAMPLERS[base](path, **VARIANTS[name])


def too_long(path):
    ratio = path.ratios[path.ratios > 0]
    return np.any(ratio[:-1] > 3e4 * ratio[1:])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("grid", [name for name in GRIDS if name not in ("quadratic", "legacy")])
def test_every_allowed_combination_is_built(schedule, grid):
    """Catches a sampler that breaks on real times, on 1 step, on a steep end (cosine) or on 1000 steps."""
    schedule = SCHEDULES[schedule]
    for name in VARIANTS:
        for steps in (1, 2, 3, 20, 499):
            if not (grid == "leading" and steps == 1):
                path = GRIDS[grid](schedule, steps)
                if name == "heun" and too_long(path):
                    with pytest.raises(UserError, match="too long"):
                        samplers.heun(path)
                    continue
                assert variant(name, path).rows == (2 * steps - (path.end[1] == 0) if name == "heun" else steps)
    assert table_for(schedule, 1000, "ddpm").rows == 1000


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_constant_denoiser_is_reached_exactly(name, steps):
    """Catches a last step that leaves noise in, a start gain applied twice, and a warm-up that uses an empty memory."""
    table = variant(name, trailing(SD, steps))
    rng = np.random.default_rng(0)
    clean = rng.standard_normal(7)
    denoise = lambda x, alpha, sigma, time: (clean, (x - alpha * clean) / sigma)  # noqa: E731
    out = run_on_host(table, denoise, rng.standard_normal(7), rng.standard_normal((table.rows, 7)))
    np.testing.assert_allclose(out, clean, atol=1e-12)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_weight_wrong_by_a_thousandth_is_found(name, even_path):
    """Catches a check that is too loose, or one that is not run: every weight of every row, one at a time."""
    for path in (trailing(SD, 6), even_path(5)):
        table = variant(name, path)
        for field in ("u", "p", "reach", "level"):
            values = getattr(table, field)
            for r, k in np.argwhere(values != 0):
                if field == "p" and not np.any(table.u[r + 1:, 3:6]):
                    continue  # remembered and never read again
                wrong = values.copy()
                wrong[r, k] *= 1.001
                with pytest.raises(UserError, match=r"row \d+ of"):
                    check(dataclasses.replace(table, **{field: wrong}), path.begin, path.end)


def test_a_wrong_difference_weight_is_found_by_the_second_check_alone(even_path):
    """Catches the peers' error: the weight of (D - H1) is wrong, which a constant denoiser cannot see."""
    path = even_path(6)
    table = samplers.dpmpp_2m(path)
    u = table.u.copy()
    u[3, 1] += 1e-3 * -u[3, 3]
    u[3, 3] *= 1.001
    wrong = dataclasses.replace(table, u=u)
    check_constant(wrong)
    with pytest.raises(UserError, match="row 3 of 6: the step from here is wrong on power 1"):
        check(wrong, path.begin, path.end)


def test_heun_without_its_correction_is_found(even_path):
    """Catches Heun whose second slope is not used (an Euler step in two rows), right on constants."""
    path = even_path(4)
    table = samplers.heun(path)
    u, p = table.u.copy(), table.p.copy()
    p[2, 2] = u[2, 2]
    u[3, 2] = 0
    wrong = dataclasses.replace(table, u=u, p=p)
    check_constant(wrong)
    with pytest.raises(UserError, match="row 2 of 8"):
        check(wrong, path.begin, path.end)


def test_undeclared_noise_is_refused(even_path):
    """Catches an exception that is granted to everybody: the large DDPM variance passes only as declared."""
    table = samplers.ddpm(even_path(10), variance="large")
    with pytest.raises(UserError, match="noise part"):
        check_constant(dataclasses.replace(table, excess=np.zeros(table.rows)))


def weights(table):
    """The affine map of each row on (x, D, z) with E = (x - alpha D) / sigma put in: equal maps, equal samplers."""
    alpha, sigma = table.level.T
    x, clean, noise, draw = table.u[:, 0], table.u[:, 1], table.u[:, 2], table.u[:, 6]
    return np.stack([x + noise / sigma, clean - noise * alpha / sigma, draw])


def test_identities(even_path):
    """Catches a posterior mean with alpha-bar of the wrong end, Euler's slope in another space than sigma/alpha."""
    for path in (even_path(9, warp=0.1), trailing(SD, 10), trailing(SD, 10, end="lowest")):
        np.testing.assert_allclose(weights(samplers.ddim(path)), weights(samplers.euler(path)), atol=1e-13)
        np.testing.assert_allclose(weights(samplers.ddim(path, eta=1.0)), weights(samplers.ddpm(path)), atol=1e-13)
        a, s, b, t = path.alpha[:-1], path.sigma[:-1], path.alpha[1:], path.sigma[1:]
        step = t / b - s / a  # x/alpha moves by (sigma'/alpha' - sigma/alpha) E, E = (x - a D) / s
        np.testing.assert_allclose(weights(samplers.euler(path)), [b / a + b * step / s, -b * step * a / s, 0 * a], atol=1e-12)
        assert not np.allclose(weights(samplers.ddim(path, eta=0.5)), weights(samplers.ddpm(path)), atol=1e-3)


def test_ddpm_is_the_published_posterior():
    """Catches the posterior of other betas: mean and variance of arXiv 2006.11239 equation 7 on all 1000 steps."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    bar = np.cumprod(1 - betas)
    previous = np.append(1.0, bar[:-1])
    table = table_for(SD, 1000, "ddpm")
    np.testing.assert_allclose(table.u[::-1, 1], np.sqrt(previous) * betas / (1 - bar), rtol=1e-9)
    np.testing.assert_allclose(table.u[::-1, 0], np.sqrt(1 - betas) * (1 - previous) / (1 - bar), atol=1e-12)
    np.testing.assert_allclose(table.u[::-1, 6] ** 2, (1 - previous) / (1 - bar) * betas, atol=1e-12)
    large = table_for(SD, 1000, {"name": "ddpm", "variance": "large"})
    np.testing.assert_allclose(large.u[::-1, 6][1:] ** 2, betas[1:], rtol=1e-9)


def test_times_are_fed_as_trained():
    """Catches a row index fed as time, and Heun's second evaluation fed the time of its first."""
    table = table_for(SD, 4, "heun")
    np.testing.assert_array_equal(table.time, [999, 749, 749, 499, 499, 249, 249])
    table = table_for(SD, 4, "ddim", time_input=LogSnr())
    np.testing.assert_allclose(table.time, SD.lambdas()[[999, 749, 499, 249]])


def test_strength_starts_again_with_order_one():
    """Catches rows cut off a full table, whose first row would read a memory that it does not have."""
    table = table_for(SD, 10, "dpmpp_2m", strength=0.5)
    assert table.rows == 5 and table.time[0] == 499 and table.u[0, 3] == 0
    np.testing.assert_allclose(table.level[0], [SD.alphas[499], SD.sigmas[499]])


@pytest.mark.parametrize("build, says", [
    (lambda: table_for(SD, 5, {"name": "ddim", "eta": 1.5}), "sampler .ddim.: eta=1.5: expected a number from 0"),
    (lambda: table_for(SD, 5, {"name": "ddim", "eta": float("nan")}), "eta=nan"),
    (lambda: table_for(SD, 5, {"name": "ddpm", "variance": "huge"}), "variance='huge'"),
    (lambda: table_for(SD, 5, {"name": "heun", "eta": 0.5}), "does not take eta"),
    (lambda: table_for(SD, 5, "dpmpp_2n"), "dpmpp_2m"),
    (lambda: table_for(SD, 600, "heun"), "1199 network evaluations; the loop holds 1 to 1024"),
    (lambda: table_for(SD, 5, guidance=(float("nan"),)), "not finite"),
    (lambda: with_guidance(table_for(SD, 5), [1.0, 2.0]), "one per row"),
    (lambda: on_schedule(SD, [10, 500]), "fall from each level"),
    (lambda: on_schedule(cosine(), [5, 5]), "fall from each level"),
    (lambda: Path(np.ones(1), np.ones(1), np.ones(1), None), "at least 2"),
])
def test_bad_arguments_get_a_line(build, says):
    """Catches a square root of a negative variance, stale options, and a table too long for the loop cut short."""
    with pytest.raises(UserError, match=says):
        build()
