"""The digits evaluation on fakes whose verdict is known: real digits, copies, a collapse, noise, wrong labels."""

import json

import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.data.digits import Digits
from ldm_jax.evals.digits import evaluate_digits, nearest_distance, spread
from ldm_jax.evals.report import report, table

LABELS = np.repeat(np.arange(10), 40)


@pytest.fixture(scope="module")
def splits():
    return tuple((split.images, split.labels) for split in (Digits("train"), Digits("test")))


@pytest.fixture(scope="module")
def judge(splits):
    return lambda images, labels=LABELS: evaluate_digits(images, labels, *splits, settings={"seeds": "0..399"})


def of_each_class(images, labels, count=40):
    return images[np.concatenate([np.where(labels == k)[0][:count] for k in range(10)])]


@pytest.fixture(scope="module")
def copied(splits, judge):
    return judge(of_each_class(*splits[0]))


def test_real_digits_pass_but_are_called_copies(copied):
    """Catches a measure that calls real digits bad, and copies of the training set that pass unmarked."""
    assert copied["accuracy"]["samples"] > 0.99 and copied["accuracy"]["held_out"] > 0.98
    assert copied["frechet_ratio"] < 2
    assert copied["nearest_training_distance"]["samples"] == 0 < copied["nearest_training_distance"]["held_out"]
    assert copied["copies"] == {"samples": 1.0, "held_out": 0.0}
    assert [line.split(":")[0] for line in copied["warnings"]] == ["copies"]
    assert copied["n"] == {"samples": 400, "train": 1400, "held_out": 397}


def test_half_of_the_training_digits_against_the_other_half_is_clean(splits):
    """Catches warnings that fire on honest samples: digits that were never seen, one set against another."""
    (images, labels), held_out = splits
    result = evaluate_digits(images[700:], labels[700:], (images[:700], labels[:700]), held_out)
    assert result["warnings"] == [] and result["accuracy"]["samples"] > 0.97
    assert 0.5 < result["frechet_ratio"] < 1.5
    assert result["copies"]["samples"] < 0.03


def test_one_image_a_class_is_called_a_collapse(splits, judge):
    """Catches an evaluation that a generator of ten good images would pass."""
    images, labels = splits[0]
    means = np.stack([images[labels == k].mean(0).round().astype(np.uint8) for k in range(10)])
    result = judge(means[LABELS])
    assert result["accuracy"]["samples"] == 1.0
    assert result["spread_within_class"]["samples"] == 0 < result["spread_within_class"]["held_out"]
    assert result["frechet_ratio"] > 3 and any(line.startswith("collapse") for line in result["warnings"])


def test_the_distance_is_to_the_held_out_digits(splits, judge):
    """Catches samples measured against the training digits, where a copy of them would look perfect."""
    result = judge(*splits[1])
    assert result["frechet_distance"]["samples"] < 1e-9 < result["frechet_distance"]["held_out"]
    assert judge(*splits[0])["frechet_ratio"] == pytest.approx(1.0)


def test_noise_and_wrong_labels_fail(splits, judge):
    """Catches an accuracy read against the classifier's own guess instead of the intended class."""
    noise = np.random.default_rng(0).integers(0, 256, (400, 32, 32, 1), dtype=np.uint8)
    result = judge(noise)
    assert result["accuracy"]["samples"] < 0.3 and result["frechet_ratio"] > 20
    assert judge(of_each_class(*splits[0]), (LABELS + 1) % 10)["accuracy"]["samples"] < 0.02


def test_confidence_is_measured_against_held_out_digits(splits, judge):
    """Catches a bar of another quantile or split, and a classifier that is sure of noise or of the mean of two digits."""
    images, labels = splits[1]
    rng = np.random.default_rng(0)
    held_out = judge(images, labels)["confident"]
    assert held_out["samples"] == held_out["held_out"] == pytest.approx(0.9, abs=1 / 397)
    assert 0.93 < judge(*splits[0])["confident"]["samples"] < 0.99
    noise = rng.integers(0, 256, (400, 32, 32, 1), dtype=np.uint8)
    between = (images.astype(int) + images[rng.permutation(len(images))]) // 2
    grainy = np.clip(images + 32 * np.repeat(np.repeat(rng.normal(size=(397, 8, 8, 1)), 4, 1), 4, 2), 0, 255)
    shares = [judge(bad.astype(np.uint8), None)["confident"]["samples"] for bad in (noise, between, grainy)]
    assert shares[0] == 0 and shares[1] < 0.45 and shares[2] < 0.85, shares


def test_samples_that_were_asked_for_no_digit(splits, judge):
    """Catches a generator of one class or one image that passes where no class is asked for, and an accuracy of nothing."""
    images, labels = splits[0]
    result = judge(images[:400], None)
    assert not {"accuracy", "spread_within_class"} & result.keys() and result["warnings"][0].startswith("copies")
    assert result["classes"]["samples"] > 9.5 and result["classes"]["held_out"] > 9.9
    assert 0.05 < result["rarest_class"]["samples"] < 0.1 < result["commonest_class"]["samples"] < 0.15
    assert result["spread"]["samples"] == pytest.approx(result["spread"]["held_out"], rel=0.05)
    assert result["spread"]["samples"] > judge(*splits[0])["spread_within_class"]["samples"]
    assert json.loads(json.dumps(result)) == result
    threes = judge(images[labels == 3], None)
    assert threes["classes"]["samples"] < 1.1 and any("classes" in line for line in threes["warnings"])
    assert any("apart" in line for line in judge(np.repeat(images[:1], 50, 0), None)["warnings"])


def test_nearest_distance_by_brute_force():
    """Catches a block edge that loses or repeats rows."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(23, 5)), rng.normal(size=(31, 5))
    expected = [min(np.linalg.norm(x - y) for y in b) for x in a]
    for block in (4, 23, 100):
        np.testing.assert_allclose(nearest_distance(a, b, block), expected)


def test_spread_counts_pairs_of_different_points():
    """Catches pairs of a point with itself (a class of 2 would halve) and classes weighted by their size."""
    points, labels = np.array([[0.0], [2.0], [10.0], [16.0], [13.0], [5.0]]), np.array([0, 0, 1, 1, 1, 2])
    assert spread(points, labels, (0, 1, 2)) == (2.0 + 4.0) / 2


def test_the_result_is_json_and_prints_as_an_aligned_table(copied):
    """Catches numpy scalars in the result, and a column that does not line up."""
    assert json.loads(json.dumps(copied)) == copied
    page = report(copied, "digits")
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len({len(row) for row in rows}) == 1 and len(rows) == 9
    assert "held out" in rows[0] and "seeds 0..399" in page and "WARNING copies" in page and "gamma 0.001" in page


def test_table_of_one_column():
    assert report({"psnr_db": 31.23456, "images": 397}) == "\n".join(
        ["| measure | value |", "|---------|------:|", "| psnr db | 31.23 |", "| images  |   397 |"])
    assert table(["a"], [[None]]).endswith("|   |")


@pytest.mark.parametrize("images, labels, match", [
    (np.zeros((4, 32, 32, 1), np.float32), np.zeros(4, int), "uint8"),
    (np.zeros((4, 32, 32, 1), np.uint8), np.zeros(3, int), "one label an image"),
    (np.zeros((4, 16, 16, 1), np.uint8), np.zeros(4, int), "32"),
])
def test_doors(judge, images, labels, match):
    with pytest.raises(UserError, match=match):
        judge(images, labels)
