"""Readers of what `torch.save` writes, without torch: the zip form (since 1.6) and the stream form before it.

The published VGG16 and LPIPS weights are streams. The tar form before PyTorch 0.2 is refused.
"""

import struct
import zipfile
import zlib

from ldm_jax.core.errors import UserError
from ldm_jax.interop import torch_pickle
from ldm_jax.interop.checks import TensorFile, as_file, check_names, check_sha256, shown
from ldm_jax.interop.mapped import MappedFile, Stored, Tensors
from ldm_jax.interop.pickle_scan import measure
from ldm_jax.interop.torch_pickle import PICKLE_LIMIT, Pickled, Storage, Tensor

MEMBER_LIMIT = 200_000
LOCAL = struct.Struct("<4sHHHHHIIIHH")  # a zip member's header before its name and extra field
PIECE = 4 * 2**20  # bytes read at a time for a check sum
STREAM_MAGIC = 0x1950A86A20F9469CFC6C  # torch/serialization.py, MAGIC_NUMBER
STREAM_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
STREAM_PROTOCOL = 1001


def read_torch_zip(path, *, sha256: str = "") -> TensorFile:
    """Reads the tensors of a `torch.save` file in the zip form; of a training checkpoint, those under "state_dict".

    Nothing in the file is executed. Members are stored, never compressed, so nothing unpacks to more than the file.

    Raises:
      UserError: damaged or truncated (every member read is checked against its CRC), compressed, or with member names
        that lead out, twice the same, or sizes that do not fit; tensors of an unknown kind; another sha256.
    """
    path = as_file(path)
    if sha256:
        check_sha256(path, sha256)
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            root, sizes = _members(archive, path)
            if root + "byteorder" in sizes and archive.read(root + "byteorder").strip() != b"little":
                raise UserError(f"{path}: refused: its numbers are big-endian; save it again on a little-endian machine")
            if sizes[root + "data.pkl"] > PICKLE_LIMIT:
                raise UserError(f"{path}: refused: its pickle is {sizes[root + 'data.pkl']} bytes, more than {PICKLE_LIMIT}")
            content = torch_pickle.load(archive.read(root + "data.pkl"), path)

            def start(storage: Storage) -> int:
                member = f"{root}data/{storage.key}"
                if sizes.get(member) != storage.count * storage.dtype.itemsize:
                    raise UserError(f"{path}: storage {storage.key[:40]!r} is {sizes.get(member, 'missing')}, "
                                    f"expected {storage.count * storage.dtype.itemsize} bytes: the file is damaged")
                return _start(file, archive.getinfo(member), archive.start_dir)

            return _tensor_file(content, start, path)
    except UserError:
        raise
    except Exception as error:  # zipfile raises half a dozen kinds on damaged files, UnicodeDecodeError and OverflowError among them
        raise UserError(f"{path}: damaged zip file: {str(error)[:200]}; copy or download it again") from None


