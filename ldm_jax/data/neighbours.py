"""A database of embeddings in a folder, with exact search by cosine; and what a batch is told of it (arXiv 2204.11824).

database.json     the embedder (digest, width), the records, k, and size and sha256 of each file
train.npy         float32 [N, D], of length 1: record i of the training split; what is searched
test.npy          float32 [M, D], of the held-out split
train_near.npy    int32 [N, k], the records of `train` nearest to each of its own, itself left out, nearest first
test_near.npy     int32 [M, k], the same of each held-out record
captions.json     a list of N texts, where the data has them
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from ldm_jax.core.errors import UserError

PAGE, CAPTIONS, FORMAT = "database.json", "captions.json", 1
SPLITS = ("train", "test")
ROWS, QUERIES = 65_536, 256  # searched at a time: a block of 64 MB of cosines
GROUP = 64  # cosines of which the maximum is looked at first
CHUNK = 1 << 22


@dataclasses.dataclass(frozen=True, eq=False)
class Database:
    """A database that was opened; its arrays are read from the disk as they are used.

    page: what database.json says. embeddings, near: by split, see the module.
    """

    folder: str
    page: Mapping
    embeddings: Mapping[str, np.ndarray]
    near: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.embeddings["train"])

    @property
    def width(self) -> int:
        return self.embeddings["train"].shape[1]

    @property
    def embedder(self) -> str:
        """The digest of the model that made the embeddings."""
        return self.page["embedder"]["digest"]

    @property
    def digest(self) -> str:
        """Of all that the database holds."""
        return self.page["sha256"]

    def check_embedder(self, digest: str) -> None:
        """Raises UserError unless its embeddings are of the model of this digest."""
        if self.embedder != digest:
            raise UserError(f"database {self.folder}: its embeddings are of the embedder of digest {self.embedder[:12]}, and this one's is "
                            f"{digest[:12]}: give the one it was made with, or make it anew by python -m ldm_jax.cli.embed")

    def nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(records int32 [Q, k], cosines float32 [Q, k]) nearest to the queries [Q, D], nearest first; equals by their number.

        Raises:
          UserError: queries of another width, more neighbours than there are records.
        """
        if np.ndim(queries) != 2 or np.shape(queries)[1] != self.width:
            raise UserError(f"database {self.folder}: its embeddings have {self.width} numbers, what is searched for "
                            f"{list(np.shape(queries))}; was it made by another embedder?")
        _check_k(k, len(self), self.folder)
        return search(self.embeddings["train"], queries, k)

    def captions(self) -> list[str] | None:
        """The training records' captions; None where the data has none."""
        file = pathlib.Path(self.folder) / CAPTIONS
        return json.loads(file.read_text("utf-8")) if CAPTIONS in self.page["files"] else None


def search(embeddings: np.ndarray, queries: np.ndarray, k: int, without: np.ndarray | None = None,
           progress: Callable[[int], None] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Exact search by cosine, in blocks.

    Args:
      embeddings: [N, D], queries [Q, D], all of length 1.
      k: how many are found, at most N (N - 1 where one is left out).
      without: int [Q], the record that each query must not find, itself.
      progress: called with the number of queries done.

    Returns:
      (records int32 [Q, k], cosines float32 [Q, k]), nearest first, equals by their number.
    """
    records, cosines = np.zeros((len(queries), k), np.int32), np.zeros((len(queries), k), np.float32)
    for low in range(0, len(queries), QUERIES):
        part = np.asarray(queries[low:low + QUERIES], np.float32)
        found, near = np.zeros((len(part), 0), np.int32), np.zeros((len(part), 0), np.float32)
        for start in range(0, len(embeddings), ROWS):
            block = part @ np.asarray(embeddings[start:start + ROWS], np.float32).T
            if without is not None:
                own = np.asarray(without[low:low + QUERIES]) - start
                inside = np.flatnonzero((own >= 0) & (own < block.shape[1]))
                block[inside, own[inside]] = -np.inf
            places = _largest(block, k)
            found = np.concatenate([found, (places + start).astype(np.int32)], axis=1)
            near = np.concatenate([near, np.take_along_axis(block, places, axis=1)], axis=1)
        order = np.lexsort((found, -near), axis=1)[:, :k]
        records[low:low + QUERIES], cosines[low:low + QUERIES] = (np.take_along_axis(x, order, axis=1) for x in (found, near))
        if progress:
            progress(low + len(part))
    return records, cosines


def _largest(values: np.ndarray, k: int) -> np.ndarray:
    """Places int [Q, <= k] of the k largest of each row [Q, N], largest first, equals by their place.

    They lie in the k groups of largest maximum: of any other group's element, k maxima stand before it.
    """
    rows, number = values.shape
    groups = -(-number // GROUP)
    padded = np.full((rows, groups * GROUP), -np.inf, np.float32)
    padded[:, :number] = values
    best = np.argsort(-padded.reshape(rows, groups, GROUP).max(axis=2), axis=1, kind="stable")[:, :k]
    places = (np.sort(best, axis=1)[:, :, None] * GROUP + np.arange(GROUP)).reshape(rows, -1)
    order = np.argsort(-np.take_along_axis(padded, places, axis=1), axis=1, kind="stable")[:, :min(k, number)]
    return np.take_along_axis(places, order, axis=1)


def open_database(folder) -> Database:
    """Opens a database and checks its files.

    Raises:
      UserError: none there, an unfinished, damaged or newer one, or one without records.
    """
    if not str(folder):
        raise UserError("database is empty: name a folder that python -m ldm_jax.cli.embed wrote")
    path = pathlib.Path(folder)
    return _opened(str(path), (path / PAGE).stat().st_mtime_ns if (path / PAGE).is_file() else 0)


@functools.lru_cache(maxsize=8)
def _opened(folder: str, _: int) -> Database:
    path = pathlib.Path(folder)
    try:
        page = json.loads((path / PAGE).read_text("utf-8"))
        digest = page.pop("sha256")
        if page["format"] > FORMAT:
            raise UserError(f"database {folder}: of format {page['format']}, this reads up to {FORMAT}")
        if digest != page_digest(page):
            raise UserError(f"database {folder}: {PAGE} was changed after it was written; make it anew")
        wrong = next((name for name, told in page["files"].items() if _measured(path / name) != told), None)
        if wrong:
            raise UserError(f"database {folder}: {wrong} is damaged (its size or sha256 differs); make it anew")
        arrays = {name: np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False) for split in SPLITS
                  for name in (split, f"{split}_near")}
    except FileNotFoundError as error:
        missing = pathlib.Path(error.filename).name
        told = "no database" if missing == PAGE else f"{missing} is missing"
        raise UserError(f"database {folder}: {told}; expected a folder that python -m ldm_jax.cli.embed wrote") from None
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"database {folder}: cannot be read ({type(error).__name__})") from None
    embeddings, near = ({split: arrays[split + end] for split in SPLITS} for end in ("", "_near"))
    if not len(embeddings["train"]):
        raise UserError(f"database {folder}: it holds no records")
    return Database(folder, page | {"sha256": digest}, embeddings, near)


def page_digest(page: Mapping) -> str:
    """sha256 of a database.json without its own."""
    return hashlib.sha256(json.dumps(page, sort_keys=True).encode()).hexdigest()


def _measured(path: pathlib.Path) -> list:
    """[size, sha256] of a file."""
    total, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            total.update(piece)
            size += len(piece)
    return [size, total.hexdigest()]


def _check_k(k, most: int, folder: str) -> None:
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= most:
        raise UserError(f"database {folder}: k={k}: it has {most} records to find; expected 1 to {most}")
