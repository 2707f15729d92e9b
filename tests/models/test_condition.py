"""Conditioners."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.core.choose import choose
from ldm_jax.core.errors import UserError
from ldm_jax.core.types import Condition
from ldm_jax.models.condition import ClassConditioner, Unconditional
from ldm_jax.models.conditioners import CONDITIONERS

FIELDS = {"label": np.int32([2, 0, 2])}


@pytest.mark.parametrize("into", ["vector", "tokens"])
def test_dropped_examples_get_the_null_and_no_other(into):
    """Mistake: the whole batch dropped, a class used for the null, or a null that no gradient reaches."""
    conditioner = ClassConditioner(classes=4, width=6, into=into)
    params = conditioner.init(jax.random.key(0), FIELDS)
    told = getattr(conditioner.apply(params, FIELDS, np.array([False, True, False])), into)
    null = getattr(conditioner.apply(params, 2, method="null"), into)
    kept = getattr(conditioner.apply(params, FIELDS), into)
    assert told.shape == ((3, 6) if into == "vector" else (3, 1, 6)) and null.shape[0] == 2
    assert np.array_equal(told[1], null[0]) and np.array_equal(null[0], null[1])
    assert np.array_equal(told[0], kept[0]) and np.array_equal(kept[0], kept[2]) and not np.array_equal(kept[1], null[0])
    gradient = jax.grad(lambda p: jnp.sum(getattr(conditioner.apply(p, FIELDS, np.array([True] * 3)), into)))(params)
    rows = np.asarray(gradient["params"]["embedding"]).any(-1)
    assert rows.tolist() == [False] * 4 + [True]


def test_without_dropping_there_is_no_null():
    """Mistake: a row that no gradient ever reached, taken for a null; or a table that no published one fits."""
    always = ClassConditioner(classes=4, width=6, drop=0.0)
    params = always.init(jax.random.key(0), FIELDS)
    assert params["params"]["embedding"].shape == (4, 6)
    told = always.apply(params, FIELDS, np.array([True] * 3)).vector
    assert np.array_equal(told, params["params"]["embedding"][FIELDS["label"]])
    assert np.array_equal(always.apply(params, 3, FIELDS, method="null").vector, told)
    with pytest.raises(UserError, match="label: this model is always told it"):
        always.apply(params, 3, method="null")


def test_labels_are_checked_on_the_host():
    """Mistake: a label out of range, which an indexing would clamp to another class."""
    conditioner = ClassConditioner(classes=4, width=6)
    conditioner.check(FIELDS)
    for label, match in ((np.int32([1, 4]), "label=4: expected a class from 0 to 3"), (np.int32([-1]), "label=-1"),
                         (np.float32([1.0]), "whole numbers"), (np.int32([[1]]), "whole numbers")):
        with pytest.raises(UserError, match=match):
            conditioner.check({"label": label})
    with pytest.raises(UserError, match="needs labels"):
        conditioner.check({"image": 0})


def test_unconditional_tells_nothing():
    """Mistake: parameters or a drop rate where there is nothing to drop."""
    conditioner = choose(CONDITIONERS, {"name": "none"}, "config.condition")
    assert conditioner == Unconditional() and conditioner.drop == 0.0 and not jax.tree.leaves(conditioner.init(jax.random.key(0), {}))
    assert conditioner.apply({}, {}) == Condition() and conditioner.apply({}, 3, method="null") == Condition()
    conditioner.check({})


def test_a_config_chooses_and_is_checked():
    """Mistake: linen's own fields open to a config, or a rate of 10 taken for 10 %."""
    chosen = choose(CONDITIONERS, {"name": "class", "width": 8, "into": "tokens"}, "config.condition", classes=10)
    assert (chosen.classes, chosen.width, chosen.drop, chosen.into) == (10, 8, 0.1, "tokens")
    for section in ({"width": 8, "drop": 10.0}, {"width": 8, "into": "token"}, {"width": 8, "parent": 1}, {"width": 8, "classes": 3}):
        with pytest.raises(UserError):
            choose(CONDITIONERS, {"name": "class"} | section, "config.condition", classes=10)
