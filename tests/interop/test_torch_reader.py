"""The readers of torch.save files: equal to torch on good files; hostile and damaged ones do nothing but raise one line."""

import argparse
import collections
import contextlib
import datetime
import enum
import io
import os
import pathlib
import pickle
import random
import resource
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.interop import pickle_scan, torch_pickle, torch_reader
from ldm_jax.interop.tensors import read_tensors, read_torch_zip

torch = pytest.importorskip("torch")
FORMS = {"zip": True, "stream": False}


def state_dict():
    torch.manual_seed(0)
    base = torch.randn(6, 4)
    tensors = {"w": base, "view": base[2:5, 1:3], "turned": base.t(), "half": torch.randn(3).half(), "bf": torch.randn(5).bfloat16(),
               "double": torch.randn(2).double(), "long": torch.arange(4), "int": torch.arange(3, dtype=torch.int32),
               "byte": torch.arange(5, dtype=torch.uint8), "flag": torch.tensor([True, False]), "scalar": torch.tensor(2.5),
               "empty": torch.zeros(0, 3), "parameter": torch.nn.Parameter(torch.randn(2, 2))}
    return collections.OrderedDict(tensors)


def save(content, path, form="zip"):
    torch.save(content, path, _use_new_zipfile_serialization=FORMS[form])
    return path


@pytest.mark.parametrize("form", FORMS)
def test_equals_torch(tmp_path, form):
    """Catches a wrong stride, offset or element type, and a storage shared by views that is read for one of them only."""
    found = read_tensors(save(state_dict(), tmp_path / "x.pth", form))
    assert found.ignored == () and found.tensors.keys() == state_dict().keys()
    for name, tensor in state_dict().items():
        expected = tensor.detach().float().numpy() if tensor.dtype == torch.bfloat16 else tensor.detach().numpy()
        assert found.tensors[name].shape == expected.shape
        assert str(found.tensors[name].dtype) == str(tensor.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(found.tensors[name].astype(expected.dtype), expected)


@pytest.mark.parametrize("form", FORMS)
def test_a_module_and_its_metadata(tmp_path, form):
    """Catches a reader that stumbles over what state_dict() hangs on its OrderedDict."""
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    found = read_tensors(save(module.state_dict(), tmp_path / "x.pth", form)).tensors
    assert found.keys() == module.state_dict().keys()
    np.testing.assert_array_equal(found["0.weight"], module[0].weight.detach().numpy())


class Callback:
    """A class of some trainer that this package has not."""

    def __init__(self):
        self.best = [torch.ones(2)]


@pytest.mark.parametrize("form", FORMS)
def test_a_training_checkpoint_gives_its_state_dict_and_names_the_rest(tmp_path, form):
    """Catches optimizer tensors taken for weights, and foreign classes that make the whole file unreadable."""
    content = {"state_dict": {"w": torch.ones(3)}, "epoch": 4, "callbacks": {"x": Callback()}, "when": np.float64(3.5),
               "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}]}
    found = read_tensors(save(content, tmp_path / "x.ckpt", form))
    assert list(found.tensors) == ["w"]
    told = "; ".join(found.ignored)
    assert "epoch: int" in told and "optimizer_states: list" in told and "Callback" in told and "blocked" in told


class Attack:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def attacks(proof):
    return {"system": (os.system, (f"touch {proof}",)), "eval": (eval, (f"open({str(proof)!r}, 'w')",)), "open": (open, (str(proof), "w")),
            "mkdir": (os.mkdir, (str(proof),))}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name, tried", [("system", "posix.system"), ("eval", "builtins.eval"), ("open", "io.open"),
                                         ("mkdir", "posix.mkdir")])
def test_a_hostile_pickle_does_nothing_and_is_refused_by_name(tmp_path, form, name, tried):
    """Catches a reader that executes: torch itself, told weights_only=False, leaves the proof behind. And one that says nothing."""
    proof = tmp_path / "proof"
    path = save({"w": torch.ones(2), "x": Attack(*attacks(proof)[name])}, tmp_path / "x.pth", form)
    with pytest.raises(UserError, match=f"refused: its pickle asks for {tried}, which no checkpoint needs"):
        read_tensors(path)
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists(), "the attack would not have worked; the test proves nothing"


def test_a_call_hidden_behind_a_broken_pickle_is_named_too():
    """Catches the error of the unpickler told in place of what the pickle tried before it."""
    with pytest.raises(UserError, match="asks for os.system"):
        torch_pickle.load(b"cos\nsystem\n(S'true'\ntRQ.", "x.pth")


