"""The store where nothing goes wrong with the disk: what is saved comes back, strictly; what is kept is what was asked."""

import errno
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.checkpoint import digests, folders, items
from ldm_jax.checkpoint.store import Store
from ldm_jax.core.errors import MachineError, UserError


def save_steps(store, state, records, *steps, metrics=lambda step: None):
    for step in steps:
        store.save(step, state(step), records(step), metrics(step))
    store.wait()


def test_every_item_comes_back_as_it_was_saved(tmp_path, state, records, same):
    """A dtype changed on the way, an optimizer state that comes back as a list, a record whose None or float is lost."""
    with Store(tmp_path / "checkpoints") as store:
        save_steps(store, state, records, 7)
    store = Store(tmp_path / "checkpoints")
    assert store.newest_valid() == 7 == store.last_saved
    for name, tree in state(7).items():
        assert same(store.restore(7, name, jax.eval_shape(lambda tree=tree: tree)), tree), name
    for name, record in records(7).items():
        assert store.record(7, name) == record
    assert store.stored(7, "ema") == {"a": {"kernel": jax.ShapeDtypeStruct((4, 3), jnp.float32)}}


def test_a_tree_without_leaves_is_a_tree(tmp_path):
    """An autoencoder without parameters (pixel diffusion), which Orbax refuses to save."""
    with Store(tmp_path) as store:
        store.save(1, {"params": {}, "ema": {"a": jnp.ones(2)}}, {})
    assert store.restore(1, "params", {}) == {} == store.stored(1, "params")
    with pytest.raises(UserError, match="missing in the checkpoint: b"):
        store.restore(1, "params", {"b": jnp.ones(1)})


def test_restore_names_what_differs(tmp_path, state, records):
    """A leaf cast silently (Orbax turns float32 into bfloat16 without a word), reshaped, dropped or made up."""
    with Store(tmp_path) as store:
        save_steps(store, state, records, 1)
    shape = jax.ShapeDtypeStruct
    wanted = {"a": {"kernel": shape((4, 3), jnp.float32), "bias": shape((3,), jnp.bfloat16)}, "none": {}}
    assert store.restore(1, "params", wanted)["a"]["kernel"].shape == (4, 3)
    cast = {"a": wanted["a"] | {"kernel": shape((4, 3), jnp.bfloat16)}}
    with pytest.raises(UserError, match=r"a/kernel is float32\[4, 3\], wanted bfloat16\[4, 3\]"):
        store.restore(1, "params", cast)
    with pytest.raises(UserError, match=r"a/kernel is float32\[4, 3\], wanted float32\[3, 4\]"):
        store.restore(1, "params", {"a": wanted["a"] | {"kernel": shape((3, 4), jnp.float32)}})
    with pytest.raises(UserError, match=r"1 missing in the checkpoint: a/gain.*1 not wanted: a/bias"):
        store.restore(1, "params", {"a": {"kernel": wanted["a"]["kernel"], "gain": wanted["a"]["bias"]}})
    with pytest.raises(UserError, match="no item 'critic': it has ema, params, train"):
        store.restore(1, "critic", wanted)
    with pytest.raises(UserError, match="no step 2 .* it has 1"):
        store.restore(2, "params", wanted)
    with pytest.raises(UserError, match="no record 'notes'"):
        store.record(1, "notes")


def test_arrays_may_be_donated_as_soon_as_save_returns(tmp_path, monkeypatch):
    """A save that reads the arrays after it has returned: it would store later steps' numbers, or deleted buffers."""
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x, dead = jnp.zeros((512, 512)) + 5, jnp.full((512, 512), 7.0)
    gate = threading.Event()

    def late(folder, number, metrics, write=digests.write):
        gate.wait(30)
        return write(folder, number, metrics)

    monkeypatch.setattr(digests, "write", late)
    store = Store(tmp_path)
    store.save(1, {"params": {"x": x, "dead": dead}}, {})
    dead.delete()
    for _ in range(20):
        x = step(x)
    assert float(x[0, 0]) == 25 and store.busy and store.last_saved is None
    gate.set()
    store.close()
    back = store.restore(1, "params", jax.eval_shape(lambda: {"x": jnp.zeros((512, 512)), "dead": jnp.zeros((512, 512))}))
    assert np.unique(back["x"]).tolist() == [5] and np.unique(back["dead"]).tolist() == [7]


