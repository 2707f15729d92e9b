"""The stream of batches: a function of (seed, k), the same for every number of threads and processes."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.data.batches import check_fingerprint, fingerprint, in_order, stream
from ldm_jax.data.digits import Digits
from ldm_jax.data.shapes_world import Shapes
from ldm_jax.data.transforms import CropResize, Flip

RANDOM = (CropResize(24, crop="random"), Flip(0.5))


class Counted:
    """Twenty 4x6 images whose pixels say which record they are."""

    name, version, classes, channels = "counted", "1", 5, 1

    def __init__(self, records=20, label=None):
        self.records, self.label = records, label

    def __len__(self):
        return self.records

    def __getitem__(self, i):
        image = np.arange(24, dtype=np.uint8).reshape(4, 6, 1) + np.uint8(10 * i)
        return {"image": image, "label": i % 5 if self.label is None else self.label}

    def fingerprint(self):
        return {"name": self.name, "records": self.records}


def take(n, *args, **kwargs):
    return list(itertools.islice(stream(*args, **kwargs), n))


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


def test_fields_and_ranges():
    batch = take(1, Digits("train"), (), seed=0, batch=8, resolution=32)[0]
    assert {k: (v.dtype.name, v.shape) for k, v in batch.items()} == {
        "image": ("float32", (8, 32, 32, 1)), "label": ("int32", (8,)), "index": ("int64", (8,)), "record": ("int64", (8,))}
    assert batch["image"].min() == -1 and batch["image"].max() == 1
    assert np.array_equal(batch["label"], Digits("train").labels[batch["record"]])


def test_entering_at_k_is_skipping_to_k():
    """Catches an iterator whose state is its history; shapes with random transforms, across an epoch's end."""
    source = Shapes("train", records=30, resolution=32)
    whole = take(7, source, RANDOM, seed=5, batch=8, resolution=24)
    for k in (1, 3, 6):
        assert same(take(1, source, RANDOM, seed=5, batch=8, resolution=24, start=k)[0], whole[k])
    assert whole[6]["index"].tolist() == list(range(48, 56))


def test_threads_change_nothing():
    """Catches random transforms that draw from a shared or per-thread generator."""
    source = Shapes("train", records=30)
    runs = [take(5, source, RANDOM, seed=1, batch=8, resolution=24, threads=t, prefetch=p) for t, p in ((0, 1), (1, 1), (8, 3))]
    assert all(same(a, b) for other in runs[1:] for a, b in zip(runs[0], other))


@pytest.mark.parametrize("cuts", [(0, 4, 8), (0, 1, 2, 8)])
def test_rows_of_processes_concatenate_to_the_batch(cuts):
    """Catches processes that read the same rows, or shuffle each their own part."""
    source = Shapes("train", records=30)
    whole = take(5, source, RANDOM, seed=2, batch=8, resolution=24)
    parts = [take(5, source, RANDOM, seed=2, batch=8, resolution=24, rows=rows) for rows in itertools.pairwise(cuts)]
    for k in range(5):
        assert same({key: np.concatenate([part[k][key] for part in parts]) for key in whole[k]}, whole[k])


def test_every_record_once_an_epoch_and_shuffled_anew():
    """Catches a dropped remainder (20 records, batches of 8) and epochs in one order."""
    records = np.concatenate([b["record"] for b in take(10, Counted(), (), seed=0, batch=8)]).reshape(4, 20)
    assert all(sorted(epoch) == list(range(20)) for epoch in records.tolist())
    assert len({tuple(epoch) for epoch in records.tolist()}) == 4 and list(range(20)) not in records.tolist()


def test_seeds_are_unrelated():
    """Grain shuffles epoch e of seed s by s + e. Catches seed 1 beginning with the second epoch of seed 0."""
    orders = [tuple(b["record"].tolist()) for seed in range(3) for b in take(3, Counted(), (), seed=seed, batch=20)]
    assert len(set(orders)) == 9


def test_order_does_not_depend_on_batch_size():
    a = np.concatenate([b["record"] for b in take(6, Counted(), (), seed=3, batch=4)])
    b = np.concatenate([b["record"] for b in take(2, Counted(), (), seed=3, batch=12)])
    assert np.array_equal(a, b)


