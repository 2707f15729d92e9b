"""The database of embeddings: exact search, what it refuses, and what batches are told of it."""

import hashlib
import json
import shutil

import numpy as np
import pytest

from configs import base
from ldm_jax import embedded
from ldm_jax.config_file import plain
from ldm_jax.core.errors import UserError
from ldm_jax.data import neighbours
from ldm_jax.data.batches import fingerprint, in_order, stream
from ldm_jax.data.neighbours import open_database, search
from ldm_jax.data.neighbours_field import Neighbours, OwnEmbedding
from ldm_jax.data.shapes_world import Shapes

CONFIG = plain(base.embedding())
CONFIG |= {"data": CONFIG["data"] | {"source": {"name": "shapes", "resolution": 8, "records": 40}, "transforms": (), "resolution": 8}}
TRAIN, TEST = Shapes("train", 8, 40), Shapes("test", 8, 40)
K = 5


class MeanColours:
    """An embedder of 12 numbers: the mean colours of the quarters."""

    digest, width = hashlib.sha256(b"mean colours").hexdigest(), 12

    def images(self, images) -> np.ndarray:
        quarters = np.asarray(images, np.float64).reshape(-1, 2, 4, 2, 4, 3).mean(axis=(2, 4)).reshape(len(images), 12)
        return (quarters / np.linalg.norm(quarters, axis=1, keepdims=True)).astype(np.float32)