@pytest.mark.parametrize("code, tried", [
    (b"\x80\x04\x8c\x13torch.serialization\x8c\x09os.system\x93\x8c\x04true\x85R.", "torch.serialization.os.system"),
    (b"cbuiltins\ngetattr\n(cbuiltins\ngetattr\n(ctorch\nserialization\nS'os'\ntRS'system'\ntR(S'true'\ntR.", "torch.serialization.os"),
    (b"c__builtin__\ngetattr\n(cos\npath\nS'join'\ntR.", "os.path"),
], ids=["another module", "getattr of getattr", "Python 2"])
def test_what_acts_is_named_by_whatever_way_it_is_asked_for(code, tried):
    """Catches os.system through another module that has imported it, and through getattr."""
    with pytest.raises(UserError, match=f"asks for {tried}"):
        torch_pickle.load(code, "x.pth")


class Kind(enum.Enum):
    """A member of this is pickled by Python 3.11 as a call of getattr."""

    ONE = 1


def test_plain_types_beside_the_tensors_are_no_attack(tmp_path):
    """Catches a checkpoint refused for its hyperparameters, a set of names, a path, bytes."""
    content = {"state_dict": {"w": torch.ones(3)}, "hyper_parameters": argparse.Namespace(a=1, b=pathlib.Path("x"), c={1, 2}),
               "raw": b"\xff\x00", "when": datetime.datetime(2022, 1, 1), "counts": collections.defaultdict(list, a=[1]), "kind": Callback,
               "member": Kind.ONE}
    assert list(read_tensors(save(content, tmp_path / "x.ckpt")).tensors) == ["w"]


def test_nothing_but_tensors_is_not_a_model(tmp_path):
    with pytest.raises(UserError, match="expected a dict of tensors"):
        read_tensors(save(Callback(), tmp_path / "x.pth"))
    with pytest.raises(UserError, match="no tensors in it"):
        read_tensors(save({"epoch": 1}, tmp_path / "x.pth"))
    with pytest.raises(UserError, match="one tensor|another object"):
        read_tensors(save(torch.ones(3), tmp_path / "x.pth"))


def test_tensors_of_other_kinds_are_refused_not_dropped(tmp_path):
    """Catches a sparse or quantised weight that becomes an inert object, so that the model loads without it."""
    with pytest.raises(UserError, match="plain dense tensors"):
        read_tensors(save({"w": torch.ones(3), "s": torch.eye(3).to_sparse()}, tmp_path / "x.pth"))


GLOBAL = b"ctorch._utils\n_rebuild_tensor_v2\n"
FORGED = {
    "a state for an allowed function": GLOBAL + b"}b.",
    "attributes for an allowed function": GLOBAL + b"N}X\x0c\x00\x00\x00__defaults__Ns\x86b.",
    "a tensor without a storage": GLOBAL + b"(K\x01K\x00(t(tNNtR.",
    "a memo of 32 GB": b"\x80\x02Nr\xff\xff\xff\xff.",
    "a string of 4 EB": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x3f.",
    "no end": b"\x80\x02}",
    "an empty stack": b"\x80\x02.",
    "an unknown opcode": b"\x80\x02\xff.",
    "an unknown persistent object": b"\x80\x02K\x01Q.",
    "an extension": b"\x80\x02\x82\x01.",
}


@pytest.mark.parametrize("what", FORGED)
def test_a_forged_pickle_is_refused(what):
    """Catches a stand-in that the pickle can rewrite, and allocations by a few bytes."""
    with pytest.raises(UserError, match="refused|damaged") as caught:
        torch_pickle.load(FORGED[what], "x.pth")
    assert "x.pth" in str(caught.value) and "\n" not in str(caught.value)
    assert ("memo index" in str(caught.value)) == (what == "a memo of 32 GB")


