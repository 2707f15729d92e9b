"""Samplers: functions from a path of levels to a checked Table. Add one by writing its rows and naming it in SAMPLERS.

Symbols: (a, s) the level of a row, (b, t) the level it reaches, D and E the estimates of clean and noise,
q = (a t) / (b s) = e^(-h) with h the step in ln(alpha/sigma); v = s^2 (1 - q^2). Published sigma-space forms (alpha = 1)
are moved to any level by x -> b/a and every other weight times b.
"""

import math
from typing import Literal

from ldm_jax.core.choose import choose
from ldm_jax.core.errors import UserError
from ldm_jax.diffusion.checks import check
from ldm_jax.diffusion.grids import GRIDS
from ldm_jax.diffusion.path import Path, after, fed
from ldm_jax.diffusion.prediction import INDEX
from ldm_jax.diffusion.table import Row, Table, make, with_guidance


def ddpm(path: Path, variance: Literal["small", "large"] = "small") -> Table:
    """Ancestral sampling (arXiv 2006.11239, equation 7 and section 3.2). One evaluation a step.

    x+ = q^2 (b/a) x + b (1 - q^2) D + g z. "small": g^2 = v t^2/s^2, the posterior's own variance. "large": g^2 = v
    (beta), which keeps too much noise except on standard normal data, and none in the step to clean data.
    """
    path.need_alpha("ddpm")
    rows = []
    for i, (a, s), (b, t) in path.steps():
        q = a * t / (b * s)
        v = s**2 * (1 - q) * (1 + q)
        small = v * (t / s) ** 2
        used = v if variance == "large" and t > 0 else small
        rows.append(Row((a, s), path.time[i], (b, t), x=q**2 * b / a, clean=b * (1 - q) * (1 + q), draw=math.sqrt(used),
                        excess=used - small))
    return check(make("ddpm", rows, "clean"), path.begin, path.end)


def ddim(path: Path, eta: float = 0.0) -> Table:
    """x+ = b D + sqrt(t^2 - w) E + sqrt(w) z, w = eta^2 v t^2/s^2 (arXiv 2010.02502, equations 12 and 16).

    Order 1, one evaluation a step. eta 0 is deterministic and equals Euler; eta 1 equals DDPM with the small variance.

    Raises:
      UserError: eta outside 0 .. 1.
    """
    if not (math.isfinite(eta) and 0 <= eta <= 1):
        raise UserError(f"sampler 'ddim': eta={eta}: expected a number from 0 (deterministic) to 1 (as noisy as ddpm)")
    rows = []
    for i, (a, s), (b, t) in path.steps():
        q = a * t / (b * s)
        w = eta**2 * t**2 * (1 - q) * (1 + q)
        rows.append(Row((a, s), path.time[i], (b, t), clean=b, noise=math.sqrt(t**2 - w), draw=math.sqrt(w)))
    return check(make("ddim", rows, "noise"), path.begin, path.end)


def euler(path: Path) -> Table:
    """x+ = x + (t/b - s/a) E in sigma-space (arXiv 2206.00364, algorithm 1 without its correction). Order 1.

    Written as b D + t E, which is the same since x = a D + s E, and does not subtract large numbers where a is small.
    """
    rows = [Row((a, s), path.time[i], (b, t), clean=b, noise=t) for i, (a, s), (b, t) in path.steps()]
    return check(make("euler", rows, "noise"), path.begin, path.end)


HEUN_LIMIT = 3e4
"""Largest ratio of sigma/alpha in one step of Heun: half of it times float32's rounding (6e-8) is 1e-3."""


def heun(path: Path) -> Table:
    """Euler, then again with the mean of the slopes at both ends (arXiv 2206.00364, algorithm 1). Order 2.

    Two evaluations a step, one in the step to clean data. With k = (t/b - s/a) / 2, in sigma-space: the first row goes to
    x + 2 k E and remembers x + k E; the second adds k E'. Written with D and E as in `euler`.

    Raises:
      UserError: a step so long that the second evaluation's error would be multiplied past float32's precision.
    """
    path.need_alpha("heun")
    rows = []
    for i, (a, s), (b, t) in path.steps():
        if t == 0:
            rows.append(Row((a, s), path.time[i], (b, t), clean=b))
            continue
        if b * s / (a * t) > HEUN_LIMIT:
            raise UserError(f"sampler 'heun': the step from sigma/alpha {s / a:.4g} to {t / b:.4g} is too long, its second "
                            f"evaluation's error would be multiplied by {b * s / (2 * a * t):.0e}; take more steps, the grid "
                            "'karras', or another sampler")
        half = (t - b * s / a) / 2
        rows.append(Row((a, s), path.time[i], (b, t), clean=b, noise=t, remember=(0.0, b, t - half, 0.0), degree=1))
        rows.append(Row((b, t), path.time[i + 1], (b, t), noise=half, memory=(1.0, 0.0, 0.0), opens=False))
    return check(make("heun", rows, "noise"), path.begin, path.end)


def dpmpp_2m(path: Path) -> Table:
    """DPM-Solver++ with two steps, midpoint form (arXiv 2211.01095, algorithm 2). Order 2, one evaluation a step.

    x+ = (t/s) x + b (1 - q) (D + (D - H1) / (2 r)), r = h of the step before / h, H1 the D before. The first step,
    the one after pure noise, and the step to clean data (h infinite) have order 1: x+ = (t/s) x + b (1 - q) D.
    """
    rows, before = [], None
    for i, (a, s), (b, t) in path.steps():
        q = a * t / (b * s)
        h = -math.log(q) if q > 0 else math.inf
        difference = 0.0 if before is None or t == 0 or math.isinf(before) else b * (1 - q) * h / (2 * before)
        rows.append(Row((a, s), path.time[i], (b, t), x=t / s, clean=b * (1 - q) + difference, memory=(-difference, 0.0, 0.0),
                        remember=(0.0, 1.0, 0.0, 0.0), degree=int(difference != 0)))
        before = h
    return check(make("dpmpp_2m", rows, "midpoint"), path.begin, path.end)


SAMPLERS = {"ddpm": ddpm, "ddim": ddim, "euler": euler, "heun": heun, "dpmpp_2m": dpmpp_2m}


def table_for(schedule, steps: int, sampler="ddim", grid="trailing", *, time_input=INDEX,
              strength: float = 1.0, guidance: tuple = ()) -> Table:
    """The checked table of a sampler, a grid and a number of steps.

    Args:
      schedule: what the network was trained on.
      steps: grid points; Heun evaluates twice at all but the last.
      sampler, grid: a name, or a section dict(name=..., own keys) of SAMPLERS, GRIDS.
      time_input: from TIME_INPUTS, as trained.
      strength: in (0, 1]: image-to-image runs the last floor(strength * steps) steps; the table starts at that level.
      guidance: one weight per guidance term, a number or one per row.

    Raises:
      UserError: unknown names, stale keys, steps or options out of range.
    """
    grid = {"name": grid} if isinstance(grid, str) else grid
    sampler = {"name": sampler} if isinstance(sampler, str) else sampler
    path = after(choose(GRIDS, grid, "grid", schedule=schedule, steps=steps), strength)
    table = choose(SAMPLERS, sampler, "sampler", path=fed(path, schedule, time_input))
    return with_guidance(table, *guidance)