def test_a_step_counts_only_when_its_digests_stand(tmp_path, monkeypatch, state, records):
    """Believing Orbax's commit: here the disk is full when the digests are written. And the error must surface, once."""
    store = Store(tmp_path)
    save_steps(store, state, records, 1)
    write = digests.write
    monkeypatch.setattr(digests, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    store.save(2, state(2), records(2))
    with pytest.raises(MachineError, match="step 2 was not saved .*No space left"):
        store.wait()
    store.poll()
    assert store.last_saved == 1 and store.steps() == [1]
    monkeypatch.setattr(digests, "write", write)
    assert store.newest_valid() == 1
    save_steps(store, state, records, 2)
    assert store.newest_valid() == 2


@pytest.mark.parametrize("surface", ["save", "wait", "newest_valid", "close"])
def test_background_errors_surface_at_every_door(tmp_path, monkeypatch, state, records, surface):
    """An error that only one of the calls looks for."""
    monkeypatch.setattr(digests, "write", lambda *_: (_ for _ in ()).throw(OSError("broken")))
    store = Store(tmp_path)
    store.save(1, {"params": {"x": jnp.ones(1)}}, {})
    doors = {"save": lambda: store.save(2, {"params": {"x": jnp.ones(1)}}, {}), "wait": store.wait, "newest_valid": store.newest_valid,
             "close": store.close}
    with pytest.raises(MachineError, match="step 1 was not saved"):
        doors[surface]()


def test_what_cannot_be_saved_is_refused_before_orbax_sees_it(tmp_path):
    """A failure inside Orbax, which leaves threads that wait for ever; a NaN in JSON; a step written twice."""
    store = Store(tmp_path)
    for tree, word in ((jax.random.key(0), "typed key"), (np.ones(2), "expected a jax array, got ndarray"), (3, "got int"),
                       (jnp.ones((0, 3)), "without elements")):
        with pytest.raises(UserError, match=word):
            store.save(1, {"params": {"a": {"b": tree}}}, {})
    for record in (float("nan"), {"a": np.float32(1)}):
        with pytest.raises(UserError, match="record 'data' is not JSON"):
            store.save(1, {"params": {"x": jnp.ones(1)}}, {"data": record})
    store.save(1, {"params": {"x": jnp.ones(1)}}, {})
    with pytest.raises(UserError, match="step 1 is already"):
        store.save(1, {"params": {"x": jnp.ones(1)}}, {})
    assert store.newest_valid() == 1


def test_the_policy_keeps_the_last_every_mth_and_the_best(tmp_path):
    """The best step deleted as old, a NaN taken for the best, the wrong direction, the step just saved deleted."""
    losses = {1: 9.0, 2: 0.5, 3: 4.0, 4: float("nan"), 5: 3.0, 6: 2.0, 7: 2.5}
    store = Store(tmp_path, keep_last=2, keep_every=3, best=("loss", "min"))
    for step, loss in losses.items():
        store.save(step, {"params": {"x": jnp.full(1, step)}}, {}, {"loss": loss})
    store.close()
    assert store.steps() == [2, 3, 6, 7]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3", "6", "7"]
    saved = {step: {"loss": loss} for step, loss in losses.items() if step != 4}
    assert folders.surplus(saved, 7, 1, 0, ("loss", "max")) == [2, 3, 5, 6]
    assert folders.surplus(saved, 3, 1, 0, None) == [1, 2, 5, 6]
    assert folders.surplus({1: {}, 2: {}}, 2, 1, 0, ("loss", "min")) == [1]


def test_a_reader_changes_nothing(tmp_path, capsys):
    """Sampling from a run that still trains: renaming its steps, or creating a folder where the path was wrong."""
    with Store(tmp_path / "c") as store:
        store.save(1, {"params": {"x": jnp.ones(1)}}, {})
        store.save(2, {"params": {"x": jnp.ones(1)}}, {})
        store.save(3, {"params": {"x": jnp.ones(1)}}, {})
    (tmp_path / "c/3/digests.json").unlink()
    (tmp_path / "c/2/commit_success.txt").unlink()
    (tmp_path / "c/4.orbax-checkpoint-tmp").mkdir()
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    reader = Store(tmp_path / "c", read_only=True)
    assert reader.newest_valid() == 1 and sorted(str(p) for p in tmp_path.rglob("*")) == before
    assert capsys.readouterr().err.count("left where it is") == 2
    with pytest.raises(UserError, match="opened to read"):
        reader.save(5, {}, {})
    with pytest.raises(UserError, match="no such folder"):
        Store(tmp_path / "wrong", read_only=True)
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize("given", [{"keep_last": 0}, {"keep_every": -1}, {"best": ("loss", "low")}])
def test_bad_policies_are_refused(tmp_path, given):
    """keep_last=0 would delete the last valid step."""
    with pytest.raises(UserError, match="expected"):
        Store(tmp_path, **given)


def test_importing_the_floor_imports_no_orbax():
    """An import of orbax at module level, which every `import ldm_jax` would pay for."""
    code = ("import sys, ldm_jax.checkpoint.bundle; "
            "sys.exit(any(m.split('.')[0] in ('orbax', 'tensorstore', 'safetensors') for m in sys.modules))")
    assert subprocess.run([sys.executable, "-c", code], cwd=items.__file__.rsplit("/", 3)[0]).returncode == 0