@pytest.mark.parametrize("offset, size, stride", [
    (0, (7,), (1,)), (1, (6,), (1,)), (0, (3, 3), (2, 1)), (0, (10**9,), (0,)), (0, (2**40, 2**40), (0, 0)), (-1, (2,), (1,)),
    (0, (2,), (-1,)), (0, (2,), (1, 1)), (0, (2**62, 0), (1, 1)), (0, (2**40, 2**40, 0), (1, 1, 1)), (0, (True,), (1,)),
])
def test_a_view_outside_its_storage_is_refused(offset, size, stride):
    """Catches reads beyond the storage (memory of the process as weights), and a few numbers repeated to terabytes."""
    storage = torch_pickle.Storage("0", np.dtype("<f4"), 6)
    with pytest.raises((pickle.UnpicklingError, ValueError)):
        torch_pickle.rebuild_tensor(storage, offset, size, stride)
    assert torch_pickle.rebuild_tensor(storage, 0, (2, 3), (3, 1)).size == (2, 3)


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(path, content, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def good(tmp_path):
    return members(save({"w": torch.ones(64), "b": torch.zeros(2)}, tmp_path / "x.pth"))


@pytest.mark.parametrize("change, match", [
    ({"../../etc/x": b"1"}, "leads out"), ({"/etc/x": b"1"}, "leads out"), ({"x\\..\\y": b"1"}, "leads out"),
    ({"x/data/0": b"1" * 255}, "expected 256 bytes"), ({"x/data/0": None}, "missing"), ({"x/data.pkl": None}, "not from torch.save"),
    ({"y/data.pkl": b"N."}, "not from torch.save"), ({"x/byteorder": b"big"}, "big-endian"),
])
def test_a_bad_zip_is_refused(tmp_path, good, change, match):
    content = {name: data for name, data in {**good, **change}.items() if data is not None}
    with pytest.raises(UserError, match=match):
        read_torch_zip(pack(tmp_path / "bad.pth", content))


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path, good):
    with pytest.raises(UserError, match="is compressed"):
        read_torch_zip(pack(tmp_path / "bad.pth", good | {"x/data/9": b"\0" * 10**6}, zipfile.ZIP_DEFLATED))


def test_a_member_that_stands_twice_is_refused(tmp_path, good):
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "bad.pth", "w") as archive:
        for name, data in [*good.items(), ("x/data/0", b"\1" * 256)]:
            archive.writestr(name, data)
    with pytest.raises(UserError, match="stands twice"):
        read_torch_zip(tmp_path / "bad.pth")


def test_a_flipped_bit_in_a_zip_is_found(tmp_path):
    """Catches a reader that skips the members' check sums."""
    path = save({"w": torch.full((64,), 3.0)}, tmp_path / "x.pth")
    data = bytearray(path.read_bytes())
    data[data.index(b"\0\0\x40\x40" * 8) + 12] ^= 4
    path.write_bytes(data)
    with pytest.raises(UserError, match="damaged zip"):
        read_tensors(path)


def forge(path, member, **fields):
    """Rewrites fields of one member's local header, and of it alone."""
    names = ("mark", "version", "flags", "method", "time", "date", "crc", "size", "unpacked", "name", "extra")
    with zipfile.ZipFile(path) as archive:
        at = archive.getinfo(member).header_offset
    data = bytearray(path.read_bytes())
    header = dict(zip(names, torch_reader.LOCAL.unpack_from(data, at))) | fields
    torch_reader.LOCAL.pack_into(data, at, *header.values())
    path.write_bytes(data)


@pytest.mark.parametrize("fields, told", [
    ({"extra": 0}, "CRC|not where"), ({"extra": 60_000}, "runs beyond the end"), ({"mark": b"PK\1\2"}, "not where|Bad magic"),
    ({"flags": 1}, "encrypted"), ({"method": 8}, "not where"), ({"name": 7}, "not where"),
])
def test_a_local_header_that_disagrees_with_the_directory(tmp_path, fields, told):
    """Catches numbers mapped from beside their member: its place is said twice in a zip file, and only once checked by zipfile."""
    path = save({"w": torch.arange(64.0)}, tmp_path / "x.pth")
    root = next(name for name in members(path) if name.endswith("data/0")).removesuffix("data/0")
    forge(path, root + "data/0", **fields)
    with pytest.raises(UserError, match=told) as caught:
        read_tensors(path)
    assert "x.pth" in str(caught.value) and "damaged zip" in str(caught.value)


