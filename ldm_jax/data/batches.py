"""Batches by random access: global batch k is a function of (seed, k) alone, and a process reads its rows of it.

Grain's MapDataset gives the order (a fresh shuffle of all records each epoch) and its reader threads the speed; nothing
of Grain is ever saved. Position g = k * batch + row names a record of the endless stream: what is read there, and every
random transform of it, depends on (seed, g) and on nothing else, so that neither threads, hosts, nor where the stream was
entered change a pixel.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.data.cached import Cached
from ldm_jax.data.shown import Draw, Transformed, word
from ldm_jax.data.transforms import describe

SEED_LIMIT = 2**32 - 1
ENDLESS = 2**62  # rows
READ_TOGETHER = 16  # rows that a thread reads at once: Grain's cost for each element is about 50 us
ORDER = "grain-shuffle-1"  # raise it when the order of records for a seed changes


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads one record: as its view shows it, with its label, and what the makers of fields (fields.py) tell of it.

    view: Transformed (shown.py) or Cached. variants: of the random transforms; 0 draws them afresh at every position.
    """

    view: Transformed | Cached
    seed: int | None
    fields: Mapping
    variants: int = 0

    def __call__(self, position: int, record: int) -> dict[str, np.ndarray]:
        draw, source = self._draw(position, record), self.view.source
        found = self.view.found(record, draw)
        try:
            row, shown = self.view.row(found, draw, bool(self.fields))
            row |= {"index": np.int64(position), "record": np.int64(record)}
            if source.classes:
                row["label"] = self._label(shown.get("label"))
            for name, maker in self.fields.items():
                if not set(maker.gives) <= set(self.view.covers):
                    row |= maker(type(shown)(shown | {"index": position, "record": record}), self._generator_of(name, position, record))
        except UserError as error:
            raise UserError(f"{source.name} record {record} {found.get('file', '')}".rstrip() + f": {error}") from None
        return row

    def _draw(self, position: int, record: int) -> Draw | None:
        """None in evaluation; a position's own in training, or, with variants, one of the record's, in turn from epoch to epoch."""
        if self.seed is None:
            return None
        epoch = position // len(self.view.source)
        return Draw(self.seed, (record, epoch % self.variants) if self.variants else (position,))

    def _generator_of(self, name: str, position: int, record: int):
        """Of (seed, name, position) in training; in evaluation of (name, record), so that a record has one of each there."""
        words = [word("evaluation"), word(name), record] if self.seed is None else [self.seed, word(f"field {name}"), position]
        return np.random.default_rng(np.random.SeedSequence(words))

    def _label(self, label) -> np.int32:
        if label is None or int(label) != label or not 0 <= label < self.view.source.classes:
            raise UserError(f"label {label!r}: expected a whole number from 0 to {self.view.source.classes - 1}")
        return np.int32(label)


def stream(source, transforms: tuple = (), *, seed: int, batch: int, start: int = 0, rows: tuple[int, int] | None = None,
           resolution: int | None = None, fields: Mapping | None = None, variants: int = 0, threads: int = 4,
           prefetch: int = 2) -> Iterator[dict[str, np.ndarray]]:
    """Endless training batches from global batch `start` on.

    Args:
      source: see sources.py; or Cached, which stands for a source with these transforms.
      transforms: called in order, each with its own generator made from (seed, its name, position).
      seed: 0 .. 2^32 - 1; gives the order of the records and all random transforms.
      batch: rows in a global batch.
      start: k of the first batch.
      rows: (lo, hi), this process's contiguous rows of every global batch; None is all of them.
      resolution: side that images must have after the transforms; None asks for the size that record 0 comes out with.
      fields: {field: maker}, what batches have beside image and label, see fields.py.
      variants: 0, or of how many variants a record has: its transforms then draw from (seed, their name, record, epoch mod variants).
      threads: reader threads (0 reads when asked); prefetch: batches to read ahead.

    Returns:
      An iterator of {"image" float32 [b, H, W, C] in [-1, 1] (of a cache, what stands in its place), "label" int32 [b] where the
      source has classes, "index" int64 [b] = k * batch + row, "record" int64 [b] = place in the source} and the fields [b, ...],
      b = hi - lo. Every record comes once an epoch, epochs follow one another inside a batch, and each is shuffled anew.

    Raises:
      UserError: at the call, for arguments; at the batch, for a bad record, which it names.
    """
    import grain

    lo, hi = _check(source, seed, batch, rows, start, threads, prefetch)
    reader = _Reader(_view(source, transforms, resolution), seed, _bound(fields, source), variants)
    # Grain shuffles epoch e by seed + e; mixed first, so that seed 1 does not begin with the second epoch of seed 0.
    mixed = int(np.random.SeedSequence([seed, word("order")]).generate_state(1)[0])
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
    reader = _Reader(_view(source, transforms, resolution), None, _bound(fields, source))
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


def fingerprint(source, *, seed: int, batch: int, transforms: tuple = (), fields: Mapping | None = None, variants: int = 0) -> dict:
    """All that fixes the stream, JSON-able. Two equal ones give the same batch k."""
    found = {"source": source.fingerprint(), "seed": seed, "batch": batch, "transforms": [describe(t) for t in transforms],
             "order": ORDER}
    if fields:
        found["fields"] = {name: maker.describe() for name, maker in fields.items()}
    if variants:
        found["variants"] = variants
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


def _bound(fields: Mapping | None, source) -> dict:
    """The makers, those that must know it told of the source."""
    return {name: maker.of_source(source) if hasattr(maker, "of_source") else maker for name, maker in (fields or {}).items()}


def _join(how, rows: Sequence[dict]) -> dict[str, np.ndarray]:
    return {key: how([row[key] for row in rows]) for key in rows[0]}


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


def _view(source, transforms, resolution: int | None) -> Transformed | Cached:
    if isinstance(source, Cached):
        return source
    if resolution is not None:
        return Transformed(source, tuple(transforms), (resolution, resolution))
    image = np.asarray(source[0]["image"])
    for transform in transforms:
        image = transform(image, None)
    return Transformed(source, tuple(transforms), image.shape[:2])
