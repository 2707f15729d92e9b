"""What a frozen text encoder says of a text, kept: it stands in a batch in the place of the ids.

For the ids in the field "tokens": "token_states" [B, n L, D] and "pooled" [B, P]; for "tokens_2", "token_states_2" and "pooled_2".
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ldm_jax.core.errors import UserError

STATES, POOLED = "token_states", "pooled"


def states_of(name: str) -> tuple[str, str]:
    """The fields of the states and of the pooled vector of the ids that stand in the field `name`."""
    end = name.removeprefix("tokens") if name.startswith("tokens") else f"_{name}"
    return f"{STATES}{end}", f"{POOLED}{end}"


def windows(ids) -> jax.Array:
    """Ids [B, L] or [B, n, L] -> [B, n, L]."""
    ids = jnp.asarray(ids)
    return ids[:, None] if ids.ndim == 2 else ids


def number_of_windows(fields: Mapping | None, name: str, length: int) -> int:
    """n, of the ids in the field `name` or of their states; 1 where the fields have neither."""
    if fields and name in fields:
        return windows(fields[name]).shape[1]
    return fields[states_of(name)[0]].shape[1] // length if fields and states_of(name)[0] in fields else 1


def kept_states(fields: Mapping, name: str, trained: bool) -> tuple[jax.Array, jax.Array] | None:
    """(states, pooled) that the fields hold for the ids `name`; None where they hold none.

    Raises:
      UserError: states of an encoder that is trained, and so does not say them any more.
    """
    states, pooled = states_of(name)
    if states not in fields:
        return None
    if trained:
        raise UserError(f"{states}: kept states are of a frozen encoder, and this one is trained; set trained=False, or give token ids")
    return fields[states], fields[pooled]


def silenced(told: tuple[jax.Array, ...], nothing: tuple[jax.Array, ...], drop: jax.Array) -> tuple[jax.Array, ...]:
    """Arrays [B, ...], with those of `nothing` [1, ...] for the examples where drop [B] is True."""
    return tuple(jnp.where(drop.reshape(-1, *[1] * (x.ndim - 1)), none, x) for x, none in zip(told, nothing))


def all_states(conditioner, fields: Mapping) -> dict[str, jax.Array]:
    """What may be kept of the ids in the fields, float32; a method for conditioners of text: apply(..., method=all_states)."""
    return {field: value.astype(jnp.float32) for name in conditioner.specs if name in fields
            for field, value in zip(states_of(name), conditioner.encoded(name, windows(fields[name])))}
