"""Trees of arrays: paths, norms, counts, digests."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def path_of(path) -> str:
    """A jax key path as "unet/level_0/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def paths(tree) -> list[tuple[str, object]]:
    """[(path, leaf)] in the tree's order."""
    return [(path_of(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]


def nested(leaves: Mapping[str, Any]) -> dict:
    """{"a/b": leaf} -> {"a": {"b": leaf}}: the inverse of `paths` for dicts."""
    tree: dict = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = leaf
    return tree


def map_with_path(function, tree):
    """Maps function(path, leaf) over a tree, paths as strings."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(path_of(path), leaf), tree)


def norm(tree) -> jax.Array:
    """Euclidean norm over all elements of a tree [], in float32."""
    squares = [jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, jnp.zeros((), jnp.float32)))


def count(tree) -> int:
    """Number of elements of a tree of arrays or shapes."""
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


def select(condition: jax.Array, then, otherwise):
    """Two trees of one structure, chosen leaf by leaf by one bool []."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), then, otherwise)


def content_digest(tree) -> str:
    """sha256 over sorted (path, dtype, shape, bytes) of a tree of host arrays: the same for every sharding."""
    total = hashlib.sha256()
    for path, leaf in sorted(paths(tree), key=lambda item: item[0]):
        array = np.ascontiguousarray(np.asarray(leaf))
        total.update(f"{path}\0{array.dtype.name}\0{array.shape}\0".encode())
        total.update(array.reshape(-1).view(np.uint8))
    return total.hexdigest()
