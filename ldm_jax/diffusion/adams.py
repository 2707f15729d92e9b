"""Adams-Bashforth methods in the noise estimate, along sigma/alpha, one evaluation a step: plms, lms. They remember E.

With c_k the weights of E and the earlier ones that replace E in Euler's step, sum c = t - b s/a, so that
x+ = b D + t E + (c_1 - sum c) E + c_2 H1 + ...: only differences carry weights that may be large.
"""

import numpy as np

from ldm_jax.diffusion.checks import check
from ldm_jax.diffusion.path import Path
from ldm_jax.diffusion.rows import check_order, out_of_noise, refuse_long, straight
from ldm_jax.diffusion.table import Row, Table, make

BASHFORTH = {2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}


def plms(path: Path) -> Table:
    """Pseudo linear multistep (arXiv 2202.09778, equation 12; CompVis and diffusers' PNDM with skip_prk_steps).

    The Adams-Bashforth weights of equal steps, up to order 4, whatever the steps are: exact where E is a polynomial of the
    row's number. The first step is taken twice, the second time with the mean of E at its ends: steps + 1 evaluations.
    Order 2 (near 3 below 128 steps), since sigma/alpha is not equally spaced.

    Raises:
      UserError: a step so long that the error of E would be multiplied past float32's precision.
    """
    rows, steps = out_of_noise(path)
    for j, (i, (a, s), (b, t)) in enumerate(steps):
        level, time, change = (a, s), path.time[i], t - b * s / a
        if j == 0:
            rows.append(straight(level, time, (b, t), remember=(0.0, 0.0, 1.0, 0.0)))
            if len(steps) > 1:
                refuse_long("plms", level, (b, t), change / 2)
                rows.append(Row((b, t), path.time[i + 1], (b, t), x=1.0, noise=change / 2, memory=(-change / 2, 0.0, 0.0), keep=False,
                                opens=False, exact="noise_index", degree=1))
            continue
        rows.append(_step("plms", level, time, (b, t), [change * c for c in BASHFORTH[min(j + 1, 4)]], "noise_index"))
    return check(make("plms", rows), path.begin, path.end)


def lms(path: Path, order: int = 4) -> Table:
    """Linear multistep: the integral over sigma/alpha of the polynomial through the last `order` E (k-diffusion's sample_lms).

    Order 2 by its first steps, `order` with an exact history. Keeps its order in the step to clean data.

    Raises:
      UserError: order not 1 to 4, or a step that is too long (as in `plms`).
    """
    check_order("lms", order, 4)
    rows, steps = out_of_noise(path)
    for j, (i, level, (b, t)) in enumerate(steps):
        known = min(order, j + 1)
        nodes = path.ratios[i - known + 1:i + 1][::-1]
        rows.append(_step("lms", level, path.time[i], (b, t), b * _integrals(nodes, path.ratios[i + 1]), "noise"))
    return check(make("lms", rows), path.begin, path.end)


def _step(name: str, level, time: float, reach, weights, exact: str) -> Row:
    """The row with these weights of (E, H1, H2, H3)."""
    past = [float(w) for w in weights[1:]]
    refuse_long(name, level, reach, max(map(abs, past), default=0.0))
    return Row(level, time, reach, clean=reach[0], noise=reach[1] - sum(past), memory=tuple(past + [0.0] * (3 - len(past))),
               remember=(0.0, 0.0, 1.0, 0.0), exact=exact, degree=len(past))


def _integrals(nodes: np.ndarray, to: float) -> np.ndarray:
    """From nodes[0] to `to`, of each Lagrange polynomial on the nodes; by three Gauss points, exact up to degree 5."""
    points, weights = np.polynomial.legendre.leggauss(3)
    half = (to - nodes[0]) / 2
    at = nodes[0] + half * (points + 1)
    return np.asarray([half * np.sum(weights * np.prod([(at - other) / (node - other) for other in nodes if other != node], axis=0))
                       for node in nodes])
