"""Batches by random access: global batch k is a function of (seed, k) alone, and a process reads its rows of it.

Grain's MapDataset gives the order (a fresh shuffle of all records each epoch) and its reader threads the speed; nothing
of Grain is ever saved. Position g = k * batch + row names a record of the endless stream: what is read there, and every
random transform of it, depends on (seed, g) and on nothing else, so that neither threads, hosts, nor where the stream was
entered change a pixel.
"""

import copy
import dataclasses
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.data.transforms import Window, describe, to_float

SEED_LIMIT = 2**32 - 1
ENDLESS = 2**62  # rows
MAPS = {"segmentation", "depth"}  # of a record: [H, W], on the image
READ_TOGETHER = 16  # rows that a thread reads at once: Grain's cost for each element is about 50 us
ORDER = "grain-shuffle-1"  # raise it when the order of records for a seed changes


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads one record: source, transforms, checks, [-1, 1], and what the makers of fields (fields.py) tell of it."""

    source: Sequence[dict]
    transforms: tuple
    seed: int | None
    side: tuple[int, int]
    fields: Mapping

    def __call__(self, position: int, record: int) -> dict[str, np.ndarray]:
        found = self.source[record]
        try:
            image = self._transformed(np.asarray(found["image"]), position)
            row = {"image": to_float(image), "index": np.int64(position), "record": np.int64(record)}
            if self.source.classes:
                row["label"] = self._label(found.get("label"))
            if self.fields:
                shown = self._shown(found, position) | {"image": image, "index": position, "record": record}
                for name, maker in self.fields.items():
                    row |= maker(shown, self._generator_of(name, position, record))
        except UserError as error:
            raise UserError(f"{self.source.name} record {record} {found.get('file', '')}".rstrip() + f": {error}") from None
        return row

    def _shown(self, found: Mapping, position: int) -> dict:
        """What lies on the image, where the transforms leave it: see fields.py."""
        generators = [self._generator(transform, place, position) for place, transform in enumerate(self.transforms)]
        height, width = found["image"].shape[:2]
        shown = dict(found) | {"size": (width, height), "window": window_of(self.transforms, generators, found["image"])}
        for name in MAPS & found.keys():
            for place, transform in enumerate(self.transforms):
                shown[name] = transform.of_map(shown[name], self._generator(transform, place, position))
        if self.seed is not None and found.get("captions"):
            shown["caption"] = found["captions"][int(self._generator_of("caption", position, 0).random() * len(found["captions"]))]
        if "boxes" in found and shown["window"][4]:
            shown["boxes"] = np.asarray([1, 0, 1, 0], np.float32) + np.asarray([-1, 1, -1, 1], np.float32) * found["boxes"][:, [2, 1, 0, 3]]
        return shown

    def _generator_of(self, name: str, position: int, record: int):
        """Of (seed, name, position) in training; in evaluation of (name, record), so that a record has one of each there."""
        words = [_word("evaluation"), _word(name), record] if self.seed is None else [self.seed, _word(f"field {name}"), position]
        return np.random.default_rng(np.random.SeedSequence(words))

    def _transformed(self, image: np.ndarray, position: int) -> np.ndarray:
        channels = self.source.channels
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != channels:
            raise UserError(f"the image is {image.dtype} {list(image.shape)}, expected uint8 [H, W, {channels}]")
        given = image.shape
        for place, transform in enumerate(self.transforms):
            image = transform(image, self._generator(transform, place, position))
        if image.shape[:2] != self.side:
            changed = "" if given == image.shape else f" ({given[1]}x{given[0]} before its transforms)"
            raise UserError(f"the image is {image.shape[1]}x{image.shape[0]}{changed}, and {self.side[1]}x{self.side[0]} is asked for: "
                            "put crop_resize into the transforms, or ask for the size the source has")
        return image

    def _generator(self, transform, place: int, position: int):
        if self.seed is None:
            return None
        before = sum(other.name == transform.name for other in self.transforms[:place])
        return np.random.default_rng(np.random.SeedSequence([self.seed, _word(transform.name), before, position]))

    def _label(self, label) -> np.int32:
        if label is None or int(label) != label or not 0 <= label < self.source.classes:
            raise UserError(f"label {label!r}: expected a whole number from 0 to {self.source.classes - 1}")
        return np.int32(label)


def stream(source, transforms: tuple = (), *, seed: int, batch: int, start: int = 0, rows: tuple[int, int] | None = None,
           resolution: int | None = None, fields: Mapping | None = None, threads: int = 4,
           prefetch: int = 2) -> Iterator[dict[str, np.ndarray]]:
    """Endless training batches from global batch `start` on.

    Args:
      source: see sources.py.
      transforms: called in order, each with its own generator made from (seed, its name, position).
      seed: 0 .. 2^32 - 1; gives the order of the records and all random transforms.
      batch: rows in a global batch.
      start: k of the first batch.
      rows: (lo, hi), this process's contiguous rows of every global batch; None is all of them.
      resolution: side that images must have after the transforms; None asks for the size that record 0 comes out with.
      fields: {field: maker}, what batches have beside image and label, see fields.py.
      threads: reader threads (0 reads when asked); prefetch: batches to read ahead.

    Returns:
      An iterator of {"image" float32 [b, H, W, C] in [-1, 1], "label" int32 [b] where the source has classes, "index"
      int64 [b] = k * batch + row, "record" int64 [b] = place in the source} and the fields [b, ...], b = hi - lo. Every record comes
      once an epoch, epochs follow one another inside a batch, and each is shuffled anew.

    Raises:
      UserError: at the call, for arguments; at the batch, for a bad record, which it names.
    """
    import grain

    lo, hi = _check(source, seed, batch, rows, start, threads, prefetch)
    reader = _Reader(source, tuple(transforms), seed, _side(source, transforms, resolution), fields or {})
    # Grain shuffles epoch e by seed + e; mixed first, so that seed 1 does not begin with the second epoch of seed 0.
    mixed = int(np.random.SeedSequence([seed, _word("order")]).generate_state(1)[0])
    order = grain.MapDataset.range(len(source)).shuffle(seed=mixed).repeat()
    width = hi - lo

    def read(j: int) -> dict[str, np.ndarray]:
        position = j // width * batch + lo + j % width
        return reader(position, order[position])

    return _read_ahead(read, width, start, ENDLESS // width, threads, prefetch)


def in_order(source, transforms: tuple = (), *, batch: int, count: int | None = None, rows: tuple[int, int] | None = None,
             resolution: int | None = None, fields: Mapping | None = None, threads: int = 4,
             prefetch: int = 2) -> Iterator[dict[str, np.ndarray]]:
    """One deterministic pass over the first `count` records (all, if None), transforms in their deterministic form.

    Batches are as `stream` gives them, and "weight" float32 [b] is 1 for a record, 0 for the repetitions of the last
    record that fill the last batch, which is padded to `batch` so that every process has as many batches.

    Raises:
      UserError: as `stream`; a count that is not 1 .. len(source).
    """
    lo, hi = _check(source, 0, batch, rows, 0, threads, prefetch)
    count = len(source) if count is None else count
    if not 1 <= count <= len(source):
        raise UserError(f"count={count}: {source.name} has {len(source)} records; expected 1 to {len(source)}")
    reader = _Reader(source, tuple(transforms), None, _side(source, transforms, resolution), fields or {})
    width, batches = hi - lo, -(-count // batch)

    def read(j: int) -> dict[str, np.ndarray]:
        position = j // width * batch + lo + j % width
        return reader(position, min(position, count - 1)) | {"weight": np.float32(position < count)}

    return _read_ahead(read, width, 0, batches, threads, prefetch)


def _read_ahead(read, width: int, first: int, last: int, threads: int, prefetch: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches first .. last - 1 of `width` rows; row r of batch k is read(k * width + r). A thread reads a few rows at a time."""
    import grain

    few = math.gcd(width, READ_TOGETHER)
    parts = grain.MapDataset.range(first * width // few, last * width // few).map(
        lambda j: _join(np.stack, [read(j * few + r) for r in range(few)]))
    ahead = prefetch * width // few
    options = grain.ReadOptions(num_threads=min(threads, ahead), prefetch_buffer_size=ahead if threads else 0)
    whole = parts.to_iter_dataset(options).batch(width // few, drop_remainder=True, batch_fn=lambda some: _join(np.concatenate, some))
    return iter(whole)


def window_of(transforms: tuple, generators: Sequence, image: np.ndarray) -> Window:
    """What all transforms together show of an image [H, W, C], with the generators that they are called with."""
    left, top, right, bottom, mirrored = 0.0, 0.0, 1.0, 1.0, False
    for transform, state in zip(transforms, generators):
        draw = copy.deepcopy(state)
        *shown, mirrors = transform.window(image.shape[0], image.shape[1], draw)
        image = transform(image, state)
        if mirrors:
            left, right, mirrored = 1 - right, 1 - left, not mirrored
        wide, high = right - left, bottom - top
        left, top, right, bottom = left + shown[0] * wide, top + shown[1] * high, left + shown[2] * wide, top + shown[3] * high
    return left, top, right, bottom, mirrored


def fingerprint(source, *, seed: int, batch: int, transforms: tuple = (), fields: Mapping | None = None) -> dict:
    """All that fixes the stream, JSON-able. Two equal ones give the same batch k."""
    found = {"source": source.fingerprint(), "seed": seed, "batch": batch, "transforms": [describe(t) for t in transforms],
             "order": ORDER}
    if fields:
        found["fields"] = {name: maker.describe() for name, maker in fields.items()}
    return json.loads(json.dumps(found))


def check_fingerprint(saved: dict, now: dict) -> None:
    """Raises UserError naming every field in which the data of a run differs from what it was trained on."""
    was, found = _flat(json.loads(json.dumps(saved))), _flat(json.loads(json.dumps(now)))
    absent = "absent"
    differing = [f"data.{key} was {was.get(key, absent)!r}, is {found.get(key, absent)!r}" for key in sorted(was.keys() | found.keys())
                 if was.get(key, absent) != found.get(key, absent)]
    if differing:
        raise UserError("the data is not what this run was trained on: " + "; ".join(differing)
                        + ". Give the run its data back, or start another workdir")


def _flat(tree, prefix: str = "") -> dict:
    if not isinstance(tree, dict | list) or not tree:
        return {prefix: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {k: v for key, value in items for k, v in _flat(value, f"{prefix}.{key}" if prefix else str(key)).items()}


def _join(how, rows: Sequence[dict]) -> dict[str, np.ndarray]:
    return {key: how([row[key] for row in rows]) for key in rows[0]}


def _word(name: str) -> int:
    return zlib.crc32(name.encode())


def _check(source, seed, batch, rows, start, threads, prefetch) -> tuple[int, int]:
    if isinstance(seed, bool) or int(seed) != seed or not 0 <= seed <= SEED_LIMIT:
        raise UserError(f"seed={seed}: expected a whole number from 0 to {SEED_LIMIT} (2^32 - 1)")
    for key, value, least in (("batch", batch, 1), ("start", start, 0), ("threads", threads, 0), ("prefetch", prefetch, 1)):
        if value < least:
            raise UserError(f"{key}={value}: expected {least} or more")
    if not len(source):
        raise UserError(f"{source.name} has no records")
    lo, hi = rows or (0, batch)
    if not 0 <= lo < hi <= batch:
        raise UserError(f"rows=({lo}, {hi}): expected 0 <= first < end <= batch={batch}")
    return lo, hi


def _side(source, transforms, resolution: int | None) -> tuple[int, int]:
    if resolution is not None:
        return resolution, resolution
    image = np.asarray(source[0]["image"])
    for transform in transforms:
        image = transform(image, None)
    return image.shape[:2]
