"""Ancestral sampling whose variance the network predicts, element by element: what a table's row cannot say.

For networks of published form with twice the channels; no stage here trains one, so no config or flag names it.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import key_for, normal_for
from ldm_jax.core.types import Level
from ldm_jax.diffusion.guidance import OFF, ClassifierFree, Limited, Off, check_terms
from ldm_jax.diffusion.prediction import INDEX
from ldm_jax.diffusion.sample import start
from ldm_jax.diffusion.samplers import table_for
from ldm_jax.diffusion.table import CAPACITY, Table, pack, with_guidance


@dataclasses.dataclass(frozen=True)
class RangeDenoiser:
    """A network with twice the channels as denoise(...) -> (clean, noise, fraction): the first half is the prediction, the

    second f in [-1, 1], where between the two variances the step's is (arXiv 2102.09672, section 3.1). Hashable if the network is.
    """

    network: Any
    prediction: Any

    def __call__(self, params, noisy, level: Level, time, condition):
        """Estimates of clean and noise, and f, each like noisy [B, ..., c].

        Raises:
          UserError: a network whose output does not have 2 c channels.
        """
        output = self.network(params, self.prediction.inputs(noisy, level), time, condition)
        if output.shape != (*noisy.shape[:-1], 2 * noisy.shape[-1]):
            raise UserError(f"learned variance: the network gives {list(output.shape)} for an input {list(noisy.shape)}; expected "
                            "twice the channels: the prediction, then the fraction")
        predicted, fraction = jnp.split(output.astype(noisy.dtype), 2, axis=-1)
        return *self.prediction.to_hub(predicted, noisy, level), fraction


@dataclasses.dataclass(frozen=True)
class LearnedVariance:
    """DDPM with the variance exp(f' ln v + (1 - f') ln(v t^2/s^2)), f' = (f + 1) / 2, between its "large" and its "small" one
    (arXiv 2102.09672, equation 15); none in the step to clean data.

    schedule, steps, grid, time_input: as in `table_for`. The denoiser gives a third output, f.
    """

    schedule: Any
    steps: int
    grid: Any = "trailing"
    time_input: Any = INDEX

    def __post_init__(self):
        self._table()  # refuses what cannot be sampled before any network exists

    def _table(self) -> Table:
        return table_for(self.schedule, self.steps, "ddpm", self.grid, time_input=self.time_input)

    @property
    def evaluations(self) -> int:
        """Network evaluations of a sample; with guidance one more a row, whose f is that of the given condition."""
        return self._table().rows

    def sample(self, denoise, params, shape: tuple[int, ...], keys: jax.Array, condition=None, guidance=OFF, weights=()) -> jax.Array:
        """x [B, *shape] float32 at the table's end. Arguments as in `sample.sample`; weights: one per guidance term.

        Raises:
          UserError: other weights than the guidance reads, a guidance other than classifier-free, a denoiser without a third output.
        """
        table = with_guidance(self._table(), *weights)
        check_terms(guidance, table.guidance.shape[1])
        x = start(table, keys, shape).x
        logs = np.zeros((CAPACITY, 2), np.float32)
        logs[:table.rows] = log_variances(table)
        return _run(denoise, guidance, params, pack(table), logs, np.int32(table.rows), x, keys, condition)


def log_variances(table: Table) -> np.ndarray:
    """(ln small, ln large) of each row [n, 2], float64; -inf in both where the row reaches clean data and adds no noise."""
    (alpha, sigma), (beta, tau) = table.level.T, table.reach.T
    q = alpha * tau / (beta * sigma)
    large = sigma**2 * (1 - q) * (1 + q)
    with np.errstate(divide="ignore"):
        return np.where((tau > 0)[:, None], np.log(np.stack([large * (tau / sigma) ** 2, large], 1)), -np.inf)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(denoise, guidance, params, table, logs, rows, x, keys, condition):
    def run_row(r, x):
        level, time = Level(table.level[r, 0], table.level[r, 1]), jnp.full((x.shape[0],), table.time[r])
        clean, fraction = _clean_and_fraction(denoise, guidance, params, x, level, time, condition, table.guidance[r])
        share = (fraction + 1) / 2
        small, large = logs[r, 0], logs[r, 1]
        gain = jnp.where(jnp.isinf(small), 0.0, jnp.exp((share * large + (1 - share) * small) / 2))
        z = normal_for(jax.vmap(lambda key: key_for(key, "row", step=r))(keys), x.shape[1:])
        return table.u[r, 0] * x + table.u[r, 1] * clean + gain * z

    return jax.lax.fori_loop(0, rows, run_row, x)


def _clean_and_fraction(denoise, guidance, params, x, level, time, condition, weights):
    """Guided and limited clean, and the fraction that the model itself gives for the condition."""
    inner = guidance.guidance if isinstance(guidance, Limited) else guidance
    if not isinstance(inner, Off | ClassifierFree):
        raise UserError(f"learned variance: guidance '{type(inner).__name__}' has no fraction of its own; it goes with classifier-free "
                        "guidance, or none")
    plain = isinstance(inner, Off)
    found = denoise(params, x, level, time, condition if plain else condition.given)
    if len(found) != 3:
        raise UserError("learned variance: the denoiser gives no fraction; build it with RangeDenoiser, of a network trained with it")
    pair = (lambda *_: found[:2]) if plain else _Pair(denoise)
    return guidance(pair)(params, x, level, time, condition, weights)[0], found[2]


@dataclasses.dataclass(frozen=True)
class _Pair:
    """A denoiser of three outputs without the third."""

    denoise: Any

    def __call__(self, *args):
        return self.denoise(*args)[:2]
