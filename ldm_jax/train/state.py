"""The training state, born sharded, and what of it a checkpoint holds under which name."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ldm_jax.core.types import struct
from ldm_jax.train import sharding


@struct
class State:
    """Everything that a step changes.

    step: int32 [], the number of good steps done, hence the next batch's number. params: what inference needs. ema: their moving
    average, or None. optimizer: its state. extra: the stage's other variables (a discriminator with its optimizer and batch
    statistics, codebook use, the memory of the training times). bad: bool [], latched by the first step with a non-finite loss or
    gradient; later steps are no-ops.
    """

    step: jax.Array
    params: Any
    ema: Any
    optimizer: Any
    extra: Any
    bad: jax.Array


def new_state(params, optimizer, average, extra=None) -> State:
    """The state before step 0. Call under jit: the average then has buffers of its own."""
    return State(step=jnp.zeros((), jnp.int32), params=params, ema=average.start(params), optimizer=optimizer.init(params),
                 extra={} if extra is None else extra, bad=jnp.zeros((), bool))


def born_sharded(init, key: jax.Array, mesh: Mesh, layout: sharding.Layout) -> State:
    """init(key) -> State, compiled with its output shardings: the state never exists unsharded."""
    abstract = jax.eval_shape(init, key)
    return jax.jit(init, out_shardings=sharding.shardings(abstract, mesh, layout))(key)


def abstract_state(init, key: jax.Array, mesh: Mesh, layout: sharding.Layout) -> State:
    """The shapes, dtypes and shardings of init(key), without computing it."""
    abstract = jax.eval_shape(init, key)
    placed = sharding.shardings(abstract, mesh, layout)
    return jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), abstract, placed)


def to_items(state: State) -> dict[str, Any]:
    """The state as checkpoint items: "params", "ema" where there is one, and "train" (everything else)."""
    items = {"params": state.params, "train": {"step": state.step, "optimizer": state.optimizer, "extra": state.extra}}
    return items if state.ema is None else items | {"ema": state.ema}


def from_items(items: dict[str, Any]) -> State:
    """The inverse of `to_items`; only good states are ever saved, so the latch is open."""
    train = items["train"]
    return State(step=train["step"], params=items["params"], ema=items.get("ema"), optimizer=train["optimizer"], extra=train["extra"],
                 bad=jnp.zeros((), bool))
