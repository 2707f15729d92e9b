"""The digits: the facts of the issue, and that enlarging and reducing are near inverses."""

import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.data.digits import Digits, enlarge_digits, reduce_digits


def test_sizes_types_and_labels():
    train, test = Digits("train"), Digits("test")
    assert (len(train), len(test)) == (1400, 397) and train.images.shape == (1400, 32, 32, 1)
    assert train.images.dtype == np.uint8 and train.images.max() == 255 and train.images.min() == 0
    assert set(train.labels) == set(range(10)) and train.classes == 10 and train.channels == 1
    record = test[5]
    assert record["label"] == test.labels[5] and np.array_equal(record["image"], test.images[5])


def test_the_split_is_stratified_and_disjoint():
    """Catches a split by position (the file is ordered by writer) and a test digit that is also trained on."""
    train, test = Digits("train"), Digits("test")
    shares = [np.bincount(s.labels) / len(s) for s in (train, test)]
    assert np.abs(shares[0] - shares[1]).max() < 0.003
    assert not {i.tobytes() for i in train.images} & {i.tobytes() for i in test.images}


def test_reduced_digits_are_the_originals():
    """Catches a wrong block order, scale or a shifted enlargement: the originals, in 0..16, come back nearly."""
    from sklearn.datasets import load_digits

    train, originals = Digits("train"), load_digits().data
    reduced = reduce_digits(train.images)
    nearest = ((originals[None] - reduced[:100, None]) ** 2).sum(-1).argmin(1)
    assert np.array_equal(load_digits().target[nearest], train.labels[:100])
    assert np.abs(originals[nearest] - reduced[:100]).mean() < 0.8 and np.abs(reduced).max() <= 16


def test_enlarging_is_the_cubic_with_a_half():
    """Oracle: Keys' cubic (a = -0.5) between half-pixel centres, inside the border. Catches another filter or a shift."""
    small = np.random.default_rng(0).random((1, 64)) * 8 + 4
    distance = np.abs((np.arange(32)[:, None] + 0.5) / 4 - 0.5 - np.arange(8))
    near, far = 1.5 * distance**3 - 2.5 * distance**2 + 1, -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0))
    expected = weights @ small.reshape(8, 8) @ weights.T * 255 / 16
    assert np.abs(enlarge_digits(small)[0, 6:-6, 6:-6, 0] - expected[6:-6, 6:-6]).max() <= 0.51


def test_bad_arguments():
    with pytest.raises(UserError, match="train and test"):
        Digits("validation")
    with pytest.raises(UserError, match="uint8"):
        reduce_digits(np.zeros((1, 32, 32, 1), np.float32))
