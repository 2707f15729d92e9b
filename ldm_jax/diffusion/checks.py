"""Checks of a sampler's table when it is built, before any network exists (reference/sampler_tables.md, section 7).

1. The rows follow one another: the first level is the stated start, each reach is the next level, the last the stated end.
2. A constant denoiser: the point stays alpha * clean + sigma * noise, fresh draws included, at every row. Noise that a
   row adds on purpose (`excess`) is taken out of its draw first, so such a table is checked as declared.
3. Differences: the first two cannot see a wrong weight of a difference, which vanishes on constants. The way from
   each opened row to the point that a row reaches is run on powers 1 .. degree of the variable that the row declares
   (EXACT) and compared with the integral, by quadrature; so is a step with its correction. Published shortcuts, which
   are exact on no integral, are declared as what they are.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.diffusion.table import Table

TOLERANCE = 1e-9
"""Float64 rounding reaches 3e-12 in 1000 rows; an error of 0.1 % in one weight shows from 1e-7 up."""

ROUNDING = 1e-4
"""Of the terms' size: what a check compares may be a small rest of large terms, 1e-13 of which is their rounding."""

HISTORY = 4
"""Rows before a step that can reach into it: three remembered values, and one row that remembers nothing (PLMS)."""


@dataclasses.dataclass(frozen=True)
class Exact:
    """What a step is exact on. `estimate` is a power of `variable`, which runs 0 -> 1 along the step; `rule` says how its

    kernel takes the power: "integral"; "middle", its value at 1/2; "undamped", the integral without the kernel's decay;
    "half", the integral, but half of it for power 2.
    """

    estimate: str
    variable: str
    rule: str = "integral"


EXACT = {
    "clean": Exact("clean", "log_ratio"),
    "midpoint": Exact("clean", "log_ratio", "middle"),
    "undamped": Exact("clean", "log_ratio", "undamped"),
    "published": Exact("clean", "log_ratio", "half"),
    "noise": Exact("noise", "ratio"),
    "noise_index": Exact("noise", "index"),
    "log_noise": Exact("noise", "log_ratio"),
    "noise_midpoint": Exact("noise", "log_ratio", "middle"),
    "noise_published": Exact("noise", "log_ratio", "half"),
    "flow": Exact("flow", "share"),
}


def check(table: Table, begin: tuple[float, float], end: tuple[float, float]) -> Table:
    """Runs the three checks and returns the table.

    Raises:
      UserError: naming the table, the row and what is wrong there.
    """
    check_levels(table, begin, end)
    check_constant(table)
    check_differences(table)
    return table


def check_levels(table: Table, begin: tuple[float, float], end: tuple[float, float]) -> None:
    """Check 1. Levels are finite, alpha >= 0, sigma > 0 (sigma = 0 only at the end)."""
    if not np.allclose(table.level[0], begin, rtol=0, atol=TOLERANCE):
        raise _wrong(table, 0, f"starts at the level {tuple(table.level[0])}, but the start is {tuple(begin)}")
    for r in range(table.rows):
        alpha, sigma = table.level[r]
        if not (np.isfinite([alpha, sigma, table.time[r]]).all() and alpha >= 0 and sigma > 0):
            raise _wrong(table, r, f"the level ({alpha:g}, {sigma:g}) or the time {table.time[r]:g} is out of range")
        wanted = table.level[r + 1] if r + 1 < table.rows else np.asarray(end)
        if not np.allclose(table.reach[r], wanted, rtol=0, atol=TOLERANCE):
            then = "the next row's level" if r + 1 < table.rows else "the end"
            raise _wrong(table, r, f"reaches {tuple(table.reach[r])}, but {then} is {tuple(wanted)}")
        if not np.isfinite(np.concatenate([table.u[r], table.p[r]])).all():
            raise _wrong(table, r, "a weight is not finite")


