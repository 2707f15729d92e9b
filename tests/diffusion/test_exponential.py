"""The exponential functions of the solvers."""

import math

import numpy as np
import pytest

from ldm_jax.diffusion.exponential import length, psi


@pytest.mark.parametrize("h", [1e-9, 1e-3, 0.1, 0.999, 1.0, 1.5, 8.0, 30.0, -1e-6, -0.7, -1.0, -5.0])
def test_psi_is_its_integral(h):
    """Catches the recurrence where it cancels (h = 0.001: psi_3 loses half its digits), and a series cut short near h = 1."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    tau = (nodes + 1) / 2
    for k in (1, 2, 3, 4):
        wanted = h * np.sum(weights / 2 * np.exp(-h * (1 - tau)) * tau ** (k - 1)) / math.factorial(k - 1)
        assert psi(k, h) == pytest.approx(wanted, rel=1e-13)


def test_infinite_steps():
    """Catches infinity times zero where the step ends in clean data or begins in pure noise."""
    assert [psi(k, math.inf) for k in (1, 2, 3)] == [1, 1, 0.5]
    assert length((0.0, 1.0), (0.6, 0.8)) == length((0.6, 0.8), (1.0, 0.0)) == math.inf
