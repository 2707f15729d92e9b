"""DPM-Solvers that start each step anew: two or three evaluations inside it, one in a step to clean data.

Every point of a step is a sum over its start x0 and the estimates V (E in dpm_3, D in dpmpp_*) found so far. The rows
remember V; x0 itself is found again from the point and the V before it, which multiplies rounding by less than 1.
"""

from typing import Literal

from ldm_jax.core.errors import UserError
from ldm_jax.diffusion.checks import check
from ldm_jax.diffusion.exponential import length, psi
from ldm_jax.diffusion.path import Path
from ldm_jax.diffusion.rows import check_middle, out_of_noise, refuse_long, straight
from ldm_jax.diffusion.table import Row, Table, make


def dpm_3(path: Path) -> Table:
    """DPM-Solver-3 (arXiv 2206.00927, algorithm 2): E at 1/3 and 2/3 of the step in ln(alpha/sigma). Order 3.

    Raises:
      UserError: a step so long that the error of E would be multiplied past float32's precision.
    """
    rows, steps = out_of_noise(path)
    for i, (a, s), (b, t) in steps:
        if t == 0:
            rows.append(straight((a, s), path.time[i], (b, t)))
            continue
        h = length((a, s), (b, t))
        points = [((a, s), path.time[i]), *[path.between((s / a) ** (1 - r) * (t / b) ** r) for r in (1 / 3, 2 / 3)]]
        (_, (c, _), (d, e)), reach = [level for level, _ in points], (b, t)
        second, third = 2 * e * psi(2, -2 * h / 3), 1.5 * t * psi(2, -h)
        ways = [(c / a,), (d / a, e * psi(1, -2 * h / 3) - second, second), (b / a, t * psi(1, -h) - third, 0.0, third)]
        ways[0] += (points[1][0][1] * psi(1, -h / 3),)
        rows += _rows("dpm_3", points, reach, ways, "noise", [("log_noise", 0), ("log_noise", 1), ("log_noise", 1)])
    return check(make("dpm_3", rows), path.begin, path.end)


def dpmpp_2s(path: Path, r: float = 0.5, middle: Literal["between", "grid"] = "between") -> Table:
    """DPM-Solver++(2S) (arXiv 2211.01095, algorithm 1): D at `r` of the step in ln(alpha/sigma). Order 2.

    Args:
      middle: "between" the levels of the grid, two evaluations a step; or "grid": a step covers two of the grid's, and
        the level between them is its middle (diffusers' singlestep solver), one evaluation per grid step, r unused.

    Raises:
      UserError: r outside 0 .. 1, or given where the grid decides.
    """
    check_middle("dpmpp_2s", r)
    if middle == "grid":
        if r != 0.5:
            raise UserError(f"sampler 'dpmpp_2s': r={r} with middle='grid': there the grid decides; leave out one of the two")
        return _over_grid("dpmpp_2s", path, 2, "midpoint")
    rows, steps = out_of_noise(path)
    for i, (a, s), (b, t) in steps:
        if t == 0:
            rows.append(straight((a, s), path.time[i], (b, t)))
            continue
        points = [((a, s), path.time[i]), path.between((s / a) ** (1 - r) * (t / b) ** r)]
        rows += _clean("dpmpp_2s", points, (b, t), "midpoint")
    return check(make("dpmpp_2s", rows), path.begin, path.end)


def dpmpp_3s(path: Path, form: Literal["midpoint", "heun"] = "midpoint", lower_final: bool = True) -> Table:
    """DPM-Solver++(3S) on triples of the grid's steps, as diffusers' singlestep solver; one evaluation per grid step.

    "midpoint" uses the last D alone, which makes order 3 where the grid is even in ln(alpha/sigma); "heun" uses all three,
    order 3 on any. What does not fill a triple is done in shorter steps, and so is always a step to clean data.

    Args:
      lower_final: the last step is one of order 1 or 2 wherever it ends, as in diffusers.
    """
    return _over_grid("dpmpp_3s", path, 3, form, lower_final)


def _over_grid(name: str, path: Path, order: int, form: str, lower_final: bool = True) -> Table:
    """Steps of `order` grid steps each; what is left, and normally the last, in shorter ones."""
    rows, steps = out_of_noise(path)
    whole = not lower_final and path.end[1] > 0
    position = 0
    while position < len(steps):
        left = len(steps) - position
        size = min(order, left) if whole else order if left > order else max(left - 1, 1)
        if order == 3 and left == 2 and steps[-1][2][1] > 0:
            size = 2  # the end still holds noise, so that the last two may be one of order 2
        part = steps[position:position + size]
        points = [(level, path.time[i]) for i, level, _ in part]
        rows += _clean(name, points, part[-1][2], form)
        position += size
    return check(make(name, rows), path.begin, path.end)


def _clean(name: str, points: list, reach, form: str) -> list[Row]:
    """The rows of one step in D; points: (level, time) of its evaluations, 1 to 3."""
    levels = [level for level, _ in points] + [reach]
    (_, s), ends = levels[0], [length(levels[0], level) for level in levels[1:]]
    ways, exact = [], []
    for (b, t), h in zip(levels[1:], ends):
        base, slope, j = b * psi(1, h), b * psi(2, h), len(ways)
        if j == 0:
            ways.append((t / s, base))
            exact.append(("clean", 0))
        elif j == 1:
            weight = (slope if form == "heun" else base / 2) * h / ends[0]
            ways.append((t / s, base - weight, weight))
            exact.append(("clean" if form == "heun" else "midpoint", 1))
        elif form == "midpoint":
            weight = slope * h / ends[1]
            ways.append((t / s, base - weight, 0.0, weight))
            exact.append(("clean", 1))
        else:
            r1, r0, curve = ends[0] / h, ends[1] / h, 2 * b * psi(3, h)
            first, second = (slope * r0 - curve) / (r1 * (r0 - r1)), (curve - slope * r1) / (r0 * (r0 - r1))
            ways.append((t / s, base - first - second, first, second))
            exact.append(("clean", 2))
    return _rows(name, points, reach, ways, "clean", exact)


def _rows(name: str, points: list, reach, ways: list, estimate: str, exact: list) -> list[Row]:
    """ways[j]: the weights of (x0, V0 .. Vj) in the point that row j reaches."""
    reaches = [level for level, _ in points[1:]] + [reach]
    rows, growth = [], 1.0
    for j, ((level, time), way) in enumerate(zip(points, ways)):
        kind, degree = exact[j]
        remember = (0.0, 1.0, 0.0, 0.0) if estimate == "clean" else (0.0, 0.0, 1.0, 0.0)
        common = dict(remember=remember, opens=j == 0, exact=kind, degree=degree)
        if j == 0 and estimate == "noise":
            rows.append(straight(level, time, reaches[j], **common))
            continue
        known = ways[j - 1] if j else (1.0,)
        kept = way[0] / known[0]
        past = [way[m] - kept * known[m] for m in range(j, 0, -1)]
        if estimate == "noise":
            growth *= max(1.0, *[abs(w) / reaches[j][1] for w in (way[-1], *past)])  # the next estimate carries this one's error
            refuse_long(name, points[0][0], reach, growth * reach[1])
        rows.append(Row(level, time, reaches[j], x=kept, memory=tuple(past + [0.0] * (3 - j)), **{estimate: way[-1]}, **common))
    return rows