def check_constant(table: Table) -> None:
    """Check 2, by coefficients over (clean, the start's noise, z_0, z_1, ...)."""
    size = table.rows + 2
    clean = np.eye(1, size)[0]
    x = np.zeros(size)
    x[:2] = table.level[0]
    memory = [np.zeros(size)] * 3
    for r in range(table.rows):
        alpha, sigma = table.level[r]
        noise = (x - alpha * clean) / sigma
        own = table.u[r, 6] ** 2 - table.excess[r]
        if own < -TOLERANCE:
            raise _wrong(table, r, f"declares {table.excess[r]:g} of excess noise, more than it adds")
        z = np.eye(1, size, r + 2)[0]
        weights = [*table.u[r, :6], np.sqrt(max(own, 0.0))]
        following = sum(w * term for w, term in zip(weights, (x, clean, noise, *memory, z)))
        if table.keep[r]:
            memory = [sum(w * term for w, term in zip(table.p[r], (x, clean, noise, z))), *memory[:2]]
        x = following
        scale = np.hypot(*table.reach[r])
        for part, got, wanted in (("clean", x[0], table.reach[r, 0]), ("noise", np.linalg.norm(x[1:]), table.reach[r, 1])):
            if not abs(got - wanted) <= TOLERANCE * scale:
                raise _wrong(table, r, f"with a constant denoiser the {part} part becomes {got:.9g} where it must be {wanted:.9g}")


class _Way(NamedTuple):
    """From opened row `first` to the point that row `last` reaches, or to that point as the next row corrects it."""

    first: int
    last: int
    exact: str
    degree: int
    corrected: bool


def check_differences(table: Table) -> None:
    """Check 3, row by row: the way from the last opened row, and the step before with this row's correction."""
    if not table.opens[0]:
        raise _wrong(table, 0, "must open a step")
    variables, opened = {}, 0
    for r, (kind, degree) in enumerate(table.exact):
        before, opened = opened, r if table.opens[r] else opened
        for way in (_Way(opened, r, kind, degree, False), _Way(before, r - 1, *table.corrects[r], True)):
            for power in range(1, way.degree + 1):
                variable = EXACT[way.exact].variable
                if variable not in variables:
                    variables[variable] = _variable(table, variable)
                got, wanted, scale = _way_on_power(table, way, power, *variables[variable])
                if not abs(got - wanted) <= TOLERANCE * scale:
                    what = "corrected here, the step before" if way.corrected else "the step up to here"
                    raise _wrong(table, r, f"{what} is wrong on power {power} of its variable ({way.exact}): {got / scale:.9g}, "
                                 f"must be {wanted / scale:.9g}")


def _way_on_power(table: Table, way: _Way, power: int, at, reached) -> tuple[float, float, float]:
    """What the way's rows make of x = 0 if the estimate is tau^power, tau running 0 -> 1; the integral; its size.

    at, reached: the variable at each row's level and at the level it reaches.
    """
    first, last, exact = way.first, way.last, EXACT[way.exact]
    reach = (table.reach[last, 0], _carried(table, first, last))
    low, high = at[first], _of(reach, exact.variable) if table.split and exact.variable != "index" else reached[last]
    x, memory, size = 0.0, [0.0] * 3, 0.0
    values = lambda x, r: _estimates(x, *table.level[r], ((at[r] - low) / (high - low)) ** power, exact.estimate)  # noqa: E731
    for r in range(max(0, first - HISTORY), last + 1):
        if table.level[r, 0] == 0:  # infinitely far back: no difference may lean on it, and a weight that does meets the zeros
            continue
        u = table.u[r, :6]
        if r == first:
            x, u = 0.0, u - table.u[r, 0] * np.concatenate([[0.0], table.correction[r, :1], [0.0], table.correction[r, 1:]])
        clean, noise = values(x, r)
        terms = u * (x, clean, noise, *memory)
        size = float(np.abs(table.u[r, 1:6] * (clean, noise, *memory)).max())
        if table.keep[r]:
            memory = [float(np.dot(table.p[r, :3], (x, clean, noise))), *memory[:2]]
        x = float(terms.sum())
    if way.corrected:
        x += float(np.dot(table.correction[last + 1], (values(x, last + 1)[0], *memory)))
    wanted, scale = _integral(table.level[first], reach, exact, high - low, power)
    return x, wanted, max(scale, ROUNDING * size)


