"""A cache in the place of a source: the same records, variants and fields, or one clear line. The networks here are numpy."""

import itertools
import json
import shutil

import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.data import cache as caches
from ldm_jax.data.batches import fingerprint, in_order, stream
from ldm_jax.data.cache import PartWriter, open_cache, text_of, write_manifest
from ldm_jax.data.cached import Cached, Reading, each_shown
from ldm_jax.data.fields import Boxes, Segmentation
from ldm_jax.data.kept_record import from_bytes, to_bytes
from ldm_jax.data.shapes_world import Shapes
from ldm_jax.data.transforms import Flip, RandomResizedCrop, to_float

SIDE, VARIANTS, SEED = 16, 3, 7
RANDOM = (RandomResizedCrop(SIDE, smallest=0.4, enlarge=True), Flip(0.5))
SOURCE = {split: Shapes(split, records=10, resolution=24) for split in ("train", "test")}


def encoded(image):
    """What stands for a network: uint8 [16, 16, 3] -> moments [4, 4, 3]."""
    latent = to_float(image).reshape(4, 4, 4, 4, 3).mean((1, 3))
    return {"latent_mean": latent, "latent_log_variance": -latent}


class Drawn:
    """A maker with a draw of its own."""

    gives = ("drawn",)

    def __call__(self, record, rng):
        return {"drawn": np.float32([rng.random(), record["index"], record["size"][0], *record["window"]])}


class Words:
    """A maker of ids, which the cache has the states of."""

    gives = ("tokens",)

    def __call__(self, record, rng):
        return {"tokens": np.int32([len(record["caption"]), record["label"]])}


FIELDS = {"map": Segmentation(), "boxes_tokens": Boxes(2, 8192), "drawn": Drawn()}


def write(folder, images=True, dtype="float32", words=False):
    """A cache of both splits."""
    folder.mkdir()
    parts = {}
    for split, seed, variants in (("train", SEED, VARIANTS), ("test", None, 1)):
        latents, texts = PartWriter(folder, split, ("latent_mean",) if dtype == "bfloat16" else ()), PartWriter(folder, text_of(split))
        for place, shown in each_shown(SOURCE[split], Reading(RANDOM, SIDE, seed, variants)):
            latents.write({key: value for key, value in shown.items() if key != "image" or images} | encoded(shown["image"]), place)
            if words and place[1] == 0:
                texts.write({"token_states": np.full((2, 1), shown["label"], np.float32)}, place)
        latents.close()
        texts.close()
        parts |= {split: latents.shards, text_of(split): texts.shards}
    keeps = {"image": images, "text": {"tokens": {}} if words else {}, "dtype": dtype}
    write_manifest(folder, {"variants": VARIANTS}, keeps, parts)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("cache") / "cache", words=True)


def cached(folder, split="train", **more):
    return Cached(SOURCE[split], open_cache(str(folder)), split, **{"texts": False} | more)


def take(n, source, **more):
    return list(itertools.islice(stream(source, RANDOM, seed=SEED, batch=8, resolution=SIDE, variants=VARIANTS, **more), n))


def agree(kept, plain):
    """Whether a batch from a cache holds what one from images does."""
    moments = [encoded(np.round((image + 1) * 127.5).astype(np.uint8)) for image in plain["image"]]
    return kept.keys() == plain.keys() - {"image"} | moments[0].keys() and all(
        np.array_equal(kept[name], np.stack([m[name] for m in moments]) if name in moments[0] else plain[name]) for name in kept)


def test_a_cache_gives_what_the_images_give(folder):
    """Mistake: another variant than the epoch's, or of another record; the place of a crop, the boxes or the map of another variant; a
    field's own draw by variant; rows of a process that begin elsewhere; a batch entered at k."""
    plain = take(6, SOURCE["train"], fields=FIELDS)  # of 10 records in 3 variants: 4 epochs and more
    kept = take(6, cached(folder), fields=FIELDS)
    assert all(agree(a, b) for a, b in zip(kept, plain))
    halves = [take(1, cached(folder), fields=FIELDS, start=5, rows=rows)[0] for rows in ((0, 3), (3, 8))]
    assert all(np.array_equal(np.concatenate([half[name] for half in halves]), kept[5][name]) for name in kept[5])


def test_the_held_out_split_is_not_drawn(folder):
    """Mistake: the held-out split under a random variant, or in the order of the training records."""
    sources = cached(folder, "test", images=True), SOURCE["test"]
    kept, plain = (list(in_order(source, RANDOM, batch=4, resolution=SIDE, fields=FIELDS)) for source in sources)
    for a, b in zip(kept, plain, strict=True):
        assert np.array_equal(a.pop("image"), b["image"]) and agree(a, b)


