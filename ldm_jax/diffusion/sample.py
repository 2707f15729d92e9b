"""The one sampling loop: runs any table, in one compiled program for all samplers, step counts, weights and seeds.

Image i depends on its own key and condition only: its start and the draw of each row come from keys[i] by name.
The state is float32. Parameters are arguments, never closed over.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import check_seed, key_for, normal_for
from ldm_jax.core.types import Level, static, struct
from ldm_jax.diffusion.guidance import OFF, check_terms
from ldm_jax.diffusion.table import CAPACITY, Packed, Table, pack


@struct
class Known:
    """A region that is not to be made: `clean` [B, ...], data in the model's units, where `keep` (alike, or one channel) is 1."""

    clean: jax.Array
    keep: jax.Array


@struct
class State:
    """Between two rows: the point x [B, ...], the memory (H1, H2, H3) alike, typed keys [B], what is known, the next row (a host

    number).
    """

    x: jax.Array
    memory: tuple[jax.Array, jax.Array, jax.Array]
    keys: jax.Array
    known: Known | None = None
    row: int = static(default=0)


def image_keys(seeds: Sequence[int]) -> jax.Array:
    """One typed threefry key per image [B]: image i's equals core's base_key(seeds[i]).

    Raises:
      UserError: a seed outside 0 .. 2^32 - 1.
    """
    for i, seed in enumerate(seeds):
        check_seed(seed, f"seeds[{i}]")
    return _keys(np.asarray(seeds, np.uint32))


@jax.jit
def _keys(seeds):
    return jax.vmap(lambda seed: jax.random.key(seed, impl="threefry2x32"))(seeds)


def start(table: Table, keys: jax.Array, shape: tuple[int, ...], clean: jax.Array | None = None,
          keep: jax.Array | None = None) -> State:
    """The state before row 0.

    Args:
      table: the sampler's; its first row's level is where the sample starts.
      keys: typed keys [B].
      shape: of one example, (h, w, c).
      clean: None to generate, x = gain * noise; or data [B, *shape] in the model's units for image-to-image,
        x = alpha * clean + sigma * noise at the first level.
      keep: [B, ...] that broadcasts to clean, in 0 .. 1: where it is 1, clean is known and stays (inpainting). After each row
        x = keep (alpha clean + sigma noise) + (1 - keep) x at the level reached, with the noise of the start: at a clean end
        the known region is clean exactly, and a sampler that draws nothing sees one noise throughout.

    Raises:
      UserError: keys that are not one axis of typed keys, clean or keep of another shape, keep without clean.
    """
    if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) or keys.ndim != 1:
        raise UserError(f"keys: expected one typed key per image [B] (see image_keys), got {keys.dtype} {list(keys.shape)}")
    if clean is not None and clean.shape != (len(keys), *shape):
        raise UserError(f"clean: expected {[len(keys), *shape]}, got {list(clean.shape)}")
    if keep is not None and (clean is None or keep.ndim != clean.ndim or any(k not in (1, n) for k, n in zip(keep.shape, clean.shape))):
        raise UserError(f"keep: expected a mask of clean's shape {'(none given)' if clean is None else list(clean.shape)}, or 1 where it "
                        f"repeats; got {list(keep.shape)}")
    alpha, sigma = table.level[0] if clean is not None else (0.0, table.gain)
    x = _noise_at_start(keys, tuple(shape), np.float32(sigma))
    if clean is None:
        return at(x, keys)
    clean = clean.astype(jnp.float32)
    known = None if keep is None else Known(clean, keep.astype(jnp.float32))
    return at(x + np.float32(alpha) * clean, keys, known)


def at(x: jax.Array, keys: jax.Array, known: Known | None = None) -> State:
    """The state before row 0 at a given point x [B, ...] float32 of the first level."""
    return State(x, (jnp.zeros_like(x), jnp.zeros_like(x), jnp.zeros_like(x)), keys, known)


@functools.partial(jax.jit, static_argnames="shape")
def _noise_at_start(keys, shape, scale):
    return scale * _start_noise(keys, shape)


