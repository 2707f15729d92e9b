"""Solvers with a memory of earlier estimates, one evaluation a step, in ln(alpha/sigma): the multistep DPM-Solvers.

With V the estimate of clean D (dpmpp_*) or of noise E (dpm_*), H1 and H2 those of the two steps before, r0 and r1 the
lengths of those steps over this one's h, and a0 = (V - H1) / r0, a1 = (H1 - H2) / r1:
  order 2: + g2 a0, with g2 = scale psi_2 ("heun") or scale psi_1 / 2 ("midpoint");
  order 3: + g2 (a0 + r0 (a0 - a1) / (r0 + r1)) + f g3 (a0 - a1) / (r0 + r1).
The published f = 1 is second order: (a0 - a1) / (r0 + r1) is half the second derivative, so f = 2 is third ("corrected").
The first steps have the order that their history allows, and the step to clean data (h infinite) has order 1.
"""

import math
from typing import Literal

from ldm_jax.diffusion.checks import check
from ldm_jax.diffusion.exponential import decay, length, psi
from ldm_jax.diffusion.path import Path
from ldm_jax.diffusion.rows import check_eta, out_of_noise, refuse_long
from ldm_jax.diffusion.table import Row, Table, make

Second = Literal["midpoint", "heun"]
Third = Literal["corrected", "published"]