def test_variants_come_in_turn():
    """Mistake: variants that are drawn by the position, and so never return; one variant for all epochs; draws that a seed does not
    change; a fingerprint that does not tell them."""
    by_record = [{} for _ in range(8)]
    for batch in itertools.islice(stream(SOURCE["train"], RANDOM, seed=SEED, batch=10, resolution=SIDE, variants=VARIANTS), 8):
        for image, index, record in zip(batch["image"], batch["index"], batch["record"]):
            by_record[index // 10][int(record)] = image
    same = [[np.mean([np.array_equal(a[i], b[i]) for i in a]) for b in by_record] for a in by_record]
    for a, b in itertools.product(range(8), repeat=2):
        assert same[a][b] == 1 if (a - b) % VARIANTS == 0 else same[a][b] < 0.3
    other = next(stream(SOURCE["train"], RANDOM, seed=SEED + 1, batch=10, resolution=SIDE, variants=VARIANTS))
    assert np.mean([np.array_equal(x, by_record[0][int(i)]) for x, i in zip(other["image"], other["record"])]) < 0.3
    one, two = (fingerprint(SOURCE["train"], seed=0, batch=8, variants=number) for number in (0, 2))
    assert "variants" not in one and two["variants"] == 2


def test_states_stand_in_the_place_of_ids(folder):
    """Mistake: states of another record than the latents', or under its variants' numbers; ids made all the same, which costs the time."""
    batches = take(5, cached(folder, texts=True), fields={"tokens": Words(), "map": Segmentation()})
    for batch in batches:
        assert "tokens" not in batch and "map" in batch
        assert np.array_equal(batch["token_states"], np.repeat(batch["label"][:, None, None], 2, 1))
    assert "tokens" in take(1, cached(folder), fields={"tokens": Words()})[0]


def test_bytes_of_a_record():
    """Mistake: a text that is not ASCII, a tuple that comes back as a list, no boxes, an array that is not contiguous; bfloat16 cut off
    in the place of rounded."""
    record = {"caption": "ein Fisch\n\u9b5a", "label": np.int64(3), "window": (0.0, 0.125, 1.0, 0.1, True),
              "boxes": np.zeros((0, 4), np.float32),
              "map": np.arange(6, dtype=np.uint8).reshape(2, 3).T, "x": np.float32([1 + 2**-8, 1 + 3 * 2**-8, -3.14159, 0])}
    found = from_bytes(to_bytes(record))
    assert found.keys() == record.keys() and all(type(found[k]) is type(record[k]) or k == "label" for k in record)
    assert all(np.array_equal(found[k], record[k]) and np.asarray(found[k]).dtype == np.asarray(record[k]).dtype for k in record)
    narrow = from_bytes(to_bytes(record, narrow=("x",)))["x"]
    assert narrow.dtype == np.float32 and narrow.tolist()[:2] == [1, 1 + 2**-6] and abs(narrow[2] + 3.14159) < 2**-7


def test_a_narrow_cache_is_other_data(tmp_path):
    """Mistake: a run that goes on from rounded latents as if they were the images'."""
    source = cached(write(tmp_path / "narrow", dtype="bfloat16"))
    exact, narrow = take(1, SOURCE["train"])[0], take(1, source)[0]
    wanted = np.stack([encoded(np.round((image + 1) * 127.5).astype(np.uint8))["latent_mean"] for image in exact["image"]])
    assert 0 < np.abs(narrow["latent_mean"] - wanted).max() < 2**-8
    assert source.fingerprint() == SOURCE["train"].fingerprint() | {"cached": "bfloat16"}


def test_many_shards(tmp_path, monkeypatch):
    """Mistake: records counted from the beginning of their shard, a shard that is not closed."""
    monkeypatch.setattr(caches, "SHARD_BYTES", 4000)
    folder = write(tmp_path / "many")
    assert len(list(folder.glob("train-*"))) > 3
    assert all(agree(a, b) for a, b in zip(take(4, cached(folder)), take(4, SOURCE["train"])))


def edit(path, at, value=None):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data if value is None else data[:value])


DAMAGE = {
    "a flipped bit": (lambda f: edit(f / "train-00000.array_record", 30_000), "00000.array_record: record .*mismatch.*; encode again"),
    "cut short": (lambda f: edit(f / "train-00000.array_record", 0, 5000), "00000.array_record has 5000 bytes, and had"),
    "a shard is gone": (lambda f: (f / "test-00000.array_record").unlink(), "test-00000.array_record is missing"),
    "another manifest": (lambda f: (f / "cache.json").write_text((f / "cache.json").read_text().replace('"variants": 3', '"variants": 4')),
                         "cache.json' was changed after it was written"),
    "no JSON": (lambda f: (f / "cache.json").write_text("[]"), "cache.json' cannot be read"),
    "no manifest": (lambda f: (f / "cache.json").unlink(), "is no cache, for it has no cache.json"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_told(folder, tmp_path, what):
    """Mistake: other numbers than were written, or an error of a library, in the place of one clear line."""
    shutil.copytree(folder, tmp_path / "cache")
    harm, told = DAMAGE[what]
    harm(tmp_path / "cache")
    with pytest.raises(UserError, match=told) as error:
        for batch in itertools.islice(stream(cached(tmp_path / "cache"), seed=0, batch=10, variants=3), 4):
            assert batch["latent_mean"].shape == (10, 4, 4, 3)
    assert "\n" not in str(error.value)


def test_records_of_another_place_are_told(folder, tmp_path):
    """Mistake: shards that were exchanged are read as each other."""
    shutil.copytree(folder, tmp_path / "cache")
    manifest = json.loads((tmp_path / "cache" / "cache.json").read_text())
    cache = open_cache(str(tmp_path / "cache"))
    cache.parts["train"][0]["file"] = manifest["parts"]["train_text"][0]["file"]
    with pytest.raises(UserError, match="does not hold the records that were written into it"):
        Cached(SOURCE["train"], cache, "train").found(1, None)


def test_images_that_were_not_kept_are_told(tmp_path):
    """Mistake: a KeyError, or a field made of no image."""
    class Low(Segmentation):
        gives = ("low_res",)

        def __call__(self, record, rng):
            return {"low_res": to_float(record["image"])}

    with pytest.raises(UserError, match="shapes record .*: this needs images, and the cache was made without: encode again with --images"):
        take(1, cached(write(tmp_path / "bare", images=False)), fields={"low_res": Low()})
