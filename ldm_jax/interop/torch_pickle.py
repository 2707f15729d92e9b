"""The pickled part of a PyTorch file, read without executing anything.

A pickle is a program that names Python objects and calls them. `Restricted` is a `pickle.Unpickler` whose `find_class`
hands out nothing real: the few names that tensors are made of give our own stand-ins, and every other name gives an
inert class that takes any arguments, keeps nothing, does nothing, and is reported. There is no switch to load more. A
pickle that asks for what can act (`os.system`, `eval`: all of Python's own library but a few plain types) is refused, so
that its user learns of it; the objects of a trainer, which many honest checkpoints hold, are not.
This is the only module of the package that may import `pickle`.
"""

import dataclasses
import io
import pickle
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING

import ml_dtypes
import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.interop.checks import check_shape, elements, shown
from ldm_jax.interop.pickle_scan import measure

PICKLE_LIMIT = 16 * 2**20  # bytes; the pickle of a 4 GB checkpoint with its optimizer is under 2 MB, of its hyperparameters under 8
NAMES_LIMIT, NAME_LIMIT = 10_000, 512  # names that one pickle asks for, and the characters of one
PAIRS_LIMIT = 1_000_000  # that OrderedDict is called with, in all: a list that is in the file once can be given many times

STORAGES = {
    "FloatStorage": np.dtype("<f4"), "DoubleStorage": np.dtype("<f8"), "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16), "LongStorage": np.dtype("<i8"), "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"), "CharStorage": np.dtype(np.int8), "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(bool),
}

# Of Python's own library, what honest checkpoints hold beside their tensors: hyperparameters, paths, bytes, locks. It only makes data.
PLAIN = {"_codecs.encode", "_io.BytesIO", "_io.StringIO", "_thread.RLock", "_thread.lock", "abc.ABCMeta", "argparse.Namespace",
         "array._array_reconstructor", "array.array", "collections.Counter", "collections.OrderedDict", "collections.defaultdict",
         "collections.deque", "collections.namedtuple", "copyreg._reconstructor", "dataclasses._MISSING_TYPE", "enum.auto",
         "functools.partial", "inspect._empty", "io.BytesIO", "io.StringIO", "logging.Logger", "logging.getLogger", "random.Random",
         "re._compile", "re.compile", "re.Pattern", "re.RegexFlag", "sre_compile._compile", "threading.Lock", "threading.RLock",
         "threading._RLock", "time.struct_time", "types.GenericAlias", "types.MappingProxyType", "types.NoneType",
         "types.SimpleNamespace", "types.UnionType",
         *("builtins." + name for name in ("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list",
                                           "object", "range", "set", "slice", "str", "tuple", "type"))}
PLAIN_TYPES_OF = {"collections.abc", "datetime", "decimal", "enum", "fractions", "numbers", "pathlib", "pathlib._local", "typing", "uuid",
                  "zoneinfo"}  # their types, which begin with a capital letter; datetime's do not

# Modules that act, wherever in a name they stand: torch.serialization.os.system is os.system.
ACTING = {"builtins", "ctypes", "importlib", "marshal", "nt", "os", "pickle", "posix", "pty", "runpy", "shutil", "socket", "subprocess",
          "sys"}


class StandIn:
    """What stands for a named object: it cannot be changed by the pickle (BUILD calls __setstate__)."""

    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value

    def __setstate__(self, state):
        raise pickle.UnpicklingError("an allowed name was given a state")


class Call(StandIn):
    """A stand-in that the pickle may call."""

    __slots__ = ()

    def __call__(self, *args):
        return self.value(*args)


class Storage:
    """A block of numbers in the file: its key, element type and count. Not read yet."""

    __slots__ = ("key", "dtype", "count")

    def __init__(self, key: str, dtype: np.dtype, count: int):
        self.key, self.dtype, self.count = key, dtype, count

    def __setstate__(self, state):
        raise pickle.UnpicklingError("a storage was given a state")


class Tensor:
    """A view of a storage: offset, size and stride in elements. Not read yet."""

    __slots__ = ("storage", "offset", "size", "stride")

    def __init__(self, storage, offset, size, stride):
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride

    def __setstate__(self, state):
        """Attributes that were hung on a parameter are of no use here."""


class Ordered(dict):
    """collections.OrderedDict; torch hangs a `_metadata` on it, which is dropped."""

    def __setstate__(self, state):
        pass


class Inert:
    """In the place of any object that is not a tensor: accepts whatever a pickle does to an object, and does nothing.

    asked: the name that the pickle asked for.
    """

    asked = "?"

    def __new__(cls, *args, **kwargs):
        return object.__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, value):
        pass

    extend = add = append

    def __call__(self, *args, **kwargs):
        return self


