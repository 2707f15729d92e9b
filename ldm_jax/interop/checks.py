"""What every reader of foreign weights gives back, and the checks they share."""

import dataclasses
import hashlib
import math
import pathlib
from collections.abc import Iterable, Mapping

import ml_dtypes
import numpy as np

from ldm_jax.core.errors import UserError

NAME_LIMIT = 512


@dataclasses.dataclass(frozen=True)
class TensorFile:
    """The tensors of a file by name, read-only numpy arrays made when they are asked for, and what else was in it, a line each.

    `ignored` names what was not a tensor ("epoch: int") and, for pickled files, the Python objects that were asked for
    and not made ("blocked posix.system"). `metadata`: texts in the header of a safetensors file.
    """

    tensors: Mapping[str, np.ndarray]
    ignored: tuple[str, ...] = ()
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)


def as_file(path) -> pathlib.Path:
    """A local file that is there and not empty, or a UserError."""
    path = pathlib.Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if not path.is_file():
        raise UserError(f"{path}: is not a file")
    if not path.stat().st_size:
        raise UserError(f"{path}: is empty (0 bytes)")
    return path


def sha256_of(path) -> str:
    """sha256 of a file, hexadecimal."""
    with open(as_file(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path, expected: str) -> None:
    """Raises UserError unless the file's sha256 begins with `expected` (8 or more hexadecimal digits)."""
    expected = expected.lower()
    if len(expected) < 8 or set(expected) - set("0123456789abcdef"):
        raise UserError(f"sha256={expected!r}: expected 8 to 64 hexadecimal digits")
    found = sha256_of(path)
    if not found.startswith(expected):
        raise UserError(f"{path}: sha256 is {found}, expected {expected}: this is another file, or it is damaged")


def check_names(names: Iterable[str], path) -> None:
    """Raises UserError for a tensor name that no framework writes: empty, too long, not printable, or like a path out."""
    for name in names:
        parts = name.replace("\\", "/").split("/") if isinstance(name, str) else []
        if not parts or not name or len(name) > NAME_LIMIT or not name.isprintable() or ".." in parts or not parts[0]:
            raise UserError(f"{path}: refused: a tensor is named {shown(name)!r}; names are 1 to {NAME_LIMIT} printable "
                            "characters, not absolute and without '..'")


def shown(foreign) -> str:
    """Words for what a file holds: the beginning of a text, the type of anything else, whose own text can take for ever to make."""
    return foreign[:80] if isinstance(foreign, str) else type(foreign).__name__


def check_finite(tensors: Mapping[str, np.ndarray], path) -> None:
    """Raises UserError naming the tensors that hold NaN or infinity (a flipped bit shows so one time in a few)."""
    bad = [n for n, x in tensors.items() if x.dtype.kind not in "iub" and not finite(x)]
    if bad:
        raise UserError(f"{path}: not finite: {', '.join(bad[:5])}{' ...' if len(bad) > 5 else ''}; the file is damaged")


def finite(array: np.ndarray) -> bool:
    """Whether all numbers of an array are finite; the element types of ml_dtypes too."""
    array = array if array.dtype.kind == "f" else array.astype(np.float32)
    with np.errstate(all="ignore"):
        return bool(np.isfinite(array.sum()) or np.isfinite(array).all())  # the sum is five times as fast, and may itself be too large


def once(pairs: list) -> dict:
    """For `json.loads(object_pairs_hook=once)`: a dict, or ValueError for a key that stands twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"{twice[:80]!r} stands twice")
    return found


def elements(shape) -> int:
    """Number of elements of a shape, as an exact Python int."""
    return math.prod(shape)


def check_shape(shape) -> None:
    """Raises ValueError for a shape that no array can have, even an empty one."""
    if len(shape) > 32 or math.prod(max(n, 1) for n in shape) >= 2**48:
        raise ValueError(f"a tensor of shape {str(list(shape))[:80]}")


# The safetensors names of element types; those that numpy lacks come from ml_dtypes, which jax brings.
ELEMENTS = {
    "BOOL": np.dtype(bool), "U8": np.dtype(np.uint8), "I8": np.dtype(np.int8), "U16": np.dtype("<u2"), "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"), "I32": np.dtype("<i4"), "U64": np.dtype("<u8"), "I64": np.dtype("<i8"), "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16), "F32": np.dtype("<f4"), "F64": np.dtype("<f8"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn), "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
