"""Parts of a condition that are dropped apart, and told one by one. Each test says which mistake it catches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import base_key, key_for, uniform_for
from ldm_jax.core.types import Condition
from ldm_jax.models.condition import ClassConditioner, dropped
from ldm_jax.models.conditioners import conditioner
from ldm_jax.models.several_condition import Several, joined, partials
from ldm_jax.models.size_condition import Sizes
from ldm_jax.models.spatial_condition import SemanticMap

LABEL, MAP, SIZES = ClassConditioner(4, 6, 0.5), SemanticMap(3, 0, 2, drop=0.3), Sizes(2, 4)
EXAMPLES = np.arange(8192)


def drawn(name):
    return uniform_for(key_for(base_key(0), name, step=3, example=EXAMPLES))


def test_parts_are_dropped_apart():
    """Mistakes: one draw for all, a rate `all_drop` that is left out, that drops each by its own draw, or what is always told."""
    label, of_map, sizes = (np.asarray(x) for x in dropped(Several((LABEL, MAP, SIZES), "apart", 0.2), drawn))
    near = 4 * 0.5 / len(EXAMPLES) ** 0.5
    for found, wanted in ((label, 1 - 0.5 * 0.8), (of_map, 1 - 0.7 * 0.8), (label & of_map, 0.2 + 0.8 * 0.15),
                          (label & ~of_map, 0.8 * 0.35), (of_map & ~label, 0.8 * 0.15)):
        assert abs(found.mean() - wanted) < near, (found.mean(), wanted)
    made, fields = Several((LABEL, MAP, SIZES), "apart", 0.2), {"label": np.zeros(2, int), "map": np.ones((2, 4, 4), int),
                                                                "sizes": np.ones((2, 2))}
    told, variables = made.init_with_output(jax.random.key(0), fields)
    found = made.apply(variables, fields, tuple(np.bool_(x) for x in ([True, False], [False, True], [True, True])))
    assert np.array_equal(found.image[0], told.image[0]) and not np.asarray(found.image[1]).any() and np.asarray(told.image[1]).any()
    assert np.array_equal(found.vector[1], told.vector[1]) and np.array_equal(found.vector[0, 6:], told.vector[0, 6:])
    assert not np.array_equal(found.vector[0, :6], told.vector[0, :6])


def test_dropped_together_is_what_it_was():
    """Mistake: another draw for models of several parts, whose runs would not go on as they began."""
    names = []
    label, of_map = dropped(Several((LABEL, MAP)), lambda name: names.append(name) or drawn(name))
    assert names == ["drop"]
    uniform = np.asarray(uniform_for(key_for(base_key(0), "drop", step=3, example=EXAMPLES)))
    assert np.array_equal(label, uniform < 0.5) and np.array_equal(of_map, uniform < 0.3)


def test_what_is_told_of_each_part():
    """Mistakes: a chain in another order, a part alone with those before it, a part without a null that is left out."""
    def one(value):
        return Condition(vector=jnp.full((1, 1), value))

    pairs = [(one(1.0), one(-1.0)), (one(2.0), None), (one(3.0), one(-3.0))]
    of = lambda alone: [c.vector[0].tolist() for c in partials(pairs, alone)]  # noqa: E731
    assert of(False) == [[-1, 2, -3], [1, 2, -3], [1, 2, 3]] and of(True) == [[-1, 2, -3], [1, 2, -3], [-1, 2, 3]]


def test_parts_of_other_sizes_get_a_line():
    """Mistake: images that do not fit side by side, which broke inside the compiled program."""
    with pytest.raises(UserError, match="images are of 4x4, 8x4 latents"):
        joined([Condition(image=jnp.zeros((1, 4, 4, 1))), Condition(image=jnp.zeros((1, 4, 8, 1)))])


@pytest.mark.parametrize("keys, says", [({"drops": "alone"}, "drops='alone'"), ({"all_drop": 0.1}, "only with drops='apart'"),
                                        ({"drops": "apart", "all_drop": 1.5}, "a rate from 0 to 1"), ({"drop": 0.1}, "does not take drop")])
def test_sections_of_several_are_checked(keys, says):
    """Mistake: a rate that nothing reads."""
    parts = (dict(name="class", width=4), dict(name="sizes"))
    assert conditioner({"name": "several", "parts": parts, "drops": "apart", "all_drop": 0.1}, "c", 4, 4).all_drop == 0.1
    with pytest.raises(UserError, match=says):
        conditioner({"name": "several", "parts": parts} | keys, "config.conditioner", 4, 4)
