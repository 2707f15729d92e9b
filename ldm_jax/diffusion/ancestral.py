"""First-order samplers, one evaluation a step and no memory: ddpm, ddim, euler, euler_ancestral.

Symbols as in samplers.py: (a, s) the level, (b, t) the level reached, q = (a t) / (b s), v = s^2 (1 - q^2).
"""

import math
from typing import Literal

from ldm_jax.diffusion.checks import check
from ldm_jax.diffusion.exponential import decay
from ldm_jax.diffusion.path import Path
from ldm_jax.diffusion.rows import check_eta, split, straight
from ldm_jax.diffusion.table import Row, Table, make


def ddpm(path: Path, variance: Literal["small", "large"] = "small") -> Table:
    """Ancestral sampling (arXiv 2006.11239, equation 7 and section 3.2). One evaluation a step.

    x+ = q (t/s) x + b (1 - q^2) D + g z. "small": g^2 = v t^2/s^2, the posterior's own variance. "large": g^2 = v
    (beta), which keeps too much noise except on standard normal data, and none in the step to clean data.
    """
    rows = []
    for i, (a, s), (b, t) in path.steps():
        q = decay((a, s), (b, t))
        v = s**2 * (1 - q) * (1 + q)
        small = v * (t / s) ** 2
        used = v if variance == "large" and t > 0 else small
        rows.append(Row((a, s), path.time[i], (b, t), x=q * t / s, clean=b * (1 - q) * (1 + q), draw=math.sqrt(used),
                        excess=used - small))
    return check(make("ddpm", rows), path.begin, path.end)


def ddim(path: Path, eta: float = 0.0) -> Table:
    """x+ = b D + sqrt(t^2 - w) E + sqrt(w) z, w = eta^2 v t^2/s^2 (arXiv 2010.02502, equations 12 and 16).

    Order 1, one evaluation a step. eta 0 is deterministic and equals Euler; eta 1 equals DDPM with the small variance.

    Raises:
      UserError: eta outside 0 .. 1.
    """
    check_eta("ddim", eta)
    rows = []
    for i, (a, s), (b, t) in path.steps():
        q = decay((a, s), (b, t))
        w = eta**2 * t**2 * (1 - q) * (1 + q)
        rows.append(Row((a, s), path.time[i], (b, t), clean=b, noise=math.sqrt(t**2 - w), draw=math.sqrt(w)))
    return check(make("ddim", rows), path.begin, path.end)


def euler(path: Path) -> Table:
    """x+ = x + (t/b - s/a) E in sigma-space (arXiv 2206.00364, algorithm 1 without its correction). Order 1.

    Written as b D + t E, which is the same since x = a D + s E, and does not subtract large numbers where a is small.
    """
    return check(make("euler", [straight(level, path.time[i], reach) for i, level, reach in path.steps()]), path.begin, path.end)


def euler_ancestral(path: Path, eta: float = 1.0) -> Table:
    """Euler to a lower level, then noise up to the one asked for (k-diffusion's sample_euler_ancestral). Order 1.

    x+ = b D + b down E + b up z, (down, up) the ancestral split of sigma/alpha. Equals ddim with the same eta.

    Raises:
      UserError: eta outside 0 .. 1.
    """
    check_eta("euler_ancestral", eta)
    rows = []
    for i, (a, s), (b, t) in path.steps():
        down, up = split(float(path.ratios[i]), t / b, eta)
        rows.append(Row((a, s), path.time[i], (b, t), clean=b, noise=b * down, draw=b * up))
    return check(make("euler_ancestral", rows), path.begin, path.end)
