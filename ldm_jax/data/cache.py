"""A cache: what frozen networks make of every record of a dataset, in a folder of array_record shards and a manifest.

train-00000.array_record ...  record i * variants + v is record i of the training split under variant v of its random transforms
test-...                      the held-out split, transforms in their deterministic form
train_text-..., test_text-... what the frozen text encoders say of each record, where there are any; the same for every variant
cache.json                    what all of it was made of, and the shards with their sizes

The bytes of a shard are guarded by array_record itself, which keeps a hash of each record.
"""

import bisect
import dataclasses
import hashlib
import json
import pathlib
import threading
from collections.abc import Mapping

from ldm_jax.core.errors import UserError
from ldm_jax.data.kept_record import from_bytes, to_bytes

NAME, FORMAT = "cache.json", 1
SHARD_BYTES = 256 * 2**20
WRITING, READING = "group_size:1,uncompressed", "readahead_buffer_size:0"
SPLITS = ("train", "test")
PLACE = "place"  # of a record: (record, variant), written with it


def text_of(split: str) -> str:
    """The name of the part that holds the states of a split's texts."""
    return f"{split}_text"


class PartWriter:
    """Writes the records of one part of a cache, in order, into shards of about SHARD_BYTES.

    Args:
      narrow: names of arrays that are kept in bfloat16.
    """

    def __init__(self, folder: pathlib.Path, part: str, narrow: tuple[str, ...] = ()):
        self.folder, self.part, self.narrow = folder, part, narrow
        self.shards: list[dict] = []
        self._shard = None

    def write(self, record: Mapping, place: tuple[int, int]) -> None:
        """The next record, with its place (record, variant)."""
        from array_record.python.array_record_module import ArrayRecordWriter

        if self._shard is None or self._written > SHARD_BYTES:
            self.close()
            file = f"{self.part}-{len(self.shards):05d}.array_record"
            self._shard, self._written = ArrayRecordWriter(str(self.folder / file), WRITING), 0
            self.shards.append({"file": file, "records": 0})
        data = to_bytes(dict(record) | {PLACE: place}, self.narrow)
        self._shard.write(data)
        self._written += len(data)
        self.shards[-1]["records"] += 1

    def close(self) -> None:
        if self._shard is not None:
            self._shard.close()
            self.shards[-1]["bytes"] = (self.folder / self.shards[-1]["file"]).stat().st_size
            self._shard = None


def write_manifest(folder: pathlib.Path, made_of: Mapping, keeps: Mapping, parts: Mapping[str, list[dict]]) -> None:
    """Writes cache.json; its last key is the sha256 of the rest.

    Args:
      made_of: what fixes the cache's content, JSON-able.
      keeps: what its records hold: {"image": bool, "text": fields of the text encoders' states, "dtype": of the arrays}.
      parts: {part: shards}.
    """
    body = json.loads(json.dumps({"format": FORMAT, "made_of": made_of, "keeps": keeps, "parts": parts}))
    (folder / NAME).write_text(json.dumps(body | {"sha256": _digest(body)}, indent=1) + "\n")


def _digest(body: Mapping) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Cache:
    """An opened cache: its folder, what it was made of, what it keeps, and its parts, {name: [{"file", "records", "bytes"}]}."""

    folder: pathlib.Path
    made_of: Mapping
    keeps: Mapping
    parts: Mapping[str, list]

    def part(self, name: str) -> "Part":
        return Part(self.folder, self.parts[name])

    @property
    def variants(self) -> int:
        return self.made_of["variants"]


def open_cache(folder: str) -> Cache:
    """Opens a cache and looks whether all its files are there, of their sizes.

    Raises:
      UserError: no cache, one of another format, a manifest that was changed, a shard that is missing or of another size.
    """
    root = pathlib.Path(folder)
    try:
        body = json.loads((root / NAME).read_text("utf-8"))
        digest, version = body.pop("sha256"), body["format"]
    except FileNotFoundError:
        raise UserError(f"{folder!r} is no cache, for it has no {NAME}; python -m ldm_jax.cli.encode makes one") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{str(root / NAME)!r} cannot be read ({type(error).__name__}): encode again") from None
    if version != FORMAT:
        raise UserError(f"{folder!r} is a cache of format {version}, and this reads {FORMAT}: encode again")
    if digest != _digest(body):
        raise UserError(f"{str(root / NAME)!r} was changed after it was written: encode again")
    cache = Cache(root, body["made_of"], body["keeps"], body["parts"])
    for shard in (shard for shards in cache.parts.values() for shard in shards):
        file = root / shard["file"]
        found = file.stat().st_size if file.is_file() else None
        if found != shard["bytes"]:
            told = "is missing" if found is None else f"has {found} bytes, and had {shard['bytes']} when it was written"
            raise UserError(f"the cache {folder!r} is damaged: {shard['file']} {told}; encode again")
    return cache


class Part:
    """The records of one part, by random access; it may be read by several threads at once."""

    def __init__(self, folder: pathlib.Path, shards: list[dict]):
        self.folder, self.shards = folder, shards
        self._firsts = [0]
        for shard in shards:
            self._firsts.append(self._firsts[-1] + shard["records"])
        self._readers: dict[int, object] = {}
        self._opening = threading.Lock()

    def __len__(self) -> int:
        return self._firsts[-1]

    def read(self, i: int, place: tuple[int, int]) -> dict:
        """Record i, which must be the one of that place (record, variant).

        Raises:
          UserError: bytes that have changed since they were written, or another record.
        """
        number = bisect.bisect_right(self._firsts, i) - 1
        file = self.shards[number]["file"]
        try:
            record = from_bytes(self._reader(number).read([i - self._firsts[number]])[0])
        except (RuntimeError, ValueError, IndexError, KeyError, TypeError) as error:
            raise self._damaged(file, f"record {i - self._firsts[number]}: {' '.join(str(error).split())[:160]}") from None
        if record.pop(PLACE, None) != place:
            raise self._damaged(file, "it does not hold the records that were written into it")
        return record

    def _damaged(self, file: str, what: str) -> UserError:
        return UserError(f"the cache {str(self.folder)!r} is damaged: {file}: {what}; encode again")

    def _reader(self, number: int):
        reader = self._readers.get(number)
        if reader is None:
            from array_record.python.array_record_module import ArrayRecordReader

            with self._opening:
                if number not in self._readers:
                    path = str(self.folder / self.shards[number]["file"])
                    self._readers[number] = ArrayRecordReader(path, options=READING, file_reader_buffer_size=32768)
                reader = self._readers[number]
        return reader
