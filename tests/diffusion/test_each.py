"""Guidance of each part of a condition, against closed forms. Each test says which mistake it catches."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.core.types import Condition, Level
from ldm_jax.diffusion.guidance import OFF, ClassifierFree, EachPart, Guided, Partials
from ldm_jax.diffusion.guiding import choice

ALPHA, SIGMA = 0.6, 0.8
LEVEL, TIME = Level(jnp.float32(ALPHA), jnp.float32(SIGMA)), jnp.full(2, 500.0)
NOISY = np.float32(np.random.default_rng(0).standard_normal((2, 1, 1, 2)))
SEEN, SPREAD = np.float32([[0.7, -1.2], [0.1, 0.5]]), (0.5, 0.2)
CALLS = []


def denoise(params, noisy, level, time, condition):
    """The exact denoiser of x ~ N(0, 1) in two channels, told x + N(0, SPREAD) of those that the vector's second half names."""
    CALLS.append(noisy.shape[0])
    seen, known = jnp.split(condition.vector, 2, axis=1)
    precision = 1 + (level.alpha / level.sigma) ** 2 + known / jnp.asarray(SPREAD)
    clean = (level.alpha / level.sigma**2 * noisy + (known * seen / jnp.asarray(SPREAD))[:, None, None]) / precision[:, None, None]
    return clean, (noisy - level.alpha * clean) / level.sigma


def told(*known) -> Condition:
    return Condition(vector=jnp.concatenate([jnp.asarray(SEEN) * np.float32(known), jnp.tile(jnp.float32(known), (2, 1))], axis=1))


NULL, FIRST, SECOND, BOTH = told(0, 0), told(1, 0), told(0, 1), told(1, 1)


def noise(condition):
    return np.float64(denoise(None, NOISY, LEVEL, TIME, condition)[1])


def guided(section, *some):
    way = choice(section)
    weights = jnp.asarray([column[0] for column in way.columns(np.ones(1))], jnp.float32)
    return way.program(denoise)(None, NOISY, LEVEL, TIME, Partials(NULL, some), weights)


def each(weights, form="chain", **more):
    return {"name": "each", "weights": weights, "form": form} | more


def test_chain_and_sum_are_the_formulas():
    """Catches weights of the wrong part, a chain whose later weight multiplies the earlier part too, and D and E that disagree."""
    null, first, second, both = map(noise, (NULL, FIRST, SECOND, BOTH))
    clean, found = guided(each((3.0, 1.5)), FIRST, BOTH)
    np.testing.assert_allclose(found, null + 3.0 * (first - null) + 1.5 * (both - first), atol=1e-5)
    np.testing.assert_allclose(ALPHA * clean + SIGMA * found, NOISY, atol=1e-5)
    _, found = guided(each([3.0, 1.5], "sum"), FIRST, SECOND)
    np.testing.assert_allclose(found, null + 3.0 * (first - null) + 1.5 * (second - null), atol=1e-5)


def test_a_sum_of_independent_conditions_is_both():
    """Catches a sum that counts the null twice: where two conditions are independent, weights of 1 are the exact posterior."""
    np.testing.assert_allclose(guided(each((1.0, 1.0), "sum"), FIRST, SECOND)[1], noise(BOTH), atol=1e-5)


def test_a_chain_of_equal_weights_is_classifier_free():
    """Catches a chain that does not telescope: it is plain guidance exactly, in one call of the network on three times the examples."""
    CALLS.clear()
    found = guided(each((2.5, 2.5)), FIRST, BOTH)
    assert CALLS == [6]
    wanted = ClassifierFree()(denoise)(None, NOISY, LEVEL, TIME, Guided(BOTH, NULL), jnp.float32([2.5]))
    for f, w in zip(found, wanted):
        np.testing.assert_array_equal(f, w)


def test_columns_and_programs():
    """Catches a chain of ones that still pays, weights in the program (each would compile), and an interval that is not read,
    weights of a list, which nothing can hash."""
    assert choice(each((1.0, 1))).program is OFF and choice(each((1.0, 1))).columns(np.ones(3)) == ()
    assert choice(each((3.0, 2.0))).program == EachPart(2) == choice(each((1.0, 1.0), "sum")).program and EachPart(2).terms == 2
    assert hash(choice(each([3.0, 2.0]))) == hash(choice(each((3.0, 2.0))))
    chain, total = (choice(section).columns(np.ones(4)) for section in (each((3.0, 1.5), stop=0.5), each((3.0, 1.5), "sum")))
    assert [c.tolist() for c in chain] == [[1.5, 1.5, 0, 0], [1.5, 1.5, 1, 1]]
    assert [c.tolist() for c in total] == [[3] * 4, [1.5] * 4]


@pytest.mark.parametrize("section, says", [
    (each(2.0), "expected a number for each condition"), (each(()), "expected a number for each"), (each((1.0, True)), "a number for each"),
    (each((1.0, float("inf"))), "not finite"), (each((2.0, 1.0), "product"), "form"), (each((2.0, 1.0), low=-1.0), "0 <= low"),
    (each((2.0, 1.0), rescale=0.7), "does not take rescale"),
    (each((2.0, 1.0), "sum", stop=0.5), "form='sum' with .*stop=0.5: a sum has no"),
    (each((2.0, 1.0), "sum", low=0.5), "form='sum' with low=0.5"),
    (each((2.0, 1.0), "sum", high=9.0), "expected none of these keys")], ids=str)
def test_bad_weights_get_a_line(section, says):
    """Catches weights that break, or are ignored, in the compiled program; a sum that is not off outside of its interval."""
    with pytest.raises(UserError, match=says):
        choice(section)


def test_conditions_that_do_not_fit_get_a_line():
    """Catches a plain condition, another number of them, and parts of other shapes."""
    run = EachPart(2)(denoise)
    short = types.SimpleNamespace(given=Condition(), null=NULL)
    for condition, says in ((Guided(BOTH, NULL), r"expected Partials\(null, told\)"), (Partials(NULL, (BOTH,)), "2 weights, and 1 cond"),
                            (Partials(NULL, (BOTH, short.given)), "different parts"),
                            (Partials(NULL, (BOTH, jax.tree.map(lambda x: x[:1], BOTH))), "one shape")):
        with pytest.raises(UserError, match=says):
            run(None, NOISY, LEVEL, TIME, condition, jnp.ones(2))
