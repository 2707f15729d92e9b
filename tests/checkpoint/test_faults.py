"""Faults: every file of a step damaged in turn, and processes killed at any instant. Nothing wrong is ever restored."""

import random
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.checkpoint import digests
from ldm_jax.checkpoint.store import Store
from ldm_jax.core.errors import UserError


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with steps 1 and 2 of a small state; tests copy it or put back what they break."""
    place = tmp_path_factory.mktemp("faults") / "checkpoints"
    with Store(place) as store:
        for step in (1, 2):
            params = {"a": {"kernel": jnp.full((4, 3), step), "bias": jnp.full((3,), step, jnp.bfloat16)}}
            store.save(step, {"params": params, "train": {"n": jnp.int32(step)}}, {"data": {"next": step}, "manifest": {"step": step}})
    return place


def files_of(step):
    return sorted(path for path in step.rglob("*") if path.is_file())


def test_one_flipped_bit_in_any_file_is_found(saved):
    """A file left out of the digests: Orbax restores a flipped bit in its data, or in commit_success.txt, silently."""
    dice = random.Random(0)
    paths = files_of(saved / "2")
    kinds = {path.name for path in paths}
    assert {"digests.json", "_CHECKPOINT_METADATA", "commit_success.txt", "manifest.ocdbt", "_METADATA", "_sharding", "data.json"} <= kinds
    flipped = 0
    for path in paths:
        whole = path.read_bytes()
        for place in dice.sample(range(len(whole)), min(len(whole), 40 if path.name == "digests.json" else 2)):
            changed = bytearray(whole)
            changed[place] ^= 1 << dice.randrange(8)
            path.write_bytes(changed)
            with pytest.raises(UserError, match="step 2 .* is damaged") as told:
                Store(saved, read_only=True).restore(2, "params", {})
            assert path.name in str(told.value)
            flipped += 1
        path.write_bytes(whole)
    assert flipped > 50
    Store(saved, read_only=True).check(2)


@pytest.mark.parametrize("damage", ["delete", "empty", "half", "longer"])
def test_a_file_that_is_missing_or_of_another_size_is_found(saved, damage):
    """A check of the hashes of whatever files are present."""
    for path in files_of(saved / "2"):
        whole = path.read_bytes()
        if damage == "delete":
            path.unlink()
        else:
            path.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "longer": whole + b"\0"}[damage])
        if damage in ("delete", "longer") or whole:
            with pytest.raises((digests.Damaged, UserError)):
                digests.check(saved / "2", 2)
        path.write_bytes(whole)
    Store(saved, read_only=True).check(2)


def test_a_file_too_many_and_a_folder_of_another_step_are_found(saved, tmp_path):
    """A stale mix of two steps: a file copied in from another one, or one step's folder under another's number."""
    place = tmp_path / "c"
    shutil.copytree(saved, place)
    (place / "2/params/d/extra").write_bytes(b"x")
    with pytest.raises(UserError, match="params/d/extra: not one of the saved files"):
        Store(place).check(2)
    (place / "2/params/d/extra").rename(place / "2/params/d/.nfs0001")
    Store(place).check(2)
    (place / "1").rename(place / "5")
    with pytest.raises(UserError, match="of step 1, in the folder of step 5"):
        Store(place).check(5)
    (place / "2/digests.json").write_text((place / "2/digests.json").read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(UserError, match="written by format 9, this reads <= 1"):
        Store(place).check(2)


def test_the_newest_valid_step_is_used_and_the_damaged_one_is_kept(saved, tmp_path, capsys):
    """Training on from a damaged step, deleting it, or falling back without a word."""
    place = tmp_path / "c"
    shutil.copytree(saved, place)
    victim = next(path for path in files_of(place / "2/params") if path.parent.name == "d")
    victim.write_bytes(victim.read_bytes()[:-1] + b"\x55")
    (place / "3.orbax-checkpoint-tmp").mkdir()
    (place / "4.deleting").mkdir()
    store = Store(place)
    assert store.newest_valid() == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "step 2 " in line and victim.name in line and "2.damaged" in line and "step 1 is used instead" in line
    assert sorted(path.name for path in place.iterdir()) == ["1", "2.damaged"]
    with store:
        store.save(2, {"params": {"x": jnp.ones(1)}}, {})
    (place / "2/digests.json").write_text("{}")
    assert Store(place).newest_valid() == 1
    assert sorted(path.name for path in place.iterdir()) == ["1", "2.damaged", "2.damaged-2"]


def test_a_run_whose_every_step_is_damaged_never_starts_at_zero(saved, tmp_path):
    """Setting the last steps aside, finding no steps at the next start, and training silently from scratch."""
    place = tmp_path / "c"
    shutil.copytree(saved, place)
    for step in (1, 2):
        (place / str(step) / "commit_success.txt").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(UserError, match=r"no valid step .*step 2: commit_success.txt: 0 bytes.*step 1: commit_success.txt"):
            Store(place).newest_valid()
    for step in (1, 2):
        (place / str(step) / "digests.json").unlink()
    with pytest.raises(UserError, match=r"step 2: digests.json: missing"):
        Store(place).newest_valid()
    shutil.rmtree(place / "1")
    (place / "2").rename(place / "2.damaged")
    with pytest.raises(UserError, match="2.damaged: set aside earlier"):
        Store(place).newest_valid()


def test_a_first_save_that_never_finished_is_a_start_from_zero(saved, tmp_path, capsys):
    """A run that cannot start again because it was killed in its first save."""
    place = tmp_path / "c"
    shutil.copytree(saved / "1", place / "1")
    (place / "1/digests.json").unlink()
    assert Store(place).newest_valid() is None
    assert "step 1" in capsys.readouterr().err and [path.name for path in place.iterdir()] == ["1.unfinished"]
    assert Store(tmp_path / "new").newest_valid() is None


CHILD = """
import os, signal, sys
import jax.numpy as jnp
from ldm_jax.checkpoint import digests, store as stores
place, point, limit = sys.argv[1], sys.argv[2], int(sys.argv[3])
die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
store = stores.Store(place, keep_last=2)
step = store.newest_valid() or 0
def save(step):
    x = jnp.full((64, 64), step, jnp.float32)
    store.save(step, {"params": {"x": x}, "train": {"n": jnp.int32(step)}}, {"data": {"next": step}})
