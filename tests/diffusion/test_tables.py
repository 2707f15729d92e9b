"""The checks that every table passes, that wrong weights do not, and the identities between samplers."""

import dataclasses

import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.diffusion import checks, samplers
from ldm_jax.diffusion.checks import check, check_constant
from ldm_jax.diffusion.continuous import Edm, Flow
from ldm_jax.diffusion.grids import GRIDS, linspace, trailing
from ldm_jax.diffusion.path import Path, after, fed, on_schedule
from ldm_jax.diffusion.prediction import LogSnr
from ldm_jax.diffusion.samplers import ABOUT, table_for
from ldm_jax.diffusion.schedule import cosine, geometric, scaled_linear
from ldm_jax.diffusion.table import run_on_host, with_guidance
from tests.diffusion.variants import VARIANTS, build

SD = scaled_linear()
SCHEDULES = {"scaled_linear": SD, "cosine": cosine(), "pure noise": scaled_linear(zero_terminal=True), "geometric": geometric(),
             "flow": Flow(), "edm": Edm()}
ENDS = {"trailing lowest": {"end": "lowest"}, "karras wide": {"rho": 3.0}}


def paths(schedule):
    """(grid, steps, path) of every grid that serves the schedule; the others refuse it as grids do."""
    for grid in [*GRIDS, *ENDS]:
        for steps in (1, 2, 5):
            try:
                yield grid, steps, GRIDS[grid.split()[0]](schedule, steps, **ENDS.get(grid, {}))
            except UserError as error:
                assert str(error).startswith("grid '") or "end='lowest'" in str(error), error


def evaluations(variant, name, path):
    """What ABOUT promises: so many a step, one in a step to clean data and in one out of pure noise (but along straight lines)."""
    steps, plain = len(path.time) - 1, int(path.end[1] == 0) + int(path.alpha[0] == 0 and variant != "heun flow")
    full = max(steps - plain, 0)
    extra = int(name == "plms" and steps - int(path.alpha[0] == 0) > 1)
    return ABOUT[name].evaluations * full + steps - full + extra