def shown(source) -> np.ndarray:
    return MeanColours().images(np.stack([source[i]["image"] for i in range(40)]) / np.float32(127.5) - 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("database") / "database"
    assert "40 records of 12 numbers and 40 held out, the 5 nearest" in embedded.write_database(MeanColours(), CONFIG, out, K)
    return out


def exact(embeddings, queries, k, without=None):
    """In float64, one query at a time."""
    found = []
    for i, query in enumerate(queries.astype(np.float64)):
        order = sorted(range(len(embeddings)), key=lambda j: (-float(embeddings[j].astype(np.float64) @ query), j))
        found.append([j for j in order if without is None or j != without[i]][:k])
    return np.array(found)


@pytest.mark.parametrize("k", [1, 3, 29])
def test_search_is_exact_in_blocks_and_with_equals(k, monkeypatch):
    """Mistake: a block's best are lost or numbered from its own start, equals in another order, a query that finds itself, the smallest
    cosines in the place of the largest, a last block or group that is not full."""
    monkeypatch.setattr(neighbours, "ROWS", 11)
    monkeypatch.setattr(neighbours, "QUERIES", 7)
    monkeypatch.setattr(neighbours, "GROUP", 4)
    rng = np.random.default_rng(0)
    embeddings = rng.integers(-2, 3, (30, 3)).astype(np.float32)  # whole numbers: products are exact, and many are equal
    records, cosines = search(embeddings, embeddings, k, np.arange(30))
    np.testing.assert_array_equal(records, exact(embeddings, embeddings, k, np.arange(30)))
    np.testing.assert_array_equal(cosines, np.take_along_axis(embeddings @ embeddings.T, records, axis=1))
    queries = rng.integers(-2, 3, (9, 3)).astype(np.float32)
    np.testing.assert_array_equal(search(embeddings, queries, k)[0], exact(embeddings, queries, k))


def test_a_database_holds_every_record_and_its_neighbours(folder):
    """Mistake: records out of order, a padded batch's repetitions kept, a training record among its own neighbours, held-out records
    searched among themselves, captions of the other split."""
    database = open_database(folder)
    train, test = shown(TRAIN), shown(TEST)
    np.testing.assert_array_equal(database.embeddings["train"], train)
    np.testing.assert_array_equal(database.embeddings["test"], test)
    np.testing.assert_array_equal(database.near["train"], exact(train, train, K, np.arange(40)))
    np.testing.assert_array_equal(database.near["test"], exact(train, test, K))
    assert database.captions() == [TRAIN.caption(i) for i in range(40)]
    assert (len(database), database.width, database.embedder) == (40, 12, MeanColours.digest)
    records, cosines = database.nearest(train[:2], 3)
    assert list(records[:, 0]) == [0, 1] and cosines[:, 0] == pytest.approx(1)


def test_batches_are_told_the_neighbours_of_their_own_records(folder):
    """Mistake: neighbours by the place in the batch, held-out records given the training records' neighbours, k that is not read."""
    train, test = shown(TRAIN), shown(TEST)
    fields = {"embeddings": Neighbours(str(folder), k=3)}
    batch = next(stream(TRAIN, seed=3, batch=8, fields=fields, threads=0))
    wanted = train[exact(train, train, 3, np.arange(40))]
    np.testing.assert_array_equal(batch["embeddings"], wanted[batch["record"]])
    batch = next(in_order(TEST, batch=8, fields=fields, threads=0))
    np.testing.assert_array_equal(batch["embeddings"], train[exact(train, test, 3)][:8])
    own = {"embeddings": OwnEmbedding(str(folder))}
    np.testing.assert_array_equal(next(in_order(TEST, batch=8, fields=own, threads=0))["embeddings"], test[:8, None])


def test_a_fingerprint_is_of_what_the_database_holds(folder, tmp_path):
    """Mistake: a run that cannot be resumed because its database was moved, or that goes on with another one."""
    shutil.copytree(folder, tmp_path / "moved")
    embedded.write_database(MeanColours(), CONFIG, tmp_path / "shorter", 4)
    told = [fingerprint(TRAIN, seed=0, batch=4, fields={"embeddings": Neighbours(str(place), k=k)})["fields"]["embeddings"]
            for place, k in ((folder, 2), (tmp_path / "moved", 2), (tmp_path / "shorter", 2), (folder, 3))]
    assert told[0] == told[1] and told[0] != told[2] and told[0] != told[3] and str(folder) not in json.dumps(told)


def test_what_a_database_is_not_for_is_refused(folder, tmp_path):
    """Mistake: neighbours of other data, of another embedder, of other numbers, or fewer than were asked for."""
    maker = Neighbours(str(folder))
    for source in (Shapes("train", 8, 39), Shapes("train", 16, 40), Shapes("train", 8, 40, world=1)):
        with pytest.raises(UserError, match="it was made of other records than shapes's"):
            maker.of_source(source)
    for call, words in ((lambda: Neighbours(str(folder), k=6), "k=6: the database .* keeps 5 neighbours of each record; expected 1 to 5"),
                        (lambda: Neighbours(""), "database is empty"),
                        (lambda: Neighbours(str(folder), embedder="ab" * 32), f"of the embedder of digest {MeanColours.digest[:12]}, and "),
                        (lambda: open_database(folder).nearest(np.ones((1, 8)), 1), r"have 12 numbers, what is searched for \[1, 8\]"),
                        (lambda: open_database(folder).nearest(np.ones((1, 12)), 41), "k=41: it has 40 records"),
                        (lambda: embedded.write_database(MeanColours(), CONFIG, folder, K), "not an empty folder"),
                        (lambda: embedded.write_database(MeanColours(), CONFIG, tmp_path / "x", 40), "k=40: .* expected 1 to 39")):
        with pytest.raises(UserError, match=words) as found:
            call()
        assert "\n" not in str(found.value)
    assert not (tmp_path / "x").exists()


def test_a_spoilt_database_is_refused(folder, tmp_path):
    """Mistake: embeddings with flipped bits used in silence, tracebacks from files that are gone, a database without records."""
    def spoilt(change) -> str:
        place = tmp_path / "spoilt"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder, place)
        change(place)
        neighbours._opened.cache_clear()
        with pytest.raises(UserError) as found:
            open_database(place)
        return str(found.value)

    def flip(place):
        data = bytearray((place / "test.npy").read_bytes())
        data[-1] ^= 1
        (place / "test.npy").write_bytes(data)

    def page(change):
        def changed(place):
            told = json.loads((place / "database.json").read_text())
            told.pop("sha256")
            told = told | change(place, told)
            (place / "database.json").write_text(json.dumps(told | {"sha256": neighbours.page_digest(told)}))
        return changed

    def emptied(place, told):
        np.save(place / "train.npy", np.zeros((0, 12), np.float32))
        return {"files": told["files"] | {"train.npy": neighbours._measured(place / "train.npy")}}

    assert "test.npy is damaged" in spoilt(flip)
    assert "train_near.npy is missing" in spoilt(lambda place: (place / "train_near.npy").unlink())
    assert "no database; expected a folder that" in spoilt(lambda place: (place / "database.json").unlink())
    assert "database.json was changed" in spoilt(lambda place: (place / "database.json").write_text(
        (place / "database.json").read_text().replace('"k": 5', '"k": 4')))
    assert "of format 2, this reads up to 1" in spoilt(page(lambda place, told: {"format": 2}))
    assert "it holds no records" in spoilt(page(emptied))
