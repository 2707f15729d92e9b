"""Two evaluations a step, the second from a provisional point; one in a step to clean data or out of pure noise.

The first row goes to the provisional point and remembers what of the step is known, the second completes it.
Symbols as in samplers.py; S = s/a and T = t/b are the levels in sigma-space, where x/a = D + S E.
"""

import math
from typing import Literal

from ldm_jax.core.errors import UserError
from ldm_jax.diffusion.checks import check
from ldm_jax.diffusion.path import Path
from ldm_jax.diffusion.rows import check_eta, check_middle, out_of_noise, refuse_long, split, straight
from ldm_jax.diffusion.table import Row, Table, make


def heun(path: Path, form: Literal["ratio", "flow"] = "ratio") -> Table:
    """Euler, then again with the mean of the slopes at both ends (arXiv 2206.00364, algorithm 1). Order 2.

    "ratio": the slope is E, along sigma/alpha: with k = (T - S) / 2 the first row goes to x + 2 k E and remembers x + k E,
    the second adds k E'. "flow": the slope is E - D along sigma/(alpha + sigma), straight lines (arXiv 2209.03003); it has
    no long steps, and takes both evaluations in the step out of pure noise too. Both are written with D and E as in `euler`, at any level.

    Raises:
      UserError: a step so long that the second evaluation's error would be multiplied past float32's precision.
    """
    rows, steps = out_of_noise(path) if form == "ratio" else ([], path.steps())
    for i, (a, s), (b, t) in steps:
        if t == 0:
            rows.append(straight((a, s), path.time[i], (b, t)))
            continue
        if form == "ratio":
            half = (t - b * s / a) / 2
            refuse_long("heun", (a, s), (b, t), half)
            remember, second = (0.0, b, t - half, 0.0), dict(noise=half, exact="noise")
        else:
            half = (b + t) * (t / (b + t) - s / (a + s)) / 2
            remember, second = (0.0, b + half, t - half, 0.0), dict(clean=-half, noise=half, exact="flow")
        rows.append(straight((a, s), path.time[i], (b, t), remember=remember))
        rows.append(Row((b, t), path.time[i + 1], (b, t), memory=(1.0, 0.0, 0.0), opens=False, degree=1, **second))
    return check(make("heun", rows), path.begin, path.end)


def edm(path: Path, churn: float = 40.0, low: float = 0.05, high: float = 50.0, noise: float = 1.003) -> Table:
    """Heun with churn (arXiv 2206.00364, algorithm 2): noise is added before each step, so that it starts higher.

    From S to S^ = S (1 + g), g = min(churn / steps, sqrt(2) - 1) for S in [low, high], else 0; the fresh noise has deviation
    `noise`. The row that completes a step adds the next one's. S^ never exceeds the path's first level, which the
    schedule might not reach: there is no churn before the first step, where the sample is noise anyway. Order 2.

    Raises:
      UserError: churn below 0, low above high, noise not above 0, or a step that is too long (as in `heun`).
    """
    if not (math.isfinite(churn) and churn >= 0 and 0 <= low <= high and math.isfinite(noise) and noise > 0):
        raise UserError(f"sampler 'edm': churn={churn}, low={low}, high={high}, noise={noise}: expected churn at least 0, "
                        "0 <= low <= high, and noise above 0 (published: 40, 0.05, 50, 1.003)")
    rows, steps = out_of_noise(path)
    count = len(path.time) - 1
    gain = min(churn / count, math.sqrt(2) - 1)

    def raised(i: int) -> tuple[tuple[float, float], float, float, float]:
        """Where step i starts: its level, time, sigma/alpha, and the deviation of the noise that gets it there."""
        ratio = float(path.ratios[i])
        to = min(ratio * (1 + gain), float(path.ratios[0])) if 0 < i < count and low <= ratio <= high else ratio
        if to == ratio:
            return (float(path.alpha[i]), float(path.sigma[i])), path.time[i], ratio, 0.0
        return *path.between(to), to, math.sqrt((to - ratio) * (to + ratio))

    def fresh(up: float, scale: float) -> dict:
        return dict(draw=scale * noise * up, excess=(noise**2 - 1) * (scale * up) ** 2)

    if rows:
        level, _, _, up = raised(1)
        rows = [Row(path.begin, path.time[0], level, clean=level[0], noise=level[0] * float(path.ratios[1]), keep=False,
                    **fresh(up, level[0]))]
    for i, _, (b, t) in steps:
        level, time, ratio, _ = raised(i)
        if t == 0:
            rows.append(straight(level, time, (b, t)))
            continue
        half = (t / b - ratio) / 2
        refuse_long("edm", level, (b, t), b * half)
        rows.append(straight(level, time, (b, t), remember=(0.0, b, t - b * half, 0.0)))
        reach, _, _, up = raised(i + 1)
        rows.append(Row((b, t), path.time[i + 1], reach, noise=reach[0] * half, memory=(reach[0] / b, 0.0, 0.0), opens=False,
                        exact="noise", degree=1, **fresh(up, reach[0])))
    return check(make("edm", rows, split=True), path.begin, path.end)