def longest(path):
    """The largest factor of sigma/alpha in a step between two levels of noise."""
    ratio = path.ratios[np.isfinite(path.ratios) & (path.ratios > 0)]
    return np.max(ratio[:-1] / ratio[1:], initial=1.0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_allowed_combination_is_built(schedule):
    """Catches a sampler that breaks on real times, alpha = 1, pure noise, 1 step, a noisy end or a steep one (cosine), a table
    that fails its own checks there, and a step that float32 cannot do let through."""
    built = 0
    for grid, steps, path in paths(SCHEDULES[schedule]):
        for variant in VARIANTS:
            name = variant.split()[0]
            try:
                table = build(variant, path)
            except UserError as error:
                assert "too long" in str(error) and longest(path) > (900 if name == "dpm_3" else 2000), (variant, grid, steps, str(error))
                continue
            built += 1
            if variant != "dpmpp_2s grid":
                assert table.rows == evaluations(variant, name, path), (variant, grid, steps)
    assert built > 500


def test_thousand_steps():
    """Catches a check that rounding fails on many short steps, and a table that no longer fits the loop."""
    for sampler in ("ddpm", "dpmpp_3m", "unipc", "lms"):
        assert table_for(SD, 1000, sampler).rows == 1000


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_constant_denoiser_is_reached_exactly(name, steps):
    """Catches a last step that leaves noise in, a start gain applied twice, and a warm-up that uses an empty memory."""
    table = build(name, trailing(SD, steps))
    rng = np.random.default_rng(0)
    clean = rng.standard_normal(7)
    denoise = lambda x, alpha, sigma, time: (clean, (x - alpha * clean) / sigma)  # noqa: E731
    out = run_on_host(table, denoise, rng.standard_normal(7), rng.standard_normal((table.rows, 7)))
    np.testing.assert_allclose(out, clean, atol=1e-12)


def read_later(table, r):
    """Whether a later row reads what row r remembers."""
    place = 0
    for later in range(r + 1, table.rows):
        if place < 3 and table.u[later, 3 + place] != 0:
            return True
        place += int(table.keep[later])
    return False


@pytest.mark.parametrize("name", VARIANTS)
def test_a_weight_wrong_by_a_thousandth_is_found(name, even_path):
    """Catches a check that is too loose, or one that is not run: every weight of every row, one at a time."""
    for path in (trailing(SD, 4), even_path(4)):
        table = build(name, path)
        for field in ("u", "p", "reach", "level"):
            values = getattr(table, field)
            for r, k in np.argwhere(values != 0):
                if field == "p" and not (table.keep[r] and read_later(table, r)):
                    continue
                wrong = values.copy()
                wrong[r, k] *= 1.001
                with pytest.raises(UserError, match=r"row \d+ of"):
                    check(dataclasses.replace(table, **{field: wrong}), path.begin, path.end)


def with_wrong_difference(table, r):
    """The table with 0.1 % of a divided difference of the row's degree added, which constants and lower powers cannot see."""
    kind, degree = table.exact[r]
    exact, (u, p) = checks.EXACT[kind], (table.u.copy(), table.p.copy())
    column = 1 if exact.estimate == "clean" else 2
    kept = [q for q in range(r) if table.keep[q]][::-1][:degree]
    if p[kept[0], 0] != 0 or np.count_nonzero(p[kept[0]]) > 1:  # a partial result: move weight from the first estimate to this one
        p[kept[0], column] += 1e-3
        u[r, column] -= 1e-3 * u[r, 3]
        return dataclasses.replace(table, u=u, p=p)
    nodes = checks._variable(table, exact.variable)[0][[r, *kept]]
    weights = [1 / np.prod([a - b for b in nodes if b != a]) for a in nodes]
    u[r, [column, *range(3, 3 + degree)]] += 1e-3 * np.abs(u[r]).max() * np.asarray(weights) / np.abs(weights).max()
    return dataclasses.replace(table, u=u)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name.split()[0] not in ("ddpm", "ddim", "euler", "euler_ancestral")])
def test_a_wrong_difference_is_found_by_the_third_check_alone(name, even_path):
    """Catches the peers' errors (a sign, half of a second difference), which a constant denoiser cannot see: for every row that
    uses a difference, so that no table declares less than it can."""
    path, seen = even_path(7, warp=0.1), 0
    table = build(name, path)
    for r, (_, degree) in enumerate(table.exact):
        if degree:
            wrong, seen = with_wrong_difference(table, r), seen + 1
            check_constant(wrong)
            with pytest.raises(UserError, match=f"row {r} of {table.rows}: the step up to here is wrong on power {degree}"):
                check(wrong, path.begin, path.end)
    assert seen >= 3 or name == "unipc one"


@pytest.mark.parametrize("name", [name for name in VARIANTS if name.startswith("unipc")])
def test_a_wrong_correction_is_found(name, even_path):
    """Catches UniPC's corrector with a wrong difference that its predictor does not have: declared and used, but not exact."""
    path = even_path(6, warp=0.1)
    table = build(name, path)
    for r in range(1, table.rows):
        u, correction = table.u.copy(), table.correction.copy()
        for column, k, sign in ((1, 0, 1), (3, 1, -1)):
            correction[r, k] += sign * 1e-4
            u[r, column] += sign * 1e-4 * u[r, 0]
        wrong = dataclasses.replace(table, u=u, correction=correction)
        check_constant(wrong)
        with pytest.raises(UserError, match=f"row {r} of {table.rows}: corrected here, the step before is wrong on power 1"):
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
    with pytest.raises(UserError, match="row 3 of 8"):
        check(wrong, path.begin, path.end)


