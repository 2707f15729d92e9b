"""The mesh, and one ordered list of rules from parameter paths to shardings."""

import dataclasses
import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ldm_jax.core.errors import UserError
from ldm_jax.core.trees import map_with_path, paths

AXES = ("data", "fsdp", "tensor")

# (pattern, spec): the first pattern found in a leaf's path wins. A spec names one mesh axis, or "", for each axis of the leaf, counted
# from the last. Query, key, value and feed-forward inputs are split over their outputs, the projections after them over their inputs.
RULES = (
    (r"(to_[qkv]|qkv|ff/proj)/kernel$", ("", "tensor")),
    (r"(to_out|attention_\d+/proj_out|ff/out)/kernel$", ("tensor", "")),
    (r".", ()),
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a run is spread over devices.

    data, fsdp, tensor: mesh sizes, -1 (at most once) takes what is left. Leaves of at least `fsdp_threshold` elements are also split
    over `fsdp`, along their largest free axis that divides. `rules` stand before RULES; one that matches nothing is an error.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    fsdp_threshold: int = 65_536
    rules: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def __post_init__(self):
        for pattern, spec in self.rules:
            unknown = [name for name in spec if name and name not in AXES]
            if unknown:
                raise UserError(f"rule {(pattern, spec)}: {unknown[0]!r} is no axis of the mesh: {', '.join(AXES)}, or '' for none")
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"rule {(pattern, spec)}: {pattern!r} is no regular expression: {error}") from None


def make_mesh(layout: Layout = Layout(), devices=None) -> Mesh:
    """The mesh ("data", "fsdp", "tensor") with Auto axes over all devices, in one place.

    Raises:
      UserError: sizes whose product is not the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [layout.data, layout.fsdp, layout.tensor]
    known = int(np.prod([s for s in sizes if s != -1]))
    told = f"mesh data={sizes[0]}, fsdp={sizes[1]}, tensor={sizes[2]} on {len(devices)} devices"
    if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
        raise UserError(f"{told}: sizes are positive, and at most one is -1 (what is left)")
    if -1 in sizes:
        sizes[sizes.index(-1)] = len(devices) // known
    if int(np.prod(sizes)) != len(devices):
        raise UserError(f"{told}: the product must be the number of devices")
    return Mesh(np.asarray(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * 3)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are split over (data, fsdp) along their first axis."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def check_batch(batch: int, mesh: Mesh, where: str = "config.data.batch") -> None:
    """Raises UserError, with the nearest sizes, if a global batch does not divide over (data, fsdp)."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch < 1 or batch % ways:
        below = max(ways, batch // ways * ways)
        raise UserError(f"{where}={batch}: not divisible by the {ways} ways that the mesh splits a batch; nearest: {below}, {below + ways}")


def local_rows(mesh: Mesh, batch: int) -> tuple[int, int]:
    """[low, high): this process's rows of a global batch.

    Raises:
      UserError: the mesh gives this process rows that are not contiguous.
    """
    spans = batch_sharding(mesh).addressable_devices_indices_map((batch,)).values()
    spans = sorted({(s[0].start or 0, batch if s[0].stop is None else s[0].stop) for s in spans})
    for (_, stop), (start, _) in zip(spans, spans[1:]):
        if stop != start:
            raise UserError(f"the mesh gives one process the rows {spans}: order its axes so that they are contiguous")
    return spans[0][0], spans[-1][1]


def place(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of each array of a batch, as global arrays split over (data, fsdp)."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}


def shardings(tree, mesh: Mesh, layout: Layout = Layout()):
    """A NamedSharding for each leaf of a tree of shapes.

    Raises:
      UserError: a rule of the layout that matches no leaf, or asks for a split that does not divide.
    """
    used = set()

    def one(path, leaf):
        for i, (pattern, spec) in enumerate(layout.rules + RULES):
            if re.search(pattern, path):
                used.add(i)
                return NamedSharding(mesh, _spec(path, leaf, spec, mesh, layout, explicit=i < len(layout.rules)))
        raise UserError(f"no sharding rule covers {path}")

    result = map_with_path(one, tree)
    unused = [layout.rules[i][0] for i in range(len(layout.rules)) if i not in used]
    if unused:
        some = ", ".join(path for path, _ in paths(tree)[:5])
        raise UserError(f"config.run.mesh.rules: {unused} match no parameter; paths look like {some}")
    return result


def _spec(path: str, leaf, spec: tuple, mesh: Mesh, layout: Layout, explicit: bool) -> P:
    if len(spec) > leaf.ndim and explicit:
        raise UserError(f"sharding rule {spec} for {path}: it has only {leaf.ndim} axes")
    names = [""] * (leaf.ndim - len(spec)) + list(spec[max(0, len(spec) - leaf.ndim):])
    for axis, name in enumerate(names):
        if name and mesh.shape[name] == 1:
            names[axis] = ""
        elif name and leaf.shape[axis] % mesh.shape[name]:
            if explicit:
                raise UserError(f"sharding rule {spec} for {path}: axis {axis} of {leaf.shape} is not divisible by {mesh.shape[name]}")
            names[axis] = ""
    ways = mesh.shape["fsdp"]
    if ways > 1 and "fsdp" not in names and int(np.prod(leaf.shape)) >= layout.fsdp_threshold:
        free = [axis for axis, name in enumerate(names) if not name and leaf.shape[axis] % ways == 0]
        if free:
            names[max(free, key=lambda axis: leaf.shape[axis])] = "fsdp"
    return P(*[name or None for name in names])