def _estimates(x: float, alpha: float, sigma: float, value: float, estimate: str) -> tuple[float, float]:
    """(D, E) at the point x if the estimate, of clean, noise or flow = E - D, is `value`."""
    if estimate == "clean":
        return value, (x - alpha * value) / sigma
    if estimate == "noise":
        return (x - sigma * value) / alpha, value
    return (x - sigma * value) / (alpha + sigma), (x + alpha * value) / (alpha + sigma)


def _carried(table: Table, first: int, last: int) -> float:
    """How much of row `first`'s noise is left in the point that row `last` reaches: its sigma, less where the step draws."""
    if not np.any(table.u[first:last + 1, 6]):
        return float(table.reach[last, 1])
    x, memory = float(table.level[first, 1]), [0.0] * 3
    for r in range(first, last + 1):
        noise = x / table.level[r, 1]
        following = float(np.dot(table.u[r, :6], (x, 0.0, noise, *memory)))
        if table.keep[r]:
            memory = [table.p[r, 0] * x + table.p[r, 2] * noise, *memory[:2]]
        x = following
    return x


@functools.cache
def _nodes() -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre on 0 .. 1."""
    nodes, weights = np.polynomial.legendre.leggauss(48)
    return (nodes + 1) / 2, weights / 2


def _integral(level, reach, exact: Exact, span: float, power: int) -> tuple[float, float]:
    """The exact step's integral over tau in 0 .. 1 on tau^power by the rule, and its size: the same for power 0.

    D: alpha' H e^(-H (1 - tau)), H = ln of the factor by which the step shrinks the noise that it found (h; more where it
    draws). E along ln(alpha/sigma): -sigma' h e^(h (1 - tau)); along sigma/alpha or an index: alpha' times the change of
    sigma/alpha. E - D: likewise in the straight-line coordinates, x / (alpha + sigma) and sigma / (alpha + sigma).
    """
    tau, weights = _nodes()
    values = 0.5**power if exact.rule == "middle" else tau**power
    if exact.estimate == "clean":
        rate = math.log(level[1] * reach[0] / (level[0] * reach[1]))
        scale = reach[0]
    elif exact.variable == "log_ratio":
        rate, scale = -span, reach[1]
    else:
        change = (_of(reach, "share") - _of(level, "share")) * sum(reach) if exact.estimate == "flow" else \
            (_of(reach, "ratio") - _of(level, "ratio")) * reach[0]
        return float(np.sum(change * values * weights)), abs(change)
    kernel = scale * rate * np.exp(-rate * (1 - tau) * (exact.rule != "undamped")) * weights
    half = 0.5 if exact.rule == "half" and power == 2 else 1.0
    return float(half * np.sum(kernel * values)), float(abs(np.sum(kernel)))


def _of(level, variable: str):
    """A variable of levels: [..., 2] or (alpha, sigma)."""
    alpha, sigma = (level[..., 0], level[..., 1]) if isinstance(level, np.ndarray) else level
    with np.errstate(divide="ignore"):
        if variable == "share":
            return sigma / (alpha + sigma)
        return sigma / alpha if variable == "ratio" else np.log(np.divide(alpha, sigma))


def _variable(table: Table, variable: str) -> tuple[np.ndarray, np.ndarray]:
    """Its values at every row's level and at the level that it reaches; the index counts the levels from the first."""
    if variable != "index":
        return _of(table.level, variable), _of(table.reach, variable)
    known, places = np.unique(np.concatenate([_of(table.level, "ratio"), _of(table.reach, "ratio")]), return_inverse=True)
    places = len(known) - 1.0 - places
    return places[:table.rows], places[table.rows:]


def _wrong(table: Table, row: int, what: str) -> UserError:
    return UserError(f"sampler table '{table.name}', row {row} of {table.rows}: {what}")
