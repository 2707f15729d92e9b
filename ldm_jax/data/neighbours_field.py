"""Field makers of embeddings: a record's own, and those of its neighbours in a database (RDM, arXiv 2204.11824)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.data.neighbours import SPLITS, Database, open_database


@dataclasses.dataclass(frozen=True)
class _OfDatabase:
    """What both makers share. database: a folder that cli.embed wrote; embedder: the digest of the model that it must be of, "" for any:
    a run keeps what it was trained with here."""

    database: str
    embedder: str = ""
    version: ClassVar[int] = 1
    gives: ClassVar[tuple[str, ...]] = ("embeddings",)

    def __post_init__(self):
        opened = open_database(self.database)
        if self.embedder:
            opened.check_embedder(self.embedder)
        object.__setattr__(self, "opened", opened)

    def described(self) -> dict:
        """For the data's fingerprint: what the database holds, and not where it lies."""
        return {"name": self.name, "version": self.version, "database": self.opened.digest, "embedder": self.opened.embedder}

    def of_source(self, source) -> "Bound":
        """The maker for the records of a source.

        Raises:
          UserError: the database was made of other data than this.
        """
        found = getattr(source, "source", source).fingerprint()  # a cache stands for the source that it was made of
        split = next((split for split in SPLITS if self.opened.page["sources"][split] == found), None)
        if split is None:
            told = self.opened.page["sources"]["train"]
            raise UserError(f"database {self.database}: it was made of other records than {source.name}'s {len(source):,} of this split "
                            f"(of {told.get('name')}, {told.get('records')} to train on): make it anew of this data by python -m "
                            "ldm_jax.cli.embed")
        return Bound(self, split)

    def __call__(self, record: Mapping, rng=None):
        raise TypeError("of_source comes first: a record's number alone does not say of which split it is")


@dataclasses.dataclass(frozen=True)
class Bound:
    """A maker of embeddings for the records of one split."""

    maker: Any
    split: str
    gives: ClassVar[tuple[str, ...]] = ("embeddings",)

    def __call__(self, record: Mapping, rng=None) -> dict[str, np.ndarray]:
        return {"embeddings": self.maker.told(self.maker.opened, self.split, int(record["record"]))}


@dataclasses.dataclass(frozen=True)
class Neighbours(_OfDatabase):
    """Gives "embeddings" float32 [k, D]: those of the k training records nearest to this one, itself left out, nearest first.

    k: at most what the database keeps of each record; RDM's is 4.
    """

    k: int = 4
    name: ClassVar[str] = "neighbours"

    def __post_init__(self):
        super().__post_init__()
        kept = self.opened.near["train"].shape[1]
        if not 1 <= self.k <= kept:
            raise UserError(f"k={self.k}: the database {self.database} keeps {kept} neighbours of each record; expected 1 to {kept}, or "
                            "make it anew with --k")

    def describe(self) -> dict:
        return self.described() | {"k": self.k}

    def told(self, database: Database, split: str, record: int) -> np.ndarray:
        return np.asarray(database.embeddings["train"][database.near[split][record, :self.k]], np.float32)


@dataclasses.dataclass(frozen=True)
class OwnEmbedding(_OfDatabase):
    """Gives "embeddings" float32 [1, D]: the record's own, for models that make variations of an image."""

    name: ClassVar[str] = "own_embedding"

    def describe(self) -> dict:
        return self.described()

    def told(self, database: Database, split: str, record: int) -> np.ndarray:
        return np.asarray(database.embeddings[split][record][None], np.float32)


NEIGHBOURS = {"neighbours": Neighbours, "own_embedding": OwnEmbedding}
