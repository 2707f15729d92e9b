"""digests.json: the size and sha256 of every file of a saved step. A step counts as saved only when it stands."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from ldm_jax.core.errors import UserError

NAME = "digests.json"
FORMAT = 1
CHUNK = 1 << 22
READERS = 4


class Damaged(Exception):
    """A step that must not be used; the message names the file and what is wrong with it."""


class Unfinished(Damaged):
    """A step without digests.json: its save was interrupted, so it never counted as saved."""


@dataclasses.dataclass(frozen=True)
class Digests:
    """What digests.json says: the step, {relative path: (size in bytes, sha256 in hex)}, and the step's metrics."""

    step: int
    files: dict[str, tuple[int, str]]
    metrics: dict[str, float | None]


def is_local(path) -> bool:
    """Whether a path is on a file system of this machine, where rename is atomic and fsync exists."""
    return "://" not in str(path)


def hash_file(path, sync: bool = False) -> tuple[int, str]:
    """(size in bytes, sha256 in hex) of one file, read in pieces; with `sync` its bytes are also forced to disk."""
    total, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            total.update(piece)
            size += len(piece)
        if sync:
            os.fsync(file.fileno())
    return size, total.hexdigest()


def list_files(folder) -> dict[str, object]:
    """{relative path with "/": path} of every file below a folder, digests.json and hidden files left out.

    Hidden files (".nfs0001", ".DS_Store") are put there by file systems and viewers; nothing here or in Orbax reads one.
    """
    found, todo = {}, [("", folder)]
    while todo:
        prefix, place = todo.pop()
        for path in place.iterdir():
            if path.name.startswith(".") or (not prefix and path.name in (NAME, NAME + ".tmp")):
                continue
            if path.is_dir():
                todo.append((prefix + path.name + "/", path))
            else:
                found[prefix + path.name] = path
    return found


def measure(folder, sync: bool = False) -> dict[str, tuple[int, str]]:
    """{relative path: (size, sha256)} of every file below a folder, hashed by a few threads."""
    files = list_files(epath.Path(folder))
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(files, pool.map(lambda path: hash_file(path, sync), files.values())))


def sync_folders(folder) -> None:
    """Forces the names in a local folder, and in those below it, to disk."""
    for place, _, _ in os.walk(folder):
        number = os.open(place, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _text(digests: Digests) -> str:
    """The one spelling of a digests.json: its last key is the sha256 of the rest, so that a changed byte in it shows."""
    body = {"format": FORMAT, "step": digests.step, "metrics": digests.metrics,
            "files": {path: list(digests.files[path]) for path in sorted(digests.files)}}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps(body | {"sha256": digest}, indent=1) + "\n"


def write_atomically(path, text: str) -> None:
    """Writes a small file whole or not at all: temp + fsync + rename, or the one put of an object store."""
    if not is_local(path):
        path.write_text(text)
        return
    temporary = f"{path}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    number = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def write(folder, step: int, metrics: dict[str, float | None]) -> Digests:
    """Hashes a committed step and writes its digests.json; from then on the step counts as saved."""
    folder, local = epath.Path(folder), is_local(folder)
    digests = Digests(step, measure(folder, sync=local), metrics)
    if local:
        sync_folders(folder)
    write_atomically(folder / NAME, _text(digests))
    return digests


def read(folder, step: int) -> Digests:
    """Reads a step's digests.json and checks it against itself.

    Raises:
      Unfinished: there is none.
      Damaged: it was changed after it was written, or belongs to another step or to a newer format.
    """
    try:
        text = (epath.Path(folder) / NAME).read_text()
    except FileNotFoundError:
        raise Unfinished(f"no {NAME}: the save was interrupted") from None
    except UnicodeDecodeError:
        raise Damaged(f"{NAME}: not text") from None
    try:
        body = json.loads(text)
        found = Digests(body["step"], {k: (v[0], v[1]) for k, v in body["files"].items()}, body["metrics"])
        version = body["format"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise Damaged(f"{NAME}: not readable") from None
    if isinstance(version, int) and version > FORMAT:
        raise Damaged(f"{NAME}: written by format {version}, this reads <= {FORMAT}")
    if text != _text(found):
        raise Damaged(f"{NAME}: changed after it was written")
    if found.step != step:
        raise Damaged(f"{NAME}: of step {found.step}, in the folder of step {step}")
    return found


def check(folder, step: int) -> Digests:
    """Verifies every file of a step: presence, size, sha256, and that none was added.

    Raises:
      Unfinished, Damaged: the first file that is wrong, and why.
    """
    wanted = read(folder, step)
    try:
        _check_files(wanted, list_files(epath.Path(folder)))
    except OSError as error:
        raise Damaged(f"cannot be read: {error}") from None
    return wanted


def _check_files(wanted: Digests, present: dict[str, object]) -> None:
    for path in sorted(wanted.files.keys() - present.keys()):
        raise Damaged(f"{path}: missing")
    for path in sorted(present.keys() - wanted.files.keys()):
        raise Damaged(f"{path}: not one of the saved files")
    for path, (size, _) in wanted.files.items():
        found = present[path].stat().length
        if found != size:
            raise Damaged(f"{path}: {found} bytes, saved with {size}")

    def differs(path: str) -> bool:
        return hash_file(present[path]) != wanted.files[path]

    with ThreadPoolExecutor(READERS) as pool:
        for path, wrong in zip(wanted.files, pool.map(differs, wanted.files)):
            if wrong:
                raise Damaged(f"{path}: its bytes have changed since it was saved (sha256 differs)")


@contextlib.contextmanager
def whole_folder(folder: pathlib.Path):
    """A folder beside `folder` to write into, which gets its name when all is written and on the disk; or it is gone.

    Raises:
      UserError: `folder` holds something; a disk that is full, or another error of the system.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an empty folder: choose another, or remove it")
    partial = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        sync_folders(partial)
        os.rename(partial, folder)
    except OSError as error:
        raise UserError(f"{folder} could not be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