def _members(archive: zipfile.ZipFile, path) -> tuple[str, dict[str, int]]:
    """The archive's one top folder, with its slash, and the size of every member, all checked against the file."""
    entries = archive.infolist()
    if len(entries) > MEMBER_LIMIT:
        raise UserError(f"{path}: refused: {len(entries)} members in the zip file, more than {MEMBER_LIMIT}")
    sizes: dict[str, int] = {}
    for entry in entries:
        name = entry.filename
        if name.startswith("/") or "\\" in name or ".." in name.split("/") or name in sizes:
            raise UserError(f"{path}: refused: zip member {name[:80]!r} leads out of the archive or stands twice")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise UserError(f"{path}: refused: zip member {name[:80]!r} is compressed; torch.save stores, so this was packed again")
        sizes[name] = entry.file_size
    if sum(sizes.values()) > path.stat().st_size:
        raise UserError(f"{path}: refused: zip members of {sum(sizes.values())} bytes in a file of {path.stat().st_size}")
    roots = [name[: -len("data.pkl")] for name in sizes if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise UserError(f"{path}: a zip file, but not from torch.save: {len(roots)} members named FOLDER/data.pkl, expected 1")
    return roots[0], sizes


def _start(file, entry: zipfile.ZipInfo, end: int) -> int:
    """Where in the file a stored member's bytes begin, by its local header, after their check sum is verified.

    Args:
      end: where the members end.

    Raises:
      zipfile.BadZipFile: another member stands there, or other bytes than were stored.
    """
    file.seek(entry.header_offset)
    header = file.read(LOCAL.size)
    if len(header) < LOCAL.size:
        raise zipfile.BadZipFile("a member's header is cut off")
    mark, _, flags, method, _, _, _, _, _, names, extra = LOCAL.unpack(header)
    name = file.read(names).decode("utf-8" if flags & 0x800 else "cp437")
    if mark != b"PK\3\4" or flags & 1 or method != zipfile.ZIP_STORED or name != entry.orig_filename:
        raise zipfile.BadZipFile(f"member {entry.filename[:80]!r} is not where the directory says, or is encrypted")
    start = entry.header_offset + LOCAL.size + names + extra
    if start + entry.file_size > end:
        raise zipfile.BadZipFile(f"member {entry.filename[:80]!r} runs beyond the end")
    file.seek(start)
    total, left = 0, entry.file_size
    while left:
        piece = file.read(min(left, PIECE))
        if not piece:
            raise zipfile.BadZipFile(f"member {entry.filename[:80]!r} is cut off")
        total, left = zlib.crc32(piece, total), left - len(piece)
    if total != entry.CRC:
        raise zipfile.BadZipFile(f"Bad CRC-32 for file {entry.filename[:80]!r}")
    return start


def read_torch_stream(path, *, sha256: str = "") -> TensorFile:
    """Reads a `torch.save` file of the form before 1.6: pickles one after the other, then the storages' bytes.

    Raises:
      UserError: as `read_torch_zip`; this form carries no check sums, so give `sha256` where it is known.
    """
    path = as_file(path)
    if sha256:
        check_sha256(path, sha256)
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(PICKLE_LIMIT)
        at, parts = 0, []
        for _ in range(5):  # magic number, protocol, system, the object, the storage keys in their order
            length = measure(head[at:] if at else head, path)
            parts.append(torch_pickle.load(head[at : at + length], path))
            at += length
        magic, protocol, system, keys = (parts[i].value for i in (0, 1, 2, 4))
        if magic != STREAM_MAGIC or protocol != STREAM_PROTOCOL or not isinstance(system, dict) or not system.get("little_endian"):
            raise UserError(f"{path}: not a PyTorch file that is read here: another protocol than {STREAM_PROTOCOL}, or big-endian numbers")
        content = parts[3]
        places = _places(file, at, keys, content.storages, size, path)

        return _tensor_file(content, lambda storage: places[storage.key], path)


def _places(file, at: int, keys, storages: dict[str, Storage], size: int, path) -> dict[str, int]:
    """Where in the file each storage's numbers begin: after its count, 8 bytes little-endian, one storage after another."""
    places: dict[str, int] = {}
    if not isinstance(keys, list) or any(not isinstance(key, str) or key not in storages for key in keys):
        raise UserError(f"{path}: its list of storages does not match its tensors: damaged")
    for key in keys:
        file.seek(at)
        count = int.from_bytes(file.read(8), "little")
        end = at + 8 + count * storages[key].dtype.itemsize
        if count != storages[key].count or end > size or key in places:
            raise UserError(f"{path}: storage {key[:40]!r} of {storages[key].count} elements does not fit: truncated or damaged")
        places[key] = at + 8
        at = end
    if set(places) != set(storages) or at != size:
        raise UserError(f"{path}: {size - at} bytes and {len(set(storages) - set(places))} storages do not add up: damaged")
    return places


def _tensor_file(content: Pickled, start, path) -> TensorFile:
    """The tensors of the object, or of its "state_dict"; start(storage): where in the file its numbers begin, asked once each."""
    whole, blocked = content.value, content.blocked
    if not isinstance(whole, dict):
        raise UserError(f"{path}: expected a dict of tensors, found {'one tensor' if isinstance(whole, Tensor) else 'another object'}")
    ignored = [f"blocked {name}" for name in blocked]
    if isinstance(whole.get("state_dict"), dict):
        ignored += [f"{shown(name)}: {_kind(value)}" for name, value in whole.items() if name != "state_dict"]
        whole = whole["state_dict"]
    views = {name: value for name, value in whole.items() if isinstance(value, Tensor)}
    ignored += [f"{shown(name)}: {_kind(value)}" for name, value in whole.items() if name not in views]
    check_names(views, path)
    if not views:
        raise UserError(f"{path}: no tensors in it" + (f"; it asked for {', '.join(blocked[:5])}" if blocked else ""))
    file, starts, tensors = MappedFile(path), {}, {}
    for name, view in views.items():
        storage = view.storage
        if storage.key not in starts:
            starts[storage.key] = start(storage)
        at = starts[storage.key] + view.offset * storage.dtype.itemsize
        tensors[name] = Stored(file, at, storage.dtype, tuple(view.size), None if _in_rows(view) else tuple(view.stride))
    return TensorFile(Tensors(tensors), tuple(ignored))


def _in_rows(view: Tensor) -> bool:
    """Whether a view's numbers stand one after another, the last axis first."""
    expected = 1
    for n, step in zip(reversed(view.size), reversed(view.stride)):
        if n != 1 and step != expected:
            return False
        expected *= n
    return True


def _kind(value) -> str:
    return "tensor" if isinstance(value, Tensor) else type(value).__name__
