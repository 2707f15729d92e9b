"""The exponential functions of solvers that integrate the linear part of the sampling equation exactly."""

import math

SERIES_TERMS = 24
"""Of the series in h for |h| < 1: the last is below 1e-23."""


def psi(k: int, h: float) -> float:
    """psi_k(h) = h integral over 0..1 of e^(-h (1 - tau)) tau^(k-1) / (k-1)! dtau, k >= 1, any real h, also infinite.

    A step of length h in ln(alpha/sigma), on which D = D0 + D' tau + D'' tau^2 / 2 (tau in 0 .. 1), adds alpha' times
    psi_1 D0 + psi_2 D' + psi_3 D''; with psi_k(-h) and sigma' for alpha' the same is true of the noise (arXiv 2206.00927,
    equation 3.4 and appendix B). psi_1 = 1 - e^(-h), psi_(k+1) = 1/k! - psi_k / h; below |h| = 1 by its series, as the
    recurrence loses digits there (at h = 0.001, 6 of psi_3's 16).
    """
    if abs(h) < 1:
        return h * math.fsum((-h) ** m / math.factorial(m + k) for m in range(SERIES_TERMS))
    value = -math.expm1(-h)
    for j in range(1, k):
        value = 1 / math.factorial(j) - value / h
    return value


def decay(level: tuple[float, float], reach: tuple[float, float]) -> float:
    """q = e^(-h) = (alpha sigma') / (alpha' sigma), in [0, 1): 0 from pure noise and to clean data, where h is infinite."""
    return level[0] * reach[1] / (reach[0] * level[1])


def length(level: tuple[float, float], reach: tuple[float, float]) -> float:
    """h, the step in ln(alpha/sigma); may be infinite."""
    q = decay(level, reach)
    return -math.log(q) if q > 0 else math.inf