MEASURED = """
import re, sys
from ldm_jax.interop.folder_writer import write_file
from ldm_jax.interop.mapped import dtypes, shapes
from ldm_jax.interop.tensors import read_tensors
from ldm_jax.checkpoint.tensors_writer import Weights
# not getrusage: what it tells of a child is at least its parent's peak
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
start = peak()
tensors = read_tensors(sys.argv[1]).tensors
kinds = dtypes(tensors)
write_file(sys.argv[2], Weights({name: (shape, kinds[name]) for name, shape in shapes(tensors).items()}, tensors.items()), dtype="float16")
print((peak() - start) / 1024)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the peak is read from Linux's /proc")
def test_a_file_is_converted_in_less_memory_than_it_takes(tmp_path):
    """Catches a reader that holds every tensor it has read (its growth is the file's 128 MB), and a writer that gathers them."""
    path = save({f"t{i}": torch.zeros(1024, 2048) for i in range(16)}, tmp_path / "x.ckpt")
    done = subprocess.run([sys.executable, "-c", MEASURED, str(path), str(tmp_path / "y.safetensors")], capture_output=True, text=True,
                          check=True, cwd=pathlib.Path(__file__).parents[2])
    assert path.stat().st_size > 127 * 2**20 and float(done.stdout) < 32 + 8 + 20


@pytest.mark.parametrize("form", FORMS)
def test_truncation_and_random_damage_raise_one_line_or_nothing(tmp_path, form):
    """Catches tracebacks from inside zipfile, pickle or numpy on 300 damaged copies of a good file."""
    data = save({"w": torch.ones(64), "b": torch.zeros(2)}, tmp_path / "x.pth", form).read_bytes()
    rng, path, refused = random.Random(0), tmp_path / "bad.pth", 0
    for trial in range(300):
        bad = bytearray(data)
        if trial % 3 == 0:
            bad = bad[: rng.randrange(1, len(bad))]
        for _ in range(rng.randrange(1, 4) if trial % 3 else 0):
            bad[rng.randrange(len(bad) if trial % 2 else min(len(bad), 700))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        try:
            read_tensors(path)
        except UserError as error:
            refused += 1
            assert "bad.pth" in str(error) and len(str(error)) < 600
    assert refused > 150


def test_a_pickle_of_objects_is_refused_by_size(monkeypatch):
    monkeypatch.setattr(torch_pickle, "PICKLE_LIMIT", 100)
    buffer = io.BytesIO()
    pickle.dump(list(range(200)), buffer)
    with pytest.raises(UserError, match="objects, not tensors"):
        torch_pickle.load(buffer.getvalue(), "x.pth")


def nest(levels, wide=2):
    """A pickle of a tuple of one smaller tuple `wide` times, and so on: wide ** levels parts, if one walks through them."""
    one = b"".join(b"h" + bytes([i]) for i in [0] * wide)
    return b"\x80\x02)q\x00" + (b"(" + one + b"tq\x00") * levels


GET = b"h\x00"
ENDLESS = {
    "shown as an object": (nest(60) + GET + b"Q.", "unknown persistent object 'tuple'"),
    "shown as a shape": (nest(60) + GLOBAL + b"((U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x05tQ" + GET + b"(h\x00t(K\x01ttR.",
                         "offset, size and stride"),
    "shown as a member": (nest(60) + b"cbuiltins\ngetattr\n(ctorch\nnn\n" + GET + b"tR.", ""),
    "a parameter": (nest(60) + b"}ctorch._utils\n_rebuild_parameter\n(" + GET + b"tRNs.", "a parameter is not a tensor"),
    "a size": (nest(60) + b"}ctorch\nSize\n(" + GET + b"tRNs.", "a size is not"),
    "a pair": (nest(60) + b"ccollections\nOrderedDict\n(](" + GET + b"NtatR.", "keys are not names"),
    "a key": (nest(60) + b"}" + GET + b"Ns.", "keys of nested tuples"),
    "a key among others": (nest(60) + b"}(NN" + GET + b"Nu.", "keys of nested tuples"),
    "a key of a wide tuple": (nest(12, 40) + b"}" + GET + b"Ns.", "keys of nested tuples"),
    "a key behind a state": (nest(60) + b"}" + GET + b"Nb0" + GET + b"Nbq\x010" + b"h\x01Ns.", "keys of nested tuples"),
    "a member of a set": (nest(60) + b"\x8f(" + GET + b"\x90.", "keys of nested tuples"),
    "a frozen set": (nest(60) + b"(" + GET + b"\x91.", "keys of nested tuples"),
    "a table": (nest(60) + b"(" + GET + b"Nd.", "keys of nested tuples"),
    "keys of one hash": (b"\x80\x02}(" + b"".join(b"\x8a\x0a" + ((2**61 - 1) * i).to_bytes(10, "little") + b"N" for i in range(8, 10_009))
                         + b"u.", "long numbers"),
    "opcodes": (b"\x80\x02" + b"N0" * 2_000 + b".", "more than 3000 opcodes"),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_a_small_pickle_cannot_take_for_ever(what, monkeypatch):
    """Catches a text, a hash or a comparison of shared tuples, which goes through 2 ** 60 of them."""
    code, told = ENDLESS[what]
    monkeypatch.setattr(pickle_scan, "OPCODES_LIMIT", 3_000 if what == "opcodes" else 10**6)
    if not told:
        with limited(5):
            assert torch_pickle.load(code, "x.pth").blocked == ("torch.nn", "torch.nn.tuple")
        return
    with limited(5), pytest.raises(UserError, match=told) as caught:
        torch_pickle.load(code, "x.pth")
    assert "x.pth" in str(caught.value) and len(str(caught.value)) < 400


@contextlib.contextmanager
def limited(seconds):
    """Ends the process after that many seconds of its own work: no signal handler runs inside the unpickler."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    resource.setrlimit(resource.RLIMIT_CPU, (int(used) + seconds, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def test_foreign_names_of_entries_are_not_shown(tmp_path):
    """Catches an entry named by a shared tuple, whose text is made for the list of what was ignored."""
    shared = ()
    for _ in range(5):
        shared = (shared,) * 3
    path = save({"state_dict": {"w": torch.ones(1), shared: 1, 7: 2}, (1, 2): 3}, tmp_path / "x.ckpt")
    assert set(read_tensors(path).ignored) == {"tuple: int", "int: int"}
    with pytest.raises(UserError, match="a tensor is named 'tuple'"):
        read_tensors(save({"w": torch.ones(1), (1, 2): torch.ones(1)}, tmp_path / "x.ckpt"))


def test_tuples_beside_the_tensors_are_read():
    """Catches honest keys and deep tuples refused: betas, shapes and keys of two names."""
    deep = ()
    for _ in range(300):
        deep = (deep, "x")
    content = {"a": deep, ("x", 3): 1, frozenset("abc"): {("y", 2), (1, (2, 3))}, 2**70: 1}
    for protocol in range(2, 5):
        kept = {key: value for key, value in content.items() if protocol == 4 or not isinstance(key, frozenset)}
        assert torch_pickle.load(pickle.dumps(kept, protocol), "x.pth").value["a"] == deep


def test_a_name_is_one_class_and_there_are_few(monkeypatch):
    """Catches a class of a kilobyte made by every opcode of three bytes, and by every name."""
    made = torch_pickle.load(b"(ctorch.nn\nX\nctorch.nn\nX\nl.", "x.pth").value
    assert made[0] is made[1]
    monkeypatch.setattr(torch_pickle, "NAMES_LIMIT", 3)
    with pytest.raises(UserError, match="more than 3 names"):
        torch_pickle.load(b"(" + b"".join(b"ca\nx%d\n" % i for i in range(4)) + b"l.", "x.pth")
    with pytest.raises(UserError, match="more than 512 characters"):
        torch_pickle.load(b"ca\n" + b"x" * 600 + b"\n.", "x.pth")


def test_pairs_given_again_and_again_are_counted(monkeypatch):
    """Catches a list of pairs that many calls of OrderedDict turn into gigabytes, and Python 2's dicts refused."""
    code = b"\x80\x02](U\x01aK\x01\x86U\x01bK\x02\x86eq\x000ccollections\nOrderedDict\nq\x01(h\x00tR"
    assert torch_pickle.load(code + b".", "x.pth").value == {"a": 1, "b": 2}
    monkeypatch.setattr(torch_pickle, "PAIRS_LIMIT", 5)
    with pytest.raises(UserError, match="more than 5"):
        torch_pickle.load(code + b"0h\x01(h\x00tR" * 2 + b".", "x.pth")


@pytest.mark.parametrize("name", ["pathlib._local.PosixPath", "pathlib.PosixPath", "re._compile", "enum.IntEnum", "typing.Iterable",
                                  "types.NoneType", "builtins.type", "collections.abc.Mapping", "threading.RLock", "_io.BytesIO",
                                  "datetime.datetime", "datetime.time", "logging.getLogger", "pytorch_lightning.callbacks.Timer"])
def test_what_makes_data_is_listed_and_no_attack(name):
    """Catches an honest checkpoint called an attack."""
    module, _, last = name.rpartition(".")
    found = torch_pickle.load(b"}X\x01\x00\x00\x00ac" + f"{module}\n{last}\n".encode() + b"s.", "x.pth")
    assert found.blocked == (name,)


@pytest.mark.parametrize("name", [
    "os.popen", "subprocess.Popen", "builtins.eval", "builtins.exec", "importlib.import_module", "socket.socket", "shutil.rmtree",
    "enum.bltns.eval", "typing.sys.modules", "types.FunctionType", "types.CodeType", "operator.methodcaller", "typing.get_type_hints",
    "pathlib.os.system", "enum.sys", "collections.abc.sys", "logging.os.system", "datetime.sys.modules", "webbrowser.open", "pickle.loads",
    "marshal.loads", "code.interact"])
def test_what_can_act_stays_refused(name):
    """Catches a plain module through which another one is reached."""
    module, _, last = name.rpartition(".")
    with pytest.raises(UserError, match=f"asks for {name}"):
        torch_pickle.load(b"c" + f"{module}\n{last}\n".encode() + b".", "x.pth")