def dpm_2(path: Path, eta: float = 0.0, r: float = 0.5) -> Table:
    """DPM-Solver-2: the slope E at the middle of the step in ln(alpha/sigma) (arXiv 2206.00927, algorithm 1). Order 2.

    With eta > 0, KDPM2 ancestral: the step goes to the lower level `down` of the ancestral split, then noise is added.

    Raises:
      UserError: eta outside 0 .. 1, r outside 0 .. 1 or above 0.5 with noise, or a step that is too long (as in `heun`).
    """
    check_eta("dpm_2", eta)
    check_middle("dpm_2", r)
    if eta > 0 and r > 0.5:
        raise UserError(f"sampler 'dpm_2': r={r} with eta={eta}: its middle could lie below the level reached; give r at most 0.5")
    rows, steps = out_of_noise(path)
    for i, (a, s), (b, t) in steps:
        if t == 0:
            rows.append(straight((a, s), path.time[i], (b, t)))
            continue
        down, up = split(s / a, t / b, eta)
        middle, time = path.between((s / a) ** (1 - r) * down**r)
        second = b * (down - s / a) / (2 * r)
        refuse_long("dpm_2", (a, s), (b, t), second)
        rows.append(straight((a, s), path.time[i], middle, remember=(0.0, b, b * down - second, 0.0)))
        rows.append(Row(middle, time, (b, t), noise=second, memory=(1.0, 0.0, 0.0), draw=b * up, opens=False,
                        exact="noise_midpoint", degree=1))
    return check(make("dpm_2", rows, split=True), path.begin, path.end)


def dpmpp_2s_ancestral(path: Path, eta: float = 1.0) -> Table:
    """DPM-Solver++(2S) to the lower level of the ancestral split, then noise (k-diffusion's sample_dpmpp_2s_ancestral).

    Order 2, in the variance too. eta 0 is `dpmpp_2s`.

    Raises:
      UserError: eta outside 0 .. 1.
    """
    check_eta("dpmpp_2s_ancestral", eta)
    rows, steps = out_of_noise(path)
    for i, (a, s), (b, t) in steps:
        if t == 0:
            rows.append(straight((a, s), path.time[i], (b, t)))
            continue
        down, up = split(s / a, t / b, eta)
        middle, time = path.between(math.sqrt(s / a * down))
        q = middle[1] * a / (middle[0] * s)
        rows.append(Row((a, s), path.time[i], middle, x=middle[1] / s, clean=middle[0] * (1 - q), remember=(b * down / s, 0.0, 0.0, 0.0)))
        rows.append(Row(middle, time, (b, t), clean=b * (1 - down * a / s), memory=(1.0, 0.0, 0.0), draw=b * up, opens=False,
                        exact="midpoint", degree=1))
    return check(make("dpmpp_2s_ancestral", rows, split=True), path.begin, path.end)


def dpmpp_sde(path: Path, eta: float = 1.0, r: float = 0.5, shared: Literal["sigma", "snr"] = "sigma") -> Table:
    """DPM-Solver++ for the reverse stochastic equation, two evaluations (arXiv 2211.01095, k-diffusion's sample_dpmpp_sde).

    Both rows go down and add noise, to the middle at `r` of the step in ln(alpha/sigma) and to its end, each from the
    step's start. The noise of the two is correlated, rho of it is shared: as Brownian motion in sigma/alpha has it
    ("sigma", the peers) or in (alpha/sigma)^2 ("snr", exact for the equation at eta = 1). With rho = 0 the order of the
    variance would be 1; it is 2.

    Raises:
      UserError: eta outside 0 .. 1, or r outside 0 .. 1.
    """
    check_eta("dpmpp_sde", eta)
    check_middle("dpmpp_sde", r)
    rows, steps = out_of_noise(path)
    k = 1 / (2 * r)
    for i, (a, s), (b, t) in steps:
        if t == 0:
            rows.append(straight((a, s), path.time[i], (b, t)))
            continue
        start, end = s / a, t / b
        (c, m), time = path.between(start ** (1 - r) * end**r)
        middle_down, middle_up = split(start, m / c, eta)
        down, up = split(start, end, eta)
        rho = _shared(start, m / c, end, shared)
        rest = b * (1 - down / start)
        rows.append(Row((a, s), path.time[i], (c, m), x=c * middle_down / s, clean=c * (1 - middle_down / start), draw=c * middle_up,
                        remember=(b * down / s, rest * (1 - k), 0.0, b * up * rho)))
        rows.append(Row((c, m), time, (b, t), clean=rest * k, memory=(1.0, 0.0, 0.0), draw=b * up * math.sqrt(1 - rho**2), opens=False,
                        exact="midpoint", degree=1))
    return check(make("dpmpp_sde", rows), path.begin, path.end)


def _shared(start: float, middle: float, end: float, kind: str) -> float:
    """Correlation of the noise from start to middle with that from start to end, Brownian in the named quantity."""
    if kind == "sigma":
        return math.sqrt((start - middle) / (start - end))
    return math.sqrt((middle**-2 - start**-2) / (end**-2 - start**-2))
