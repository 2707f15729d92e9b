"""What a step holds: trees of arrays through Orbax, records as plain JSON files. Strict in both directions."""

import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ldm_jax.core import trees
from ldm_jax.core.errors import UserError

NOTE = "ldm_jax"
RECORD_FILE = "data.json"
SHOWN = 5


def short(error: BaseException) -> str:
    """An exception as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def save(folder, named: Mapping[str, Any], records: Mapping[str, Any]):
    """Starts saving a step with Orbax; returns its response once the arrays have been copied to the host.

    Args:
      named: item name -> pytree of jax arrays; records: record name -> what JSON can say exactly.

    Raises:
      UserError: a leaf or record that cannot be saved.
    """
    items, note = _checked(named, records)
    from orbax.checkpoint import v1 as ocp
    with _context(ocp, records):
        return ocp.save_checkpointables_async(folder, items, custom_metadata={NOTE: note})


def stored(folder, name: str, where: str) -> Any:
    """The shapes and dtypes of an item as saved: nested dicts (lists for tuples) of jax.ShapeDtypeStruct.

    Raises:
      UserError: no such item; `where` names the step.
    """
    from orbax.checkpoint import v1 as ocp
    with _context(ocp, ()):
        metadata = ocp.checkpointables_metadata(folder)
    note = (metadata.custom_metadata or {}).get(NOTE, {"empty": []})
    if name in note["empty"]:
        return {}
    if metadata.metadata.get(name) is None:
        known = sorted([k for k, v in metadata.metadata.items() if v is not None] + note["empty"])
        raise UserError(f"{where} has no item '{name}': it has {', '.join(known)}")
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), metadata.metadata[name])


def restore(folder, name: str, abstract: Any, where: str) -> Any:
    """An item as the tree `abstract`, of the same paths, shapes and dtypes, on the shardings of its leaves.

    Raises:
      UserError: a difference, or bytes that Orbax cannot read; `where` names the step.
    """
    where = f"{where}, item '{name}'"
    found = dict(trees.paths(stored(folder, name, where.rsplit(",", 1)[0])))
    wanted = dict(trees.paths(abstract))
    compare(found, wanted, where)
    if not wanted:
        return abstract
    from orbax.checkpoint import v1 as ocp
    template = jax.tree.map(_placed, abstract)
    try:
        with _context(ocp, ()):
            return ocp.load_checkpointables(folder, {name: template})[name]
    except Exception as error:
        raise UserError(f"{where} cannot be restored: {short(error)}") from error


def _checked(named: Mapping[str, Any], records: Mapping[str, Any]) -> tuple[dict[str, Any], dict]:
    """What Orbax is given, and a note beside it naming the trees without leaves (Orbax refuses to save those)."""
    items, empty = {}, []
    for name, tree in named.items():
        leaves = trees.paths(tree)
        for path, leaf in leaves:
            if not isinstance(leaf, jax.Array):
                raise UserError(f"{name}/{path}: expected a jax array, got {type(leaf).__name__}")
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                raise UserError(f"{name}/{path}: a typed key cannot be saved; save jax.random.key_data of it")
            if leaf.size == 0:
                raise UserError(f"{name}/{path}: an array without elements {list(leaf.shape)} cannot be saved")
        if leaves:
            items[name] = tree
        else:
            empty.append(name)
    for name, record in records.items():
        if name in named:
            raise UserError(f"'{name}' is both a tree and a record")
        try:
            items[name] = json.loads(json.dumps(record, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise UserError(f"record '{name}' is not JSON: {error}") from None
    return items, {"empty": empty}


def _context(ocp, records):
    """Orbax's options. The records are plain JSON files, which `record` reads without Orbax. The folders are made before
    `save` returns: made in the background, a failure (disk full, folder gone) leaves threads that keep the process from
    ending for 300 s (orbax 0.12.8)."""
    registry = ocp.handlers.local_registry()
    for name in records:
        registry.add(ocp.handlers.JsonHandler, checkpointable_name=name)
    context = ocp.Context()
    context.checkpointables.registry = registry
    context.async_options.create_directories_asynchronously = False
    return context


def compare(found: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    """Raises UserError unless both have the same paths, shapes and dtypes (Orbax casts another dtype silently)."""
    def said(leaf) -> str:
        return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"

    told = []
    for word, some in (("missing in the checkpoint", wanted.keys() - found.keys()), ("not wanted", found.keys() - wanted.keys())):
        if some:
            told.append(f"{len(some)} {word}: {', '.join(sorted(some)[:SHOWN])}")
    differ = [f"{path} is {said(found[path])}, wanted {said(wanted[path])}" for path in sorted(found.keys() & wanted.keys())
              if tuple(found[path].shape) != tuple(wanted[path].shape) or found[path].dtype != wanted[path].dtype]
    if differ:
        told.append(f"{len(differ)} differ: {'; '.join(differ[:SHOWN])}")
    if told:
        raise UserError(f"{where} does not fit this model: {'. '.join(told)}")


def _placed(leaf) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        if jax.process_count() > 1:
            raise UserError("on several processes every restored leaf needs a sharding")
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