def _start_noise(keys, shape):
    """One draw an image [B, *shape], the noise that its sample starts with."""
    return normal_for(jax.vmap(lambda key: key_for(key, "start"))(keys), shape)


def advance(denoise: Callable, params, table: Table, state: State, condition=None, guidance=OFF,
            until: int | None = None) -> State:
    """Runs the rows from state.row up to `until` (default: to the table's end).

    Any division into pieces runs the same program and the same rows.

    Args:
      denoise: denoise(params, noisy, level, time [B], condition) -> (clean, noise); hashable, see `Denoiser`.
      params: its parameters, traced.
      table: the sampler's, with one guidance column per term of `guidance`.
      condition: a pytree of [B, ...]; for ClassifierFree a `Guided`.
      guidance: an object of GUIDANCE.

    Raises:
      UserError: a table whose guidance columns are not those of `guidance`.
    """
    check_terms(guidance, table.guidance.shape[1])
    until = table.rows if until is None else min(until, table.rows)
    rows = Rows(pack(table), np.asarray([state.row, until], np.int32),
                None if state.known is None else np.pad(np.float32(table.reach), [(0, CAPACITY - table.rows), (0, 0)]))
    begun = dataclasses.replace(state, row=0)  # the row is in the bounds; here it would be part of the program
    x, memory = _run(denoise, guidance, params, rows, begun, condition)
    return dataclasses.replace(state, x=x, memory=memory, row=max(until, state.row))


@struct
class Rows:
    """Rows bounds[0] .. bounds[1] of a packed table; `reach` [CAPACITY, 2], the levels that they reach, where something is known."""

    table: Packed
    bounds: jax.Array
    reach: jax.Array | None


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(denoise: Callable, guidance, params, rows: Rows, state: State, condition: Any):
    guided, table, keys, known = guidance(denoise), rows.table, state.keys, state.known
    if known is not None:
        noise_of_known = _start_noise(keys, state.x.shape[1:])

    def run_row(r, carry):
        x, memory = carry
        level = Level(table.level[r, 0], table.level[r, 1])
        time = jnp.full((x.shape[0],), table.time[r])
        clean, noise = guided(params, x, level, time, condition, table.guidance[r])
        z = normal_for(jax.vmap(lambda key: key_for(key, "row", step=r))(keys), x.shape[1:])
        after = _weighted(table.u[r], (x, clean, noise, *memory, z))
        value = _weighted(table.p[r], (x, clean, noise, z))
        kept = table.keep[r] > 0
        shifted = zip((value, *memory[:2]), memory)
        if known is not None:
            there = rows.reach[r, 0] * known.clean + rows.reach[r, 1] * noise_of_known
            after = known.keep * there + (1 - known.keep) * after
        return after, tuple(jnp.where(kept, new, old) for new, old in shifted)

    return jax.lax.fori_loop(rows.bounds[0], rows.bounds[1], run_row, (state.x, state.memory))


def _weighted(weights, terms):
    """Sum of products, element by element: a matrix unit would round weights and points to about 3 digits."""
    return functools.reduce(jnp.add, [weights[k] * term for k, term in enumerate(terms)])


def trajectory(denoise: Callable, params, table: Table, state: State, condition=None, guidance=OFF,
               every: int = 1) -> Iterator[State]:
    """`advance` in pieces of `every` rows: the state after each, the last one at the table's end. For progress and pictures."""
    if every < 1:
        raise UserError(f"every={every}: expected at least 1 row between two reports")
    for until in [*range(every, table.rows, every), table.rows]:
        state = advance(denoise, params, table, state, condition, guidance, until)
        yield state


def sample(denoise: Callable, params, table: Table, shape: tuple[int, ...], keys: jax.Array, condition=None,
           guidance=OFF) -> jax.Array:
    """Generates x [B, *shape] float32 at the table's end, in the model's units, not clamped.

    Args: as in `start` and `advance`, which are its two lines; use them for image-to-image and for progress.
    """
    return advance(denoise, params, table, start(table, keys, shape), condition, guidance).x