def test_undeclared_noise_is_refused(even_path):
    """Catches an exception that is granted to everybody: the large DDPM variance passes only as declared."""
    table = samplers.ddpm(even_path(10), variance="large")
    with pytest.raises(UserError, match="noise part"):
        check_constant(dataclasses.replace(table, excess=np.zeros(table.rows)))


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


@pytest.mark.parametrize("name", VARIANTS)
def test_every_row_is_fed_the_time_of_its_level(name):
    """Catches a middle level, or one raised by churn, that is fed the time of its step's start, or a time not as trained."""
    for path in (linspace(SD, 5), after(linspace(SD, 9), 0.5)):
        table = build(name, fed(path, SD, LogSnr()))
        np.testing.assert_allclose(table.time, np.log(table.level[:, 0] / table.level[:, 1]), atol=1e-9)
        np.testing.assert_allclose(build(name, path).time, SD.time_at(table.time), atol=1e-6)
        assert not table.u[0, 3:6].any()


def test_strength_starts_again_with_order_one():
    """Catches rows cut off a full table, whose first row would read a memory that it does not have."""
    table = table_for(SD, 10, "dpmpp_2m", strength=0.5)
    assert table.rows == 5 and table.time[0] == 499 and table.u[0, 3] == 0
    np.testing.assert_allclose(table.level[0], [SD.alphas[499], SD.sigmas[499]])


@pytest.mark.parametrize("build, says", [
    (lambda: table_for(SD, 5, {"name": "ddim", "eta": 1.5}), "sampler .ddim.: eta=1.5: expected a number from 0"),
    (lambda: table_for(SD, 5, {"name": "euler_ancestral", "eta": -0.1}), "sampler .euler_ancestral.: eta=-0.1"),
    (lambda: table_for(SD, 5, {"name": "dpm_2", "eta": 2.0}), "sampler .dpm_2.: eta=2.0"),
    (lambda: table_for(SD, 5, {"name": "dpm_2", "eta": 1.0, "r": 0.7}), "r=0.7 with eta=1.0.* at most 0.5"),
    (lambda: table_for(SD, 5, {"name": "dpmpp_2s", "r": 1.0}), "sampler .dpmpp_2s.: r=1.0: expected a number between 0 and 1"),
    (lambda: table_for(SD, 5, {"name": "dpmpp_2s", "r": 0.3, "middle": "grid"}), "there the grid decides"),
    (lambda: table_for(SD, 5, {"name": "dpmpp_sde", "r": 0.0}), "sampler .dpmpp_sde.: r=0.0"),
    (lambda: table_for(SD, 5, {"name": "dpmpp_sde", "eta": 1.1}), "eta=1.1"),
    (lambda: table_for(SD, 5, {"name": "dpmpp_2s_ancestral", "eta": 1.1}), "eta=1.1"),
    (lambda: table_for(SD, 5, {"name": "dpmpp_2m_sde", "eta": 1.1}), "eta=1.1"),
    (lambda: table_for(SD, 5, {"name": "dpmpp_3m_sde", "eta": -1.0}), "eta=-1.0"),
    (lambda: table_for(SD, 5, {"name": "lms", "order": 5}), "sampler .lms.: order=5: expected a whole number from 1 to 4"),
    (lambda: table_for(SD, 5, {"name": "unipc", "order": 0}), "sampler .unipc.: order=0: .* from 1 to 3"),
    (lambda: table_for(SD, 5, {"name": "edm", "churn": -1.0}), "sampler .edm.: churn=-1.0.*expected churn at least 0"),
    (lambda: table_for(SD, 5, {"name": "edm", "low": 2.0, "high": 1.0}), "0 <= low <= high"),
    (lambda: table_for(SD, 5, {"name": "edm", "noise": 0.0}), "noise above 0"),
    (lambda: table_for(cosine(), 2, "dpm_2"), "sampler .dpm_2.: the step from sigma/alpha .* too long"),
    (lambda: table_for(SD, 400, "dpm_3"), "1198 network evaluations"),
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
