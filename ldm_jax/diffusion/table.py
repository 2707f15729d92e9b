"""A sampler as a table of rows; a row is one network evaluation.

The loop that runs a table carries the point x and three remembered tensors H1, H2, H3, newest first. A row says:
  level: (alpha, sigma) of x;  time: the number the network is fed for it;
  u: x+ = u1 x + u2 D + u3 E + u4 H1 + u5 H2 + u6 H3 + u7 z;
  p: the value to remember, p1 x + p2 D + p3 E + p4 z, and keep: 1 shifts it into the history, 0 leaves that as it is;
  guidance: one weight per guidance term;  reach: the level of x+, which is the next row's level.
D and E are the estimates of clean and noise at x, z one fresh standard normal draw. Made in float64 and checked on the
host (checks.py), run in float32 (sample.py).
"""

import dataclasses

import jax
import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.core.types import struct

CAPACITY = 1024
"""Rows of every compiled loop: holds DDPM's 1000 steps; 72 kB."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One row as a sampler writes it; absent weights are 0.

    Beside the weights it declares, for the checks: `opens`, whether x is a point of the solution here (False in the
    second evaluation of a two-evaluation step); `exact` and `degree`, on which of checks.EXACT and up to which power
    the way from the last opened row to the point reached here is exact; `correction`, the weights of (D, H1, H2, H3)
    that correct x before the step (UniPC), with `corrects` (exact, degree) of the step before once corrected;
    `excess`, the variance of noise added on purpose beyond what the level asks for.
    """

    level: tuple[float, float]
    time: float
    reach: tuple[float, float]
    x: float = 0.0
    clean: float = 0.0
    noise: float = 0.0
    memory: tuple[float, float, float] = (0.0, 0.0, 0.0)
    draw: float = 0.0
    remember: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    keep: bool = True
    opens: bool = True
    exact: str = "clean"
    degree: int = 0
    correction: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    corrects: tuple[str, int] = ("clean", 0)
    excess: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """n rows in float64 on the host.

    level, reach [n, 2]; time, keep, excess [n]; u [n, 7]; p [n, 4]; guidance [n, G] (G terms, 0 without guidance);
    opens bool [n]; correction [n, 4]. `gain`: generation starts from gain * noise. `exact`, `corrects`: one (kind,
    degree) per row, as in Row. `split`: each step first goes, exactly as declared, to a level below the one it reaches
    and then adds noise; otherwise its noise belongs to the equation that it solves.
    """

    name: str
    level: np.ndarray
    time: np.ndarray
    u: np.ndarray
    p: np.ndarray
    keep: np.ndarray
    guidance: np.ndarray
    reach: np.ndarray
    gain: float
    opens: np.ndarray
    exact: tuple[tuple[str, int], ...]
    correction: np.ndarray
    corrects: tuple[tuple[str, int], ...]
    excess: np.ndarray
    split: bool

    @property
    def rows(self) -> int:
        """Network evaluations."""
        return len(self.time)


def make(name: str, rows: list[Row], split: bool = False) -> Table:
    """A Table of rows, unchecked.

    The start's gain is hypot(alpha, sigma) of the first level: the deviation of noisy data of unit variance there,
    which is 1 for every schedule with alpha^2 + sigma^2 = 1 (arXiv 2006.11239, p(x_T) = N(0, I)).

    Raises:
      UserError: no rows, or more than CAPACITY.
    """
    if not 1 <= len(rows) <= CAPACITY:
        raise UserError(f"sampler '{name}': {len(rows)} network evaluations; the loop holds 1 to {CAPACITY}: take fewer steps")

    def column(get, dtype=np.float64):
        return np.asarray([get(row) for row in rows], dtype)

    return Table(
        name=name, level=column(lambda r: r.level), time=column(lambda r: r.time),
        u=column(lambda r: (r.x, r.clean, r.noise, *r.memory, r.draw)), p=column(lambda r: r.remember),
        keep=column(lambda r: r.keep), guidance=np.zeros((len(rows), 0)), reach=column(lambda r: r.reach),
        gain=float(np.hypot(*rows[0].level)), opens=column(lambda r: r.opens, bool), correction=column(lambda r: r.correction),
        exact=tuple((r.exact, r.degree) for r in rows), corrects=tuple(r.corrects for r in rows),
        excess=column(lambda r: r.excess), split=split)


def with_guidance(table: Table, *weights) -> Table:
    """The table with one guidance column per argument, each a number or a number per row [n].

    Raises:
      UserError: a weight that is not finite, or a column of another length than the table.
    """
    columns = []
    for weight in weights:
        column = np.asarray(weight, np.float64)
        if column.ndim > 1 or (column.ndim == 1 and len(column) != table.rows):
            raise UserError(f"guidance: expected a number or {table.rows} numbers, one per row, got shape {list(column.shape)}")
        if not np.all(np.isfinite(column)):
            raise UserError(f"guidance: weight {weight} is not finite; 1 is off, above 1 strengthens the condition")
        columns.append(np.broadcast_to(column, (table.rows,)))
    return dataclasses.replace(table, guidance=np.stack(columns, 1) if columns else np.zeros((table.rows, 0)))


@struct
class Packed:
    """A table for the device: float32, padded to CAPACITY rows. One shape for all samplers."""

    level: jax.Array
    time: jax.Array
    u: jax.Array
    p: jax.Array
    keep: jax.Array
    guidance: jax.Array


def pack(table: Table) -> Packed:
    """Casts to float32 and pads with zeros (padding is never run)."""
    def padded(x):
        return np.pad(np.asarray(x, np.float32), [(0, CAPACITY - table.rows)] + [(0, 0)] * (x.ndim - 1))

    return Packed(padded(table.level), padded(table.time), padded(table.u), padded(table.p), padded(table.keep),
                  padded(table.guidance))


def run_on_host(table: Table, denoise, x: np.ndarray, draws=None, first: int = 0, memory=()) -> np.ndarray:
    """The loop in numpy float64: the definition that the compiled loop and the solvers' orders are measured against.

    Args:
      denoise: denoise(x, alpha, sigma, time) -> (clean, noise), arrays like x.
      x: the point at row 0's level, any shape.
      draws: array [n, *x.shape] of normal draws, or None where no row uses them.
      first, memory: to begin in the middle: the row, and what the rows before it have remembered, newest first.
    """
    memory = [*memory, *[np.zeros_like(x)] * 3][:3]
    for r in range(first, table.rows):
        clean, noise = denoise(x, *table.level[r], table.time[r])
        z = np.zeros_like(x) if draws is None else draws[r]
        after = sum(w * term for w, term in zip(table.u[r], (x, clean, noise, *memory, z)))
        if table.keep[r]:
            memory = [sum(w * term for w, term in zip(table.p[r], (x, clean, noise, z))), *memory[:2]]
        x = after
    return x
