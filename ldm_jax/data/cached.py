"""The records of a cache in the place of a source's: what frozen networks made of each, under a few variants of its random transforms."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.data.cache import Cache, Part, text_of
from ldm_jax.data.shown import Draw, Transformed
from ldm_jax.data.transforms import to_float

MOMENTS = ("latent_mean", "latent_log_variance", "latent")  # what a first stage says of an image (models.bottleneck.MOMENTS)


class Cached:
    """A split of a cache, as `batches.stream` and `in_order` take a source: of the source it has name, classes, channels, length and
    fingerprint, for the cache stands for it. Its records hold what a first stage says of the image, and the image where that was kept.

    Args:
      source: what the cache was made of.
      images: whether batches are to hold the image too.
      texts: whether they are to hold the states of the text encoders, where there are any, in the place of ids.
    """

    def __init__(self, source, cache: Cache, split: str, images: bool = False, texts: bool = True):
        self.source, self.name, self.classes, self.channels = source, source.name, source.classes, source.channels
        self.cache, self.images, self.variants = cache, images, cache.variants if split == "train" else 1
        self._part: Part = cache.part(split)
        texts = texts and bool(cache.keeps["text"])
        self._texts: Part | None = cache.part(text_of(split)) if texts else None
        self.covers: tuple[str, ...] = tuple(cache.keeps["text"]) if texts else ()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> Mapping:
        """The source's own record, not of the cache."""
        return self.source[i]

    def fingerprint(self) -> dict:
        """The source's own: a run may go on from a cache that was begun from images. One that was narrowed is other data."""
        narrow = {} if self.cache.keeps["dtype"] == "float32" else {"cached": self.cache.keeps["dtype"]}
        return self.source.fingerprint() | narrow

    def found(self, record: int, draw: Draw | None) -> Mapping:
        variant = draw.variant % self.variants if draw else 0
        return _Kept(self._part.read(record * self.variants + variant, (record, variant)))

    def row(self, found: Mapping, draw: Draw | None, whole: bool) -> tuple[dict[str, np.ndarray], Mapping]:
        """As of `Transformed`: (what a batch holds of the image and of the text, the record as shown)."""
        row = {name: found[name] for name in MOMENTS if name in found}
        if self.images:
            row["image"] = to_float(found["image"])
        if self._texts is not None:
            row |= self._texts.read(found["record"], (found["record"], 0))
        return row, found


class _Kept(dict):
    """A record of a cache; what it does not keep is told in one line."""

    def __missing__(self, key):
        if key == "image":
            raise UserError("this needs images, and the cache was made without: encode again with --images, or set config.data.cache=''")
        raise KeyError(key)


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a split is gone through: the transforms' draws are of `seed` in `variants` variants, or, seed None, their deterministic form."""

    transforms: tuple
    side: int
    seed: int | None
    variants: int
    threads: int = 2


def each_shown(source, reading: Reading) -> Iterator[tuple[tuple[int, int], dict[str, Any]]]:
    """((record, variant), record as shown) of every record of a source under every variant, in order, read by threads.

    Raises:
      UserError: a bad record, which it names.
    """
    import grain

    view = Transformed(source, reading.transforms, (reading.side, reading.side))

    def read(i: int):
        record, variant = divmod(i, reading.variants)
        draw = None if reading.seed is None else Draw(reading.seed, (record, variant))
        found = view.found(record, draw)
        try:
            return (record, variant), view.shown(found, draw) | {"record": record}
        except UserError as error:
            raise UserError(f"{source.name} record {record} {found.get('file', '')}".rstrip() + f": {error}") from None

    options = grain.ReadOptions(num_threads=reading.threads, prefetch_buffer_size=64 if reading.threads else 0)
    return iter(grain.MapDataset.range(len(source) * reading.variants).map(read).to_iter_dataset(options))


def in_groups(rows: Iterator, size: int) -> Iterator[list]:
    """Lists of `size`, the last one shorter."""
    while group := list(itertools.islice(rows, size)):
        yield group