def dpmpp_2m(path: Path, form: Second = "midpoint", lower_final: bool = False) -> Table:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2): x+ = (t/s) x + b (psi_1 D + psi_1 (D - H1) / (2 r0)). Order 2.

    Args:
      form: "midpoint" as published, "heun" with psi_2 for psi_1 / 2, which is exact where D is linear in ln(alpha/sigma).
      lower_final: order 1 in the last step wherever it ends (diffusers below 15 steps).
    """
    return _clean("dpmpp_2m", path, 2, 0.0, form, "corrected", lower_final)


def dpmpp_3m(path: Path, form: Third = "corrected", start: Second = "midpoint", lower_final: bool = False) -> Table:
    """DPM-Solver++(3M) (arXiv 2211.01095, appendix D): two earlier D. Order 2 by its first steps, 3 with an exact history.

    Args:
      form: "corrected", or "published", which is second order whatever its history (see the top of this file).
      start: the form of the second-order steps ("midpoint" in diffusers).
      lower_final: order 2 in the last step but one, 1 in the last (diffusers below 15 steps).
    """
    return _clean("dpmpp_3m", path, 3, 0.0, start, form, lower_final)


def dpmpp_2m_sde(path: Path, eta: float = 1.0, form: Second = "midpoint") -> Table:
    """DPM-Solver++(2M) of the reverse stochastic equation (arXiv 2211.01095, section 5; k-diffusion's sample_dpmpp_2m_sde).

    x+ = (t/s) q^eta x + b (psi_1 D + ...) + t sqrt(1 - q^(2 eta)) z, psi at (1 + eta) h. eta 0 is dpmpp_2m. Order 2 in the
    variance, and the mean is exact where D is.

    Raises:
      UserError: eta outside 0 .. 1.
    """
    check_eta("dpmpp_2m_sde", eta)
    return _clean("dpmpp_2m_sde", path, 2, eta, form, "corrected", False)


def dpmpp_3m_sde(path: Path, eta: float = 1.0, form: Third = "corrected", start: Second = "heun") -> Table:
    """The same with two earlier D (k-diffusion's sample_dpmpp_3m_sde is form="published"). Order 2 in the variance.

    Raises:
      UserError: eta outside 0 .. 1.
    """
    check_eta("dpmpp_3m_sde", eta)
    return _clean("dpmpp_3m_sde", path, 3, eta, start, form, False)


def dpm_2m(path: Path, form: Second = "midpoint", lower_final: bool = False) -> Table:
    """DPM-Solver with one earlier E: x+ = b D + t E + t psi_1(-h) (E - H1) / (2 r0). Order 2.

    The noise form of dpmpp_2m (arXiv 2206.00927; algorithm_type="dpmsolver" in diffusers). Options as there.

    Raises:
      UserError: a step so long that the error of E would be multiplied past float32's precision.
    """
    return _noise("dpm_2m", path, 2, form, "corrected", lower_final)


def dpm_3m(path: Path, form: Third = "corrected", start: Second = "midpoint", lower_final: bool = False) -> Table:
    """DPM-Solver with two earlier E, the noise form of dpmpp_3m. Order 2 by its first steps. Options and errors as there."""
    return _noise("dpm_3m", path, 3, start, form, lower_final)


def _clean(name: str, path: Path, order: int, eta: float, second: str, third: str, lower_final: bool) -> Table:
    rows, steps = out_of_noise(path)
    lengths = [length(level, reach) for _, level, reach in steps]
    for j, (i, (a, s), (b, t)) in enumerate(steps):
        rate, known = (1 + eta) * lengths[j], _order(order, j, steps, lower_final)
        gains = [b * psi(k, rate) for k in (1, 2, 3)]
        now, *past = _differences(gains, lengths[:j + 1], known, second, third)
        rows.append(Row((a, s), path.time[i], (b, t), x=t / s * decay((a, s), (b, t)) ** eta, clean=gains[0] + now, memory=(*past, 0.0),
                        draw=t * math.sqrt(-math.expm1(-2 * eta * lengths[j])) if eta else 0.0, remember=(0.0, 1.0, 0.0, 0.0),
                        exact=_exact("midpoint", "clean", "published", known, second, third), degree=known - 1))
    return check(make(name, rows), path.begin, path.end)


def _noise(name: str, path: Path, order: int, second: str, third: str, lower_final: bool) -> Table:
    rows, steps = out_of_noise(path)
    lengths = [length(level, reach) for _, level, reach in steps]
    for j, (i, (a, s), (b, t)) in enumerate(steps):
        known = _order(order, j, steps, lower_final)
        gains = [t * psi(k, -lengths[j]) for k in (1, 2, 3)] if known > 1 else [0.0] * 3
        now, *past = _differences(gains, lengths[:j + 1], known, second, third)
        refuse_long(name, (a, s), (b, t), max(abs(now), *map(abs, past)))
        rows.append(Row((a, s), path.time[i], (b, t), clean=b, noise=t + now, memory=(*past, 0.0), remember=(0.0, 0.0, 1.0, 0.0),
                        exact=_exact("noise_midpoint", "log_noise", "noise_published", known, second, third), degree=known - 1))
    return check(make(name, rows), path.begin, path.end)


def _order(order: int, j: int, steps: list, lower_final: bool) -> int:
    """Of step j: what its history allows; 1 to clean data; with lower_final no more than the steps that are left."""
    _, _, (_, sigma) = steps[j]
    return 1 if sigma == 0 else min(order, j + 1, len(steps) - j if lower_final else order)


def _differences(gains, lengths, order: int, second: str, third: str) -> tuple[float, float, float]:
    """What the differences add to the weights of (V, H1, H2). gains: scale times psi_1, psi_2, psi_3; lengths: up to this step's."""
    if order == 1:
        return 0.0, 0.0, 0.0
    r0 = lengths[-2] / lengths[-1]
    if order == 2:
        weight = (gains[1] if second == "heun" else gains[0] / 2) / r0
        return weight, -weight, 0.0
    r1 = lengths[-3] / lengths[-1]
    curve = (gains[1] * r0 + (2 if third == "corrected" else 1) * gains[2]) / (r0 + r1)
    first, other = (gains[1] + curve) / r0, -curve / r1
    return first, other - first, -other


def _exact(middle: str, full: str, half: str, order: int, second: str, third: str) -> str:
    if order == 3:
        return full if third == "corrected" else half
    return full if second == "heun" else middle
