"""Saved on 8 devices, restored on 1; two processes that save, agree on a step, and restore."""

import pathlib
import re
import socket

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.checkpoint.store import Store

EIGHT = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from ldm_jax.checkpoint.store import Store
mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "fsdp"))
put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))
tree = {"both": put(jnp.arange(128.0).reshape(16, 8), "data", "fsdp"), "one": put(jnp.arange(6, dtype=jnp.bfloat16), "fsdp"),
        "none": put(jnp.arange(3), None)}
with Store(sys.argv[1]) as store:
    store.save(1, {"params": tree}, {})
back = store.restore(1, "params", tree)
assert all(back[k].sharding == tree[k].sharding and (np.asarray(back[k]) == np.asarray(tree[k])).all() for k in tree)
print("devices", jax.device_count())
"""

TWO = """
import sys
import jax
jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[3]))
import jax.numpy as jnp, numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from ldm_jax.checkpoint.store import Store
from ldm_jax.core.errors import UserError
mesh = Mesh(np.array(jax.devices()), ("data",))
split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
def tree(step):
    rows = np.arange(8.0, dtype=np.float32).reshape(4, 2) + step
    return {"rows": jax.make_array_from_callback((4, 2), split, lambda i: rows[i]),
            "all": jax.make_array_from_callback((3,), whole, lambda i: np.full(3, step, np.float32)[i])}
store = Store(sys.argv[1], keep_last=2)
for step in (1, 2, 3):
    store.save(step, {"params": tree(step)}, {"data": {"next": step}})
store.wait()
assert store.last_saved == 3 and store.steps() == [2, 3], (store.last_saved, store.steps())
multihost_utils.sync_global_devices("saved")
if jax.process_index() == 0:
    (store.directory / "3" / "commit_success.txt").write_text("broken")
multihost_utils.sync_global_devices("broken")
step = Store(sys.argv[1]).newest_valid()
store = Store(sys.argv[1])
assert store.newest_valid() == step
back, wanted = store.restore(step, "params", tree(0)), tree(step)
for name in wanted:
    assert back[name].sharding == wanted[name].sharding
    for a, b in zip(back[name].addressable_shards, wanted[name].addressable_shards):
        assert a.index == b.index and (np.asarray(a.data) == np.asarray(b.data)).all()
assert store.record(step, "data") == {"next": step}
multihost_utils.sync_global_devices("restored")
if jax.process_index() == 0:
    (store.directory / str(step) / "commit_success.txt").write_text("broken")
multihost_utils.sync_global_devices("broken again")
try:
    Store(sys.argv[1]).newest_valid()
except UserError as error:
    print("REFUSED", error)
print("STEP", step, flush=True)
"""


def test_eight_devices_save_and_one_restores(tmp_path, child):
    """A step tied to the device count that wrote it (Orbax without a template says "Topology mismatch")."""
    out, err = child(EIGHT, tmp_path, devices=8).communicate(timeout=120)
    assert "devices 8" in out, out + err
    assert jax.device_count() == 1
    shape = jax.ShapeDtypeStruct
    wanted = {"both": shape((16, 8), jnp.float32), "one": shape((6,), jnp.bfloat16), "none": shape((3,), jnp.int32)}
    store = Store(tmp_path)
    assert store.newest_valid() == 1
    found = store.restore(1, "params", wanted)
    assert np.array_equal(found["both"], np.arange(128.0).reshape(16, 8)) and found["one"].dtype == jnp.bfloat16
    assert np.array_equal(found["one"].astype(np.float32), np.arange(6)) and np.array_equal(found["none"], np.arange(3))


def test_two_processes_agree_on_a_step_and_restore_it(tmp_path, child):
    """Each process deciding for itself: one restores the damaged newest step while the other falls back; or digests
    written by a process whose peer has not finished."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    both = [child(TWO, tmp_path, address, number) for number in range(2)]
    told = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert [re.search(r"STEP (\d+)", out).group(1) for out, _ in told] == ["2", "2"], told
    assert "commit_success.txt" in told[0][0] and "process 0 says why" in told[1][0]
    assert sum(err.count("CHECKPOINT: step 3") for _, err in told) == 1
    assert sorted(path.name for path in pathlib.Path(tmp_path).iterdir()) == ["2", "3.damaged"]
