"""The table of a guidance sweep: its shares, errors and verdicts, on samples whose class is known."""

import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.data.digits import Digits
from ldm_jax.evals.sweep import in_errors, page, standard_error, sweep_digits

TRAIN, HELD_OUT = Digits("train"), Digits("test")
SPLITS = (TRAIN.images, TRAIN.labels), (HELD_OUT.images, HELD_OUT.labels)
LABELS = np.arange(100) % 10


def samples(scale: float) -> np.ndarray:
    """Training digits, of which a share scale / 10 is of the asked class and the rest of the next class."""
    right = np.arange(100) // 10 < scale
    asked = np.where(right, LABELS, (LABELS + 1) % 10)
    return np.stack([TRAIN.images[np.flatnonzero(TRAIN.labels == label)[i // 10]] for i, label in enumerate(asked)])


def test_a_sweep_tells_each_share_and_whether_it_rises():
    """Catches rows of another scale's samples, labels that do not go with the samples, the gain from the best row to itself, a fall
    that is not told."""
    found = sweep_digits(samples, (2, 9, 5), LABELS, *SPLITS, settings={"steps": 25})
    shares = [row["accuracy"] for row in found["rows"]]
    np.testing.assert_allclose(shares, [0.2, 0.9, 0.5], atol=0.03)
    assert found["best_scale"] == 9 and found["n"] == 100
    np.testing.assert_allclose(found["gain"], shares[1] - shares[0])
    np.testing.assert_allclose(found["gain_in_errors"], found["gain"] / np.hypot(*[r["standard_error"] for r in found["rows"][:2]]))
    assert found["worst_step_in_errors"] == in_errors(*found["rows"][1:]) < -5
    told = page(found, "title")
    assert told.startswith("title") and "steps 25" in told and "n 100 a scale" in told and len(told.splitlines()) == 11


def test_the_standard_error_of_a_share():
    """Catches sqrt(p (1 - p)) without the number, and a division by zero where both shares are 1. 80 of 100: 0.04."""
    assert standard_error(0.8, 100) == pytest.approx(0.04)
    sure = {"accuracy": 1.0, "standard_error": 0.0}
    assert in_errors(sure, sure) == 0 and in_errors({"accuracy": 0.5, "standard_error": 0.0}, sure) == np.inf


def test_no_scale_is_refused():
    """Catches an empty table printed as a result."""
    with pytest.raises(UserError, match="at least one"):
        sweep_digits(samples, (), LABELS, *SPLITS)
