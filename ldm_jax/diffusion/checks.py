"""Checks of a sampler's table when it is built, before any network exists (reference/sampler_tables.md, section 7).

1. The rows follow one another: the first level is the stated start, each reach is the next level, the last the stated end.
2. A constant denoiser: the point stays alpha * clean + sigma * noise, fresh draws included, at every row. Noise that a
   row adds on purpose (`excess`) is taken out of its draw first, so such a table is checked as declared.
3. Differences: the first two cannot see a wrong weight of a difference, which vanishes on constants. Each step is run
   on powers 1 .. degree of its variable and compared with the integral, by quadrature.
"""

import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.diffusion.table import Table

TOLERANCE = 1e-9
"""Float64 rounding reaches 3e-12 in 1000 rows; an error of 0.1 % in one weight shows from 1e-7 up."""

HISTORY = 3


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


def check_differences(table: Table) -> None:
    """Check 3, step by step; a step opens at a row with `opens` and ends where the next opens."""
    opening = [*np.flatnonzero(table.opens), table.rows]
    if opening[0] != 0:
        raise _wrong(table, 0, "must open a step")
    for start, stop in zip(opening[:-1], opening[1:]):
        for power in range(1, table.degree[start] + 1):
            got, wanted, scale = _step_on_power(table, start, stop, power)
            if not abs(got - wanted) <= TOLERANCE * scale:
                raise _wrong(table, start, f"the step from here is wrong on power {power} of its variable ({table.exact}): "
                             f"{got / scale:.9g}, must be {wanted / scale:.9g}")


def _step_on_power(table: Table, start: int, stop: int, power: int) -> tuple[float, float, float]:
    """What rows start .. stop-1 make of x = 0 if D (or E) is tau^power, tau running 0 -> 1; the integral; its size."""
    on_noise = table.exact in ("noise", "log_noise")
    ends = np.stack([table.level[start], table.reach[stop - 1]])
    low, high = _variable(ends, table.exact)
    x, memory = 0.0, [0.0] * 3
    for r in range(max(0, start - HISTORY), stop):
        if r == start:
            x = 0.0
        alpha, sigma = table.level[r]
        if alpha == 0:  # infinitely far back: no difference may lean on it, and a weight that does meets the zeros
            continue
        value = ((_variable(table.level[r], table.exact) - low) / (high - low)) ** power
        clean, noise = ((x - sigma * value) / alpha, value) if on_noise else (value, (x - alpha * value) / sigma)
        following = np.dot(table.u[r, :6], (x, clean, noise, *memory))
        if table.keep[r]:
            memory = [np.dot(table.p[r, :3], (x, clean, noise)), *memory[:2]]
        x = following
    if table.exact == "noise":
        scale = ends[1, 0] * (low - high)
        return x, -scale / (power + 1), scale
    return x, *_integral(table, ends[1], high - low, power)


def _integral(table: Table, reach: np.ndarray, h: float, power: int) -> tuple[float, float]:
    """The exact step's integral over tau in 0 .. 1 on tau^power, and its size: the same for power 0.

    D: alpha H e^(-H (1 - tau)), H = (1 + eta) h. E: -sigma h e^(h (1 - tau)). "midpoint": tau^power is replaced by its
    value at tau = 1/2, as the midpoint form of DPM-Solver++ does.
    """
    nodes, weights = np.polynomial.legendre.leggauss(48)
    tau = (nodes + 1) / 2
    rate, scale = (-h, -reach[1]) if table.exact == "log_noise" else ((1 + table.eta) * h, reach[0])
    kernel = scale * abs(rate) * np.exp(-rate * (1 - tau)) * weights / 2
    return float(np.sum(kernel * (0.5**power if table.exact == "midpoint" else tau**power))), float(abs(np.sum(kernel)))


def _variable(level: np.ndarray, exact: str):
    alpha, sigma = level[..., 0], level[..., 1]
    return sigma / alpha if exact == "noise" else np.log(alpha / sigma)


def _wrong(table: Table, row: int, what: str) -> UserError:
    return UserError(f"sampler table '{table.name}', row {row} of {table.rows}: {what}")
