"""Embeddings that a sample is told: those of the neighbours of a text or of an image in a database, or an image's own (variations)."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from ldm_jax.clip import Clip, load_clip
from ldm_jax.core.errors import UserError
from ldm_jax.data.neighbours import Database, open_database
from ldm_jax.pictures import any_picture, named

K = 4  # of RDM


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """The neighbours of Q texts or images: records int32 [Q, k] of the training split, nearest first; their cosines float32 [Q, k]; and
    their embeddings float32 [Q, k, D], as `Model.condition` takes them."""

    records: np.ndarray
    cosines: np.ndarray
    embeddings: np.ndarray


def neighbours(clip: Clip, database: Database, *, texts: Sequence[str] | None = None, images=None, k: int = K) -> Found:
    """The k records of a database nearest to each text, or to each image [N, H, W, 3].

    Raises:
      UserError: texts and images, or neither; a database of another embedder; more neighbours than records.
    """
    if (texts is None) == (images is None):
        raise UserError("neighbours: expected texts=, or images=, and one of them")
    database.check_embedder(clip.digest)
    records, cosines = database.nearest(clip.texts(texts) if images is None else clip.images(images), k)
    return Found(records, cosines, np.asarray(database.embeddings["train"][records], np.float32))


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """What the flags of `sample.py` say of it. Given to the images as labels are: image i has the text or picture i mod their number.

    texts, images: whose neighbours are told; variations: pictures that tell themselves; one of the three is there.
    """

    embedder: str
    database: str = ""
    texts: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    variations: tuple[str, ...] = ()
    k: int = K

    def told(self, model, number: int) -> np.ndarray:
        """Embeddings float32 [number, k or 1, D] for a model.

        Raises:
          UserError: another embedder than the model's or the database's, no picture, no database.
        """
        check_embedder(model, self._clip)
        found = self.found.embeddings
        return found[np.arange(number) % len(found)]

    def check(self, model) -> None:
        """Raises UserError: a model that reads no embeddings."""
        fields = model.experiment.conditioner.fields
        if "embeddings" not in fields:
            raise UserError(f"{self.flag}: this model does not read embeddings; it reads {', '.join(fields) or 'nothing'}")

    @functools.cached_property
    def found(self) -> Found:
        """What is told; of variations each picture's own embedding, without records."""
        if self.variations:
            own = np.concatenate([self._clip.images(picture) for picture in self._pictures])
            return Found(np.zeros((len(own), 0), np.int32), np.zeros((len(own), 0), np.float32), own[:, None])
        if self.texts:
            return neighbours(self._clip, self._opened, texts=list(self.texts), k=self.k)
        near = [neighbours(self._clip, self._opened, images=picture, k=self.k) for picture in self._pictures]
        return Found(*(np.concatenate(parts) for parts in zip(*((n.records, n.cosines, n.embeddings) for n in near))))

    @property
    def flag(self) -> str:
        """What asked for it."""
        return "--variation_of" if self.variations else "--neighbours_of_prompt" if self.texts else "--neighbours_of_image"

    @functools.cached_property
    def _clip(self) -> Clip:
        return load_clip(self.embedder)

    @functools.cached_property
    def _opened(self) -> Database:
        return open_database(self.database)

    @property
    def _pictures(self) -> list[np.ndarray]:
        return [any_picture(file, self.flag, "RGB")[None] for file in self.variations or self.images]

    def note(self, i: int, entry: dict) -> None:
        """Adds to the entry of image i in samples.json whose embeddings it was told."""
        asked = self.texts or tuple(pathlib.Path(file).name for file in self.variations or self.images)
        records = self.found.records[i % len(asked)].tolist()
        entry["condition"] = entry.get("condition", {}) | {self.flag[2:]: asked[i % len(asked)]}
        if records:
            entry["condition"]["neighbours"] = records

    @property
    def page(self) -> dict:
        """For samples.json."""
        files = {f"{self.flag[2:]}_{i}": file for i, file in enumerate(self.variations or self.images)}
        return {"embedder": self._clip.digest} | ({"database": self._opened.digest} if self.database else {}) | named(files)


def check_embedder(model, clip: Clip) -> None:
    """Raises UserError: the model was trained on the embeddings of another embedder, or of another width."""
    sections = model.manifest.config["data"].get("fields", {}).values()
    known = next((section["embedder"] for section in sections if isinstance(section, Mapping) and section.get("embedder")), "")
    if known and known != clip.digest:
        raise UserError(f"embedder: this model was trained on embeddings of the embedder of digest {known[:12]}, and this one's is "
                        f"{clip.digest[:12]}")
    parts = getattr(model.experiment.conditioner, "parts", (model.experiment.conditioner,))
    width = next(part.width for part in parts if "embeddings" in part.fields)
    if width != clip.width:
        raise UserError(f"embedder: its embeddings have {clip.width} numbers, and this model reads {width}")


def retrieval_of(embedder: str, database: str, of: dict[str, Sequence[str]], k: int | None) -> Retrieval | None:
    """What the flags say; None where they are empty. of: "texts", "images" and "variations".

    Raises:
      UserError: flags that do not go together.
    """
    flags = {"texts": "--neighbours_of_prompt", "images": "--neighbours_of_image", "variations": "--variation_of"}
    said = [name for name in flags if of.get(name)]
    if not said:
        for flag, value in (("--embedder", embedder), ("--database", database), ("--k", k)):
            if value not in ("", None):
                raise UserError(f"{flag} belongs to {', '.join(flags.values())}: say whose embeddings are told")
        return None
    if len(said) > 1:
        raise UserError(f"{' and '.join(flags[name] for name in said)}: expected one of them")
    if not embedder:
        raise UserError(f"{flags[said[0]]}: give --embedder too, the run of task embedding (or CLIP) that the model was trained with")
    if said == ["variations"] and (database or k is not None):
        raise UserError(f"{'--database' if database else '--k'}: --variation_of tells the picture's own embedding and looks nothing up")
    if said != ["variations"] and not database:
        raise UserError(f"{flags[said[0]]}: give --database too, a folder that python -m ldm_jax.cli.embed wrote")
    if k is not None and k < 1:
        raise UserError(f"--k={k}: expected a number of neighbours, 1 or more")
    return Retrieval(embedder, database, **{name: tuple(of[name]) for name in said}, k=K if k is None else k)
