"""The Frechet distance: closed forms, scipy's matrix square root live, singular covariances."""

import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.evals.frechet import frechet_distance, frechet_of, moments

RNG = np.random.default_rng(0)
MIX = RNG.normal(size=(12, 12))
A, B = RNG.normal(size=(300, 12)) @ MIX, RNG.normal(size=(200, 12)) * 2 + 1


def by_square_root(a, b):
    linalg = pytest.importorskip("scipy.linalg")
    (m1, s1), (m2, s2) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (a, b))
    return np.sum((m1 - m2) ** 2) + np.trace(s1 + s2 - 2 * linalg.sqrtm(s1 @ s2).real)


def test_equals_the_matrix_square_root():
    """Catches a covariance divided by N, a missing factor 2, and the root of S_a alone."""
    np.testing.assert_allclose(frechet_distance(A, B), by_square_root(A, B), rtol=1e-10)


@pytest.mark.filterwarnings("ignore")
def test_a_singular_covariance():
    """Catches a failing or imaginary root where there are fewer rows than features, or a pixel never changes."""
    a, b = np.pad(A[:7], ((0, 0), (0, 3))), np.pad(B[:9], ((0, 0), (0, 3)))
    np.testing.assert_allclose(frechet_distance(a, b), by_square_root(a, b), rtol=1e-5)
    assert frechet_distance(a, a) < 1e-9 * np.trace(moments(a)[1])


def test_closed_forms():
    """Equal covariances: the squared distance of the means. One dimension: (m1 - m2)^2 + (s1 - s2)^2."""
    np.testing.assert_allclose(frechet_distance(A, A + np.arange(12)), np.sum(np.arange(12.0) ** 2), rtol=1e-9)
    one = frechet_of((np.array([1.0]), np.array([[4.0]])), (np.array([3.0]), np.array([[9.0]])))
    np.testing.assert_allclose(one, 4 + 1, rtol=1e-12)


def test_symmetric_and_blind_to_order():
    np.testing.assert_allclose(frechet_distance(A, B), frechet_distance(B[::-1], A), rtol=1e-10)
    assert frechet_distance(A, A[::-1]) < 1e-9


def test_float32_features_are_summed_in_float64():
    """Catches moments taken in the features' own precision: a large mean swallows the variance."""
    far = (A + 1e5).astype(np.float32)
    np.testing.assert_allclose(moments(far)[1], moments(far.astype(np.float64))[1], rtol=1e-12)
    assert frechet_distance(far, far) < 1e-6


@pytest.mark.parametrize("a, b, match", [(A, B[:, :5], "12 numbers a row, the other 5"), (A[:1], B, "N >= 2"),
                                         (A, B * np.nan, "not finite"), (A[0], B, r"\[N, D\]")])
def test_doors(a, b, match):
    with pytest.raises(UserError, match=match):
        frechet_distance(a, b)