def test_a_repeated_record_is_flipped_anew():
    """Catches draws made from the record's place in the source: it would look the same every epoch."""
    flipped = {r: set() for r in range(20)}
    for batch in take(20, Counted(), (Flip(0.5),), seed=0, batch=20):
        for image, record in zip(batch["image"], batch["record"]):
            flipped[record].add(bool(image[0, 0, 0] > image[0, 1, 0]))
    assert all(len(seen) == 2 for seen in flipped.values())


def test_another_transform_leaves_the_draws_of_flip_alone():
    a = take(3, Counted(), (Flip(0.5),), seed=0, batch=20)
    b = take(3, Counted(), (CropResize(4, crop="random"), Flip(0.5)), seed=0, batch=20, resolution=4)
    def turned(batch):
        return batch["image"][:, 0, 0, 0] > batch["image"][:, 0, 1, 0]
    assert all(np.array_equal(turned(x), turned(y)) for x, y in zip(a, b))


def test_in_order_pads_by_repetition_with_weight_nought():
    """Catches a last batch that is dropped, short, or counted twice."""
    batches = list(in_order(Counted(), (Flip(1.0),), batch=8))
    assert [b["weight"].sum() for b in batches] == [8, 8, 4] and all(len(b["image"]) == 8 for b in batches)
    records = np.concatenate([b["record"] for b in batches])
    assert records.tolist() == list(range(20)) + [19] * 4
    assert batches[0]["image"][0, 0, 0, 0] == -1  # not flipped
    halves = [list(in_order(Counted(), (), batch=8, count=13, rows=rows)) for rows in ((0, 4), (4, 8))]
    joined = [np.concatenate([a["record"], b["record"]]).tolist() for a, b in zip(*halves)]
    assert joined == [list(range(8)), [8, 9, 10, 11, 12, 12, 12, 12]]


def test_one_record_is_enough():
    assert take(2, Counted(1), (), seed=0, batch=3)[1]["record"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("change, field", [
    (dict(seed=1), "data.seed was 0, is 1"), (dict(batch=16), "data.batch"),
    (dict(source=Counted(21)), "data.source.records was 20, is 21"),
    (dict(transforms=(Flip(0.4),)), "data.transforms.0.probability was 0.5, is 0.4"), (dict(transforms=()), "data.transforms"),
])
def test_a_fingerprint_that_differs_names_the_field(change, field):
    same_as = dict(source=Counted(), seed=0, batch=8, transforms=(Flip(0.5),))
    def make(source, **rest):
        return fingerprint(source, **rest)
    check_fingerprint(make(**same_as), make(**same_as))
    with pytest.raises(UserError) as caught:
        check_fingerprint(make(**same_as), make(**same_as | change))
    assert field in str(caught.value)


@pytest.mark.parametrize("arguments, message", [
    (dict(seed=-1), "seed=-1"), (dict(seed=2**32), "2\\^32 - 1"), (dict(batch=0), "batch=0"), (dict(start=-1), "start=-1"),
    (dict(rows=(4, 9)), "rows"), (dict(rows=(4, 4)), "rows"), (dict(source=Counted(0)), "no records"),
    (dict(resolution=8), "record \\d+: the image is 6x4, and 8x8 is asked for"),
    (dict(source=Counted(label=5)), "record \\d+: label 5: expected a whole number from 0 to 4"),
    (dict(source=Counted(label=-1)), "label -1"),
    (dict(transforms=(CropResize(5),), resolution=5), "record \\d+: the image is 6x4, smaller than resolution 5"),
])
@pytest.mark.parametrize("threads", [0, 2])
def test_bad_arguments_and_records(arguments, message, threads):
    """The error that a reader thread meets reaches the caller as itself."""
    with pytest.raises(UserError, match=message):
        take(1, **dict(source=Counted(), transforms=(), seed=0, batch=8, threads=threads) | arguments)


def test_counts_beyond_the_source_are_refused():
    with pytest.raises(UserError, match="count=21: counted has 20 records"):
        in_order(Counted(), (), batch=8, count=21)


def test_this_floor_loads_nothing_heavy():
    """Catches a heavy import at the top, and any jax import of our own: this floor is numpy."""
    heavy = ("tensorflow", "tensorflow_datasets", "torch", "grain", "sklearn", "jax", "matplotlib")
    code = (f"import sys, ldm_jax.data.sources, ldm_jax.data.batches, ldm_jax.data.shapes_oracle; "
            f"print([m for m in {heavy} if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
