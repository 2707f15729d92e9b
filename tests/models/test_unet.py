"""The U-Net's doors; its arithmetic is tested against diffusers, its structure against the published counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.core.types import Condition
from ldm_jax.models.levels import shared_groups
from ldm_jax.models.unet import LevelSpec, MiddleSpec, UNet
from tests.nn.parity import agree, random_like, shapes_of

LEVELS = (LevelSpec(16, 1), LevelSpec(32, 1, "transformer", 2, down="none"))
RNG = np.random.default_rng(0)
NOISY, TIME = RNG.standard_normal((3, 4, 4, 2)).astype(np.float32), np.float32([1, 500, 999])
TOKENS = RNG.standard_normal((3, 5, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def net():
    model = UNet(LEVELS, 2, 32, dropout=0.5)
    shapes = shapes_of(model, NOISY, TIME, Condition(tokens=TOKENS))
    return jax.jit(model.apply, static_argnames="train"), {"params": random_like(shapes, 0)}


def test_it_starts_at_zero():
    """Mistake: a last convolution with a random start: the first loss is then not that of a zero prediction."""
    model = UNet(LEVELS, 2, 32)
    told = Condition(tokens=TOKENS)
    last = jax.jit(lambda: model.init(jax.random.key(0), NOISY, TIME, told)["params"]["conv_out"])()
    params = random_like(shapes_of(model, NOISY, TIME, told), 0) | {"conv_out": last}
    assert not np.any(jax.jit(model.apply)({"params": params}, NOISY, TIME, told))


def test_an_example_has_no_neighbours(net):
    """Mistake: a statistic over the batch, or time i given to example j."""
    apply, params = net
    together = apply(params, NOISY, TIME, Condition(tokens=TOKENS))
    agree("alone", apply(params, NOISY[1:2], TIME[1:2], Condition(tokens=TOKENS[1:2])), together[1:2])
    moved = apply(params, NOISY, np.float32([400, 500, 999]), Condition(tokens=TOKENS))
    assert not np.allclose(moved[0], together[0], atol=1e-4) and np.allclose(moved[1:], together[1:], atol=1e-5)


def test_masked_tokens_are_not_read(net):
    """Mistake: the condition's mask dropped on the way to the blocks."""
    apply, params = net
    mask = np.arange(5)[None] < np.full((3, 1), 3)
    rubbish = np.where(mask[..., None], TOKENS, 50.0)
    agree("mask", apply(params, NOISY, TIME, Condition(tokens=rubbish, token_mask=mask)),
          apply(params, NOISY, TIME, Condition(tokens=TOKENS, token_mask=mask)))
    assert not np.allclose(apply(params, NOISY, TIME, Condition(tokens=rubbish)), apply(params, NOISY, TIME, Condition(tokens=TOKENS)))


def test_dropout_is_for_training(net):
    """Mistake: dropout at sampling, or none in training."""
    apply, params = net
    told = Condition(tokens=TOKENS)
    apply(params, NOISY, TIME, told)  # needs no key
    drawn = [apply(params, NOISY, TIME, told, train=True, rngs={"dropout": jax.random.key(i)}) for i in (0, 1)]
    assert not np.allclose(*drawn, atol=1e-4)


def test_bfloat16_is_inside_only():
    """Mistake: bfloat16 parameters or output."""
    model = UNet(LEVELS, 2, 32, dtype="bfloat16")
    told = Condition(tokens=TOKENS)
    params = {"params": random_like(shapes_of(model, NOISY, TIME, told), 0)}
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes_of(model, NOISY, TIME, told)))
    out = jax.jit(model.apply)(params, NOISY, TIME, told)
    assert out.dtype == jnp.float32
    agree("bfloat16", out, jax.jit(UNet(LEVELS, 2, 32).apply)(params, NOISY, TIME, told), limit=0.05)


