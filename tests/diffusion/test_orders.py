"""Orders of convergence in float64 on Gaussian data, against the exact flow; stochastic samplers by their moments."""

import numpy as np
import pytest

from ldm_jax.diffusion import samplers
from ldm_jax.diffusion.table import run_on_host

COUNTS = (64, 128, 256, 512)


def slope(errors):
    """Least squares of -log2(error) against log2(steps)."""
    return -np.polyfit(np.log2(COUNTS), np.log2(errors), 1)[0]


@pytest.mark.parametrize("name, order", [("euler", 1), ("ddim", 1), ("heun", 2), ("dpmpp_2m", 2)])
@pytest.mark.parametrize("warp", [0.0, 0.15], ids=["even", "uneven"])
def test_order(name, order, warp, gaussian, even_path):
    """Catches a second-order method that is first order (a wrong ratio r on uneven steps, a memory one row too old)."""
    errors = []
    for n in COUNTS:
        path = even_path(n, warp)
        table = samplers.SAMPLERS[name](path)
        x = table.level[0, 0] * gaussian.mean + np.linspace(-2, 2, 9)
        errors.append(np.abs(run_on_host(table, gaussian.denoise, x) - gaussian.flow(x, table.level[0], path.end)).max())
    print(f"{name} warp {warp}: errors {errors[0]:.2e} .. {errors[-1]:.2e}, slope {slope(errors):.3f}")
    assert abs(slope(errors) - order) < 0.1


def variance(table, gaussian):
    """Exact variance of the result: the table is affine on Gaussian data, so coefficients of all draws are run through it."""
    alpha, sigma = table.level[0]
    start = np.zeros(table.rows + 1)
    start[0] = np.sqrt(alpha**2 * gaussian.std**2 + sigma**2)
    draws = np.eye(table.rows + 1)[1:]
    linear = lambda x, a, s, time: tuple(p - q for p, q in zip(gaussian.denoise(x, a, s), gaussian.denoise(0 * x, a, s)))  # noqa: E731
    return np.sum(run_on_host(table, linear, start, draws) ** 2)


@pytest.mark.parametrize("name, options", [("ddpm", {}), ("ddpm", {"variance": "large"}), ("ddim", {"eta": 0.3}),
                                           ("ddim", {"eta": 0.5}), ("ddim", {"eta": 1.0})])
def test_variance_converges(name, options, gaussian, even_path):
    """Catches noise declared as an excess that does not vanish with the step (a "large" variance that is too large passes
    the table's check as declared): the final variance is right to first order."""
    errors = []
    for n in COUNTS:
        path = even_path(n)
        table = samplers.SAMPLERS[name](path, **options)
        exact = path.end[0] ** 2 * gaussian.std**2 + path.end[1] ** 2
        errors.append(abs(variance(table, gaussian) / exact - 1))
    print(f"{name} {options}: variance errors {errors[0]:.2e} .. {errors[-1]:.2e}, slope {slope(errors):.3f}")
    assert 0.9 < slope(errors) < 1.1 and errors[-1] < 0.02


@pytest.mark.parametrize("eta", [0.25, 0.5, 1.0])
def test_eta_is_the_share_of_the_posterior_deviation(eta, even_path):
    """Catches eta squared twice or not at all: the draw's weight is eta times DDPM's."""
    path = even_path(8)
    np.testing.assert_allclose(samplers.ddim(path, eta=eta).u[:, 6], eta * samplers.ddpm(path).u[:, 6], rtol=1e-12)


def test_large_variance_is_exact_on_standard_normal_data(gaussian, even_path):
    """Catches the two variances swapped: "large" keeps variance 1 on N(0, 1) data at any step count, "small" loses some."""
    gaussian.std = 1.0
    unit = lambda x, a, s, time=None: (a * x, s * x)  # noqa: E731 (the exact denoiser of N(0, 1) where a^2 + s^2 = 1)
    gaussian.denoise = unit
    np.testing.assert_allclose(variance(samplers.ddpm(even_path(5), variance="large"), gaussian), 1, rtol=1e-12)
    assert variance(samplers.ddpm(even_path(5)), gaussian) < 0.9