def rebuild_tensor(storage, offset, size, stride, *rest) -> Tensor:
    """torch._utils._rebuild_tensor_v2; every number is checked here, before anything is allocated."""
    if not isinstance(storage, Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise pickle.UnpicklingError("a tensor is not a view of a storage")
    numbers = (offset, *size[:33], *stride[:33])
    if any(type(n) is not int or n < 0 or n >= 2**62 for n in numbers) or len(size) != len(stride) or len(size) > 32:
        raise pickle.UnpicklingError("a tensor's offset, size and stride are not whole numbers >= 0 of up to 32 axes")
    check_shape(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if elements(size) and (last >= storage.count or elements(size) > storage.count):
        raise pickle.UnpicklingError(f"a tensor of size {size} does not fit its storage of {storage.count} elements")
    return Tensor(storage, offset, size, stride)


def rebuild_parameter(data, *rest) -> Tensor:
    """torch._utils._rebuild_parameter: the tensor it wraps."""
    if not isinstance(data, Tensor):
        raise pickle.UnpicklingError("a parameter is not a tensor")
    return data


def rebuild_size(numbers=()) -> tuple[int, ...]:
    """torch.Size; nothing but numbers, so that its hash is cheap."""
    if not isinstance(numbers, list | tuple) or len(numbers) > 32 or any(type(n) is not int for n in numbers):
        raise pickle.UnpicklingError("a size is not a list of up to 32 whole numbers")
    return tuple(numbers)


ALLOWED = {("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor, ("torch._utils", "_rebuild_parameter"): rebuild_parameter}


class Restricted(pickle.Unpickler):
    """See the module's first lines. `blocked` gathers the names that were asked for and not given, `storages` all blocks."""

    def __init__(self, data: bytes):
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self.blocked: dict[str, type] = {}
        self.left = PAIRS_LIMIT
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str):
        if (module, name) in ALLOWED:
            return Call(ALLOWED[module, name])
        if (module, name) == ("collections", "OrderedDict"):
            return Call(self.ordered)
        if module == "torch" and name in STORAGES:
            return StandIn(STORAGES[name])
        if module == "torch" and name == "Size":
            return Call(rebuild_size)
        if module == "torch._utils" or module == "torch.storage" or module == "torch" and name.endswith("Storage"):
            raise pickle.UnpicklingError(f"tensors of the kind {module}.{name} are not read; save them as plain dense tensors")
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))  # Python 2's, as __builtin__.eval
        if (module, name) == ("builtins", "getattr"):  # Python 3.11 saves members of enums so
            return Call(self.attribute)
        return self.inert(f"{module}.{name}")

    def inert(self, name: str) -> type:
        """What the pickle gets for a name that is not given: one class a name."""
        if name not in self.blocked:
            if len(name) > NAME_LIMIT or len(self.blocked) >= NAMES_LIMIT:
                raise pickle.UnpicklingError(f"it asks for more than {NAMES_LIMIT} names, or for one of more than {NAME_LIMIT} characters")
            self.blocked[name] = type("Inert", (Inert,), {"asked": name})
        return self.blocked[name]

    def ordered(self, pairs=()) -> Ordered:
        """collections.OrderedDict; Python 2 gave it its pairs in a list."""
        if not isinstance(pairs, list | tuple) or len(pairs) > self.left:
            raise pickle.UnpicklingError(f"an OrderedDict of no list of pairs, or of more than {PAIRS_LIMIT}")
        self.left -= len(pairs)
        if any(not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str) for pair in pairs):
            raise pickle.UnpicklingError("an OrderedDict whose keys are not names")
        return Ordered(pairs)

    def attribute(self, owner, name, *rest) -> type:
        """What the pickle gets for `getattr`: nothing of the owner, and the name is as if it had been asked for in one."""
        return self.inert(f"{getattr(owner, 'asked', '?')}.{shown(name)}")

    def persistent_load(self, pid):
        parts = pid if isinstance(pid, tuple) else ()
        if len(parts) not in (5, 6) or parts[0] != "storage" or not isinstance(parts[1], StandIn):
            raise pickle.UnpicklingError(f"unknown persistent object {shown(pid)!r}")
        _, kind, key, _, count, *view = parts
        if not isinstance(kind.value, np.dtype) or not isinstance(key, str) or type(count) is not int or not 0 <= count < 2**62:
            raise pickle.UnpicklingError("a storage without key, element type or count")
        if view and view[0] is not None:
            raise pickle.UnpicklingError("views of storages (before PyTorch 0.4) are not read; save it again with a current torch")
        storage = Storage(key, kind.value, count)
        first = self.storages.setdefault(key, storage)
        if (first.dtype, first.count) != (storage.dtype, storage.count):
            raise pickle.UnpicklingError(f"storage {key[:40]!r} has two sizes or element types")
        return first


@dataclasses.dataclass(frozen=True)
class Pickled:
    """What one pickle held: its object, the names that were blocked, and every storage it mentions, by key."""

    value: object
    blocked: tuple[str, ...]
    storages: dict[str, Storage]


def load(data: bytes, path) -> Pickled:
    """The object of the pickle that `data` begins with.

    Raises:
      UserError: damaged, larger than 16 MiB, made to exhaust memory, or made to act: the message names what it asked for.
    """
    if len(data) > PICKLE_LIMIT:
        raise UserError(f"{path}: refused: its pickle is {len(data)} bytes, more than {PICKLE_LIMIT}: objects, not tensors")
    reader = Restricted(data[: measure(data, path)])
    value, failed = None, ""
    try:
        value = reader.load()
    except Exception as error:  # a hostile pickle can raise anything from inside the unpickler
        told = all(isinstance(arg, str | bytes | int) for arg in error.args)  # or its text shows what the pickle has made
        failed = f"{type(error).__name__}: {str(error)[:200]}" if told else type(error).__name__
    acting = [name[:80] for name in reader.blocked if can_act(name)]
    if acting:
        raise UserError(f"{path}: refused: its pickle asks for {', '.join(acting[:5])}, which no checkpoint needs; nothing of it was "
                        "run. Do not load it elsewhere; take the model from another place, as .safetensors")
    if failed:
        raise UserError(f"{path}: refused: {failed}")
    return Pickled(value, tuple(reader.blocked), reader.storages)


def can_act(name: str) -> bool:
    """Whether a name that a pickle asks for is of Python's own library and more than a plain type, or leads into what acts."""
    parts, (module, _, last) = name.split("."), name.rpartition(".")
    if name in PLAIN or module in PLAIN_TYPES_OF and (last[:1].isupper() or module == "datetime"):
        return False
    return parts[0] in sys.stdlib_module_names or not ACTING.isdisjoint(parts)
