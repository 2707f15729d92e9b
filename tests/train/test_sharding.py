"""Rules from parameter paths to shardings, on meshes of the one device that a test process has, and by shape on larger ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from ldm_jax.core.errors import UserError
from ldm_jax.train.sharding import Layout, check_batch, local_rows, make_mesh, place, shardings


def mesh_of(data=1, fsdp=1, tensor=1):
    return AbstractMesh((data, fsdp, tensor), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def spec(path, shape, mesh, layout=Layout(fsdp_threshold=1)):  # noqa: B008 (frozen)
    tree = {}
    place = tree
    *parents, last = path.split("/")
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.tree.leaves(shardings(tree, mesh, layout))[0].spec


@pytest.mark.parametrize("path, shape, mesh, expected", [
    ("a/conv1/kernel", (3, 3, 8, 16), mesh_of(fsdp=4), (None, None, None, "fsdp")),  # the largest axis that divides
    ("a/conv1/kernel", (3, 3, 16, 8), mesh_of(fsdp=4), (None, None, "fsdp", None)),
    ("a/conv1/kernel", (3, 3, 16, 9), mesh_of(fsdp=4), (None, None, "fsdp", None)),
    ("a/bias", (7,), mesh_of(fsdp=4), (None,)),  # nothing divides: whole everywhere
    ("a/attn1/to_q/kernel", (8, 16), mesh_of(tensor=2), (None, "tensor")),
    ("a/attn1/to_out/kernel", (16, 8), mesh_of(tensor=2), ("tensor", None)),
    ("a/attn1/to_q/kernel", (8, 16), mesh_of(fsdp=2, tensor=2), ("fsdp", "tensor")),
    ("a/attn1/to_q/kernel", (8, 15), mesh_of(tensor=2), (None, None)),  # a built-in rule gives way
    ("0/mu/network/block_0/ff/proj/kernel", (8, 16), mesh_of(tensor=2), (None, "tensor")),  # Adam's moments as their parameters
])
def test_a_path_and_a_shape_give_a_split(path, shape, mesh, expected):
    """Mistake: an axis that does not divide, the wrong axis, or optimizer states that are left whole."""
    assert tuple(spec(path, shape, mesh)) == expected


def test_small_leaves_stay_whole():
    """Mistake: a threshold that is not read; splitting a bias costs more than it saves."""
    assert tuple(spec("a/kernel", (8, 8), mesh_of(fsdp=4), Layout(fsdp_threshold=65))) == (None, None)
    assert "fsdp" in tuple(spec("a/kernel", (8, 8), mesh_of(fsdp=4), Layout(fsdp_threshold=64)))


def test_the_first_rule_that_matches_wins():
    """Mistake: rules of the config after the built-in ones, or the last match instead of the first."""
    rules = ((r"to_q/kernel", ("tensor", "")), (r"kernel", ("", "")))
    tree = {name: {"kernel": jax.ShapeDtypeStruct((8, 16), jnp.float32)} for name in ("to_q", "to_k")}
    found = shardings(tree, mesh_of(tensor=2), Layout(rules=rules))
    assert tuple(found["to_q"]["kernel"].spec) == ("tensor", None) and tuple(found["to_k"]["kernel"].spec) == (None, None)


@pytest.mark.parametrize("rules, words", [
    (((r"to_qq/kernel", ("", "tensor")),), "match no parameter"),
    (((r"to_q/kernel", ("", "", "tensor")),), "only 2 axes"),
    (((r"to_q/kernel", ("tensor", "")),), "not divisible by 3"),
])
def test_a_rule_of_the_config_that_cannot_hold_raises(rules, words):
    """Mistake: a rule with a slip in it that is passed over in silence."""
    with pytest.raises(UserError, match=words):
        spec("a/to_q/kernel", (8, 16), mesh_of(tensor=3), Layout(rules=rules))


@pytest.mark.parametrize("layout, words", [
    (Layout(data=2), "product"), (Layout(data=-1, fsdp=-1), "at most one"), (Layout(data=0), "positive"), (Layout(fsdp=2), "product"),
])
def test_a_mesh_that_does_not_fit_the_devices_raises(layout, words):
    """Mistake: devices that are left idle without a word."""
    with pytest.raises(UserError, match=words):
        make_mesh(layout, jax.devices()[:1])


def test_a_batch_that_does_not_divide_names_the_nearest():
    with pytest.raises(UserError, match="nearest: 8, 16"):
        check_batch(12, mesh_of(data=4, fsdp=2))
    check_batch(16, mesh_of(data=4, fsdp=2))


def test_one_process_has_all_rows_in_order():
    """Mistake: rows lost or permuted between the reader and the device."""
    mesh = make_mesh()
    assert local_rows(mesh, 6) == (0, 6)
    rows = np.arange(12.0).reshape(6, 2)
    placed = place({"image": rows}, mesh)["image"]
    np.testing.assert_array_equal(placed, rows)
    assert placed.sharding.spec == P(("data", "fsdp"))
