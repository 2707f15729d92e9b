"""A model in another precision: what it computes in, and what its parameters are kept in.

bfloat16 keeps kernels in half the memory, and gives what float32 kernels give to networks that compute in bfloat16, bit for
bit: those round them at each use. All else stays float32: offsets, scales, tables, and the layers of the time embedding, which
computes in float32.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax

from ldm_jax.core.errors import UserError
from ldm_jax.core.trees import map_with_path
from ldm_jax.nn.layers import DTYPES

KEPT = {"time", "time_0", "time_2", "vector_0", "vector_2"}
"""Layers that compute in float32 whatever their network's dtype: their kernels stay."""


def check_dtype(dtype: str | None) -> None:
    """Raises UserError for a name that is none of DTYPES; None is a model's own."""
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}")


def computing_in(module: Any, dtype: str) -> Any:
    """A linen module, with those in its fields, that computes in `dtype` where it has such a field."""
    if isinstance(module, tuple):
        return tuple(computing_in(one, dtype) for one in module)
    if not isinstance(module, nn.Module):
        return module
    inner = {field.name: getattr(module, field.name) for field in dataclasses.fields(module) if field.name not in ("parent", "name")}
    changed = {name: computing_in(value, dtype) for name, value in inner.items() if isinstance(value, nn.Module | tuple)}
    return module.clone(**changed | ({"dtype": dtype} if "dtype" in inner else {}))


def narrowed(path: str, leaf, dtype: str):
    """One array, on the host or a device, as a model in `dtype` keeps it."""
    *layers, name = path.split("/")
    return leaf if name != "kernel" or KEPT & set(layers) or leaf.dtype == DTYPES[dtype] else leaf.astype(DTYPES[dtype])


def stored_in(params, dtype: str):
    """A tree of host or device arrays with its kernels in `dtype`, leaf by leaf; on a device the wider one is deleted at once."""
    def one(path: str, leaf):
        narrow = narrowed(path, leaf, dtype)
        if narrow is leaf:
            return leaf
        if isinstance(leaf, jax.Array):
            narrow.block_until_ready()
            leaf.delete()
        return narrow

    return map_with_path(one, params)


def in_dtype(model, dtype: str | None):
    """A pipeline.Model that computes in `dtype`, in the place of the one given: for bfloat16 its kernels are rounded, the wider deleted.

    The digest stays that of the parameters as they were stored. None changes nothing.
    """
    if dtype is None:
        return model
    before, module = model.experiment, computing_in(model.first_stage.module, dtype)
    stage = dataclasses.replace(model.first_stage, module=module)
    experiment = dataclasses.replace(before, network=computing_in(before.network, dtype), autoencoder=module,
                                     conditioner=computing_in(before.conditioner, dtype), first_stage=before.first_stage and stage)
    changed = dataclasses.replace(model, experiment=experiment, first_stage=stage)
    if dtype == "float32":
        return changed
    params = stored_in(model.params, dtype)
    first = params if model.first_params is model.params else stored_in(model.first_params, dtype)
    return dataclasses.replace(changed, params=params, first_params=first)
