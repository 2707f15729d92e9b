"""UniPC: a row predicts, the next uses its D at the predicted point to correct it, then predicts again."""

import math
from typing import Literal

import numpy as np

from ldm_jax.diffusion.checks import check
from ldm_jax.diffusion.exponential import length, psi
from ldm_jax.diffusion.path import Path
from ldm_jax.diffusion.rows import check_order, out_of_noise
from ldm_jax.diffusion.table import Row, Table, make


def unipc(path: Path, order: int = 2, form: Literal["bh2", "bh1", "solved"] = "bh2", lower_final: bool = True) -> Table:
    """UniPC-p in the clean estimate (arXiv 2302.04867, algorithms 5 to 8). One evaluation a step; order p + 1 as measured

    where the end does not lower it (see `lower_final`; to a noisy end with it, 2).

    Predictor, r_m = (l_(i-m) - l_i) / h < 0 with l = ln(alpha/sigma): x+ = (t/s) x_c + b (psi_1 D + sum_m w_m (H_m - D) / r_m).
    Correction of the step before, at whose start r_m and w belong, plus the node r_p = 1 where D now is:
    x_c = x + a (sum_(m<p) (c_m - w_m) (H_(m+1) - H1) / r_m + c_p (D - H1)). w and c solve
    sum_m w_m r_m^(k-1) = k! psi_(k+1)(h) for k = 1 .. their number.

    Args:
      order: p, 1 to 3.
      form: where one difference is used alone, the published shortcut psi_1 / 2 ("bh2") or h / 2 ("bh1") for the solution
        psi_2 ("solved"); otherwise the three are one method.
      lower_final: the order falls to 2 in the last step but one and 1 in the last, as in the peers; to clean data it is 1.

    Raises:
      UserError: order not 1 to 3.
    """
    check_order("unipc", order, 3)
    rows, steps = out_of_noise(path)
    lengths = [length(level, reach) for _, level, reach in steps]
    before = None
    for j, (i, (a, s), (b, t)) in enumerate(steps):
        h, known = lengths[j], 1 if t == 0 else min(order, j + 1, len(steps) - j if lower_final else order)
        nodes = [-sum(lengths[j - m:j]) / h for m in range(1, known)]
        weights = _weights(nodes, h, form)
        fix, corrects = _correction(a, *before, form) if before else (np.zeros(4), ("clean", 0))
        now, past = b * psi(1, h), [b * w / r for w, r in zip(weights, nodes)]
        u = np.asarray([now - sum(past), *past, *[0.0] * (3 - len(past))]) + t / s * fix
        rows.append(Row((a, s), path.time[i], (b, t), x=t / s, clean=float(u[0]), memory=tuple(u[1:].tolist()),
                        remember=(0.0, 1.0, 0.0, 0.0), exact=_exact(len(weights), form), degree=known - 1,
                        correction=tuple(fix.tolist()), corrects=corrects))
        before = (nodes, weights, h)
    return check(make("unipc", rows), path.begin, path.end)


def _weights(nodes: list, h: float, form: str) -> list[float]:
    """w of the nodes: the solved ones, or the shortcut where there is one node."""
    if len(nodes) == 1 and form != "solved":
        return [psi(1, h) / 2 if form == "bh2" else h / 2]
    powers = np.vander(np.asarray(nodes), increasing=True).T if nodes else np.zeros((0, 0))
    return np.linalg.solve(powers, [math.factorial(k) * psi(k + 1, h) for k in range(1, len(nodes) + 1)]).tolist()


def _correction(alpha: float, nodes: list, weights: list, h: float, form: str) -> tuple[np.ndarray, tuple[str, int]]:
    """What is added to x as weights of (D, H1, H2, H3), and what the corrected step is exact on."""
    *solved, last = _weights([*nodes, 1.0], h, form)
    fix = np.zeros(4)
    fix[:2] = last, -last
    for m, (c, w, r) in enumerate(zip(solved, weights, nodes)):
        fix[m + 2] += (c - w) / r
        fix[1] -= (c - w) / r
    count = len(nodes) + 1
    return alpha * fix, (_exact(count, form), count)


def _exact(count: int, form: str) -> str:
    return {"bh1": "undamped", "bh2": "midpoint", "solved": "clean"}[form] if count == 1 else "clean"
