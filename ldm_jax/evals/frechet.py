"""Frechet distance between the Gaussians of two sets of features (Heusel et al. 2017, equation 6), float64 on the host."""

import numpy as np

from ldm_jax.core.errors import UserError


def frechet_distance(features_a, features_b) -> float:
    """|mean_a - mean_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^1/2): the squared distance, as FID is.

    Args:
      features_a, features_b: [N, D] and [M, D], any units; the result is in those units squared.
        N and M may be below D: covariances may be singular.

    Raises:
      UserError: fewer than 2 rows, other widths, or a value that is not finite.
    """
    return frechet_of(moments(features_a), moments(features_b))


def moments(features) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and covariance [D, D] (divided by N - 1) of features [N, D]."""
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise UserError(f"features: expected [N, D] with N >= 2, got {list(features.shape)}")
    if not np.all(np.isfinite(features)):
        raise UserError("features: a value is not finite")
    mean = features.mean(axis=0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def frechet_of(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    """The distance of two (mean, covariance) pairs.

    With S = R R^T from the symmetric eigenvalues of S (tiny negative ones are zero), tr((S_a S_b)^1/2) is the sum of the
    singular values of R_a^T R_b. Unlike a matrix square root this has no failing case and no imaginary part, and it
    loses no digits where a covariance is singular.
    """
    (mean_a, cov_a), (mean_b, cov_b) = a, b
    if mean_a.shape != mean_b.shape:
        raise UserError(f"features: one set has {len(mean_a)} numbers a row, the other {len(mean_b)}")
    root_a, root_b = _root(cov_a), _root(cov_b)
    cross = np.linalg.svd(root_a.T @ root_b, compute_uv=False).sum()
    distance = np.sum((mean_a - mean_b) ** 2) + np.sum(root_a**2) + np.sum(root_b**2) - 2.0 * cross
    return float(max(distance, 0.0))


def _root(covariance: np.ndarray) -> np.ndarray:
    """R [D, D] with R R^T = covariance."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2.0)
    return vectors * np.sqrt(np.clip(values, 0.0, None))