for _ in range(2 if step == 0 else 1):
    step += 1
    save(step)
store.wait()
if point == "before the digests":
    digests.write = die
if point == "inside the digests":
    os.replace = die
if point == "inside a removal":
    def half(folder):
        (folder / "params" / "manifest.ocdbt").unlink()
        die()
    type(store.directory).rmtree = half
print("saving after", step, flush=True)
while step < limit:
    step += 1
    save(step)
    store.wait()
"""


def check_killed(place, at_least: int) -> int:
    """After a kill: the newest valid step holds its own numbers, in every item, and is not older than what was promised."""
    store = Store(place)
    step = store.newest_valid()
    assert step is not None and step >= at_least
    x = store.restore(step, "params", {"x": jax.ShapeDtypeStruct((64, 64), jnp.float32)})["x"]
    assert np.unique(x).tolist() == [step]
    assert int(store.restore(step, "train", {"n": jax.ShapeDtypeStruct((), jnp.int32)})["n"]) == step
    assert store.record(step, "data") == {"next": step}
    for older in store.steps():
        digests.check(place / str(older), older)
    assert not [path.name for path in place.iterdir() if not path.name.isdigit() and "unfinished" not in path.name]
    return step


def test_killed_at_random_instants_while_saving(tmp_path, child):
    """A step that counts before it is whole, or one deleted before its successor counts."""
    dice, step, reached = random.Random(0), 0, []
    process = child(CHILD, tmp_path, "random", 100000)
    for _ in range(6):
        told = process.stdout.readline()
        assert told.startswith("saving after"), process.communicate()[1]
        time.sleep(dice.uniform(0.0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.wait()
        step = check_killed(tmp_path, step)
        reached.append(step)
        process = child(CHILD, tmp_path, "random", 100000)
    assert len(set(reached)) >= 3


@pytest.mark.parametrize("point", ["before the digests", "inside the digests", "inside a removal"])
def test_killed_at_the_worst_instants(tmp_path, child, point):
    """A committed step without digests taken for saved; half of a digests.json; a half removed step that looks valid."""
    process = child(CHILD, tmp_path, point, 9)
    told = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL and told.startswith("saving after 2")
    assert check_killed(tmp_path, 2) == (3 if point == "inside a removal" else 2)


FULL = """
import resource, signal, sys
import jax.numpy as jnp
from ldm_jax.checkpoint.store import Store
from ldm_jax.core.errors import MachineError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import numpy as np
x = jnp.asarray(np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32))
store = Store(sys.argv[1])
store.save(1, {"params": {"x": x}}, {})
store.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    store.save(2, {"params": {"x": x}}, {})
    store.wait()
except MachineError as error:
    print("TOLD", error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print("FOUND", store.newest_valid())
store.save(2, {"params": {"x": x}}, {})
store.wait()
print("AFTER", store.newest_valid())
"""


def test_a_full_disk_is_told_and_the_same_step_can_be_saved_again(tmp_path, child):
    """A save that fails in silence, or one that leaves the store wedged after space has been made."""
    out, err = child(FULL, tmp_path).communicate(timeout=60)
    assert "TOLD step 2 was not saved" in out and "FOUND 1" in out and "AFTER 2" in out, out + err


LOST = """
import os, shutil, sys
import jax.numpy as jnp
from ldm_jax.checkpoint.store import Store
from ldm_jax.core.errors import MachineError
store = Store(sys.argv[1])
shutil.rmtree(sys.argv[1])
open(sys.argv[1], "w").close()
try:
    store.save(1, {"params": {"x": jnp.ones(4)}}, {"data": {}})
    store.wait()
except MachineError as error:
    print("TOLD", error)
"""


def test_a_folder_lost_while_running_is_told_and_the_process_can_end(tmp_path, child):
    """Orbax making its folders in the background: its failure leaves threads that hold the process for 300 s."""
    out, err = child(LOST, tmp_path / "c").communicate(timeout=60)
    assert "TOLD step 1" in out, out + err