def test_an_added_vector_is_added():
    """Mistake: a vector that is projected under the name "added", or not read at all."""
    model = UNet((LevelSpec(16, 1, down="none"),), 2, 32, vector="added")
    vector = RNG.standard_normal((3, 32)).astype(np.float32)
    told = Condition(vector=vector)
    shapes = shapes_of(model, NOISY, TIME, told)
    assert not any(name.startswith("vector") for name in shapes)
    params = {"params": random_like(shapes, 0)}
    moved = params["params"] | {"time_2": {**params["params"]["time_2"], "bias": params["params"]["time_2"]["bias"] + vector[0]}}
    agree("added", jax.jit(model.apply)(params, NOISY[:1], TIME[:1], Condition(vector=vector[:1])),
          jax.jit(model.apply)({"params": moved}, NOISY[:1], TIME[:1], Condition()))


def fails(match, *args, model=None):
    with pytest.raises(UserError, match=match):
        jax.eval_shape((model or UNet(LEVELS, 2, 32)).init, jax.random.key(0), *args)


def test_inputs_that_do_not_fit_are_named():
    """Mistake: a size that fails at a concatenation, tokens silently not read, shapes silently broadcast."""
    told = Condition(tokens=TOKENS)
    fails("5x4 .* not divisible by 2; .* 4x4 and 6x4", RNG.standard_normal((3, 5, 4, 2)), TIME, told)
    fails("none given", NOISY, TIME, Condition())
    fails("no level reads them", NOISY, TIME, told, model=UNet((LevelSpec(16, 1, down="none"),), 2, 32))
    fails("time: expected .B=3", NOISY, TIME[:1], told)
    fails("condition.image", NOISY, TIME, Condition(tokens=TOKENS, image=NOISY[:, :2]))
    fails("condition.tokens: .*B is 1, not 3", NOISY, TIME, Condition(tokens=TOKENS[:1]))
    added = UNet((LevelSpec(16, 1, down="none"),), 2, 32, vector="added")
    fails("D is 8, not 32", NOISY, TIME, Condition(vector=TOKENS[:, 0]), model=added)


def test_specs_that_do_not_fit_are_named():
    """Mistake: head widths rounded down, a level that is never reached, a misspelt kind taken for none."""
    with pytest.raises(UserError, match="width=30 is not divisible by heads=4; it can have 1, 2, 3, 5, 6"):
        LevelSpec(30, 1, "plain", 4)
    with pytest.raises(UserError, match="none, plain, transformer"):
        LevelSpec(32, 1, "linear")
    with pytest.raises(UserError, match="level cross_only=True: only attention='transformer' attends to tokens, and it is 'plain'"):
        LevelSpec(32, 1, "plain", cross_only=True)
    with pytest.raises(UserError, match="conv, residual, none"):
        LevelSpec(32, 1, down="pool")
    with pytest.raises(UserError, match="level 0: down='none'"):
        UNet((LevelSpec(16, 1, down="none"), LevelSpec(16, 1, down="none")), 2, 32)
    with pytest.raises(UserError, match="level 0: down='conv'; expected 'none', it is the last"):
        UNet((LevelSpec(16, 1),), 2, 32)
    with pytest.raises(UserError, match="middle width=32 is not divisible by heads=3"):
        UNet(LEVELS, 2, 32, middle=MiddleSpec("plain", 3))
    with pytest.raises(UserError, match="multiple of 8"):
        UNet(LEVELS, 2, 20)


def test_groups_that_a_network_shares():
    """Mistake: a number that is right for one width and leaves one channel a group, or none whole, in another."""
    assert [shared_groups(-1, widths) for widths in ([48, 96], [16, 32, 64], [128, 160], [192, 960], [8, 12])] == [8, 4, 32, 32, 2]
    assert shared_groups(0, [5]) == 0 and shared_groups(8, [16, 40]) == 8
    with pytest.raises(UserError, match="groups=32: a norm of width 48 cannot have them; .* or one of 1, 2, 4, 8, 16$"):
        shared_groups(32, [96, 48])
