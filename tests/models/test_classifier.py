"""The noisy-latent classifier's doors, its pooling against torch's attention, and the gradient that guides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.core.trees import paths
from ldm_jax.models.classifier import NoisyClassifier
from ldm_jax.models.unet import LevelSpec, MiddleSpec, UNet
from ldm_jax.nn.attention import AttentionPool
from tests.nn.parity import agree, random_like, shapes_of

LEVELS = (LevelSpec(16, 1), LevelSpec(32, 1, "plain", 2, down="none"))
RNG = np.random.default_rng(0)
NOISY, TIME = RNG.standard_normal((3, 4, 4, 2)).astype(np.float32), np.float32([1, 500, 999])


@pytest.fixture(scope="module", params=["attention", "mean"])
def net(request):
    model = NoisyClassifier(LEVELS, 5, 32, pooling=request.param, pool_heads=4, dropout=0.5)
    return jax.jit(model.apply, static_argnames="train"), {"params": random_like(shapes_of(model, NOISY, TIME), 0)}


def test_an_example_has_its_own_logits_and_gradient(net):
    """Catches a pooling over the batch, logits that do not read the latent or the time, a gradient that is zero or not finite, and
    one example's log-probability moved by another's latent."""
    apply, params = net

    def chosen(noisy):
        return jnp.sum(jax.nn.log_softmax(apply(params, noisy, TIME))[jnp.arange(3), jnp.asarray([0, 3, 4])])

    logits = apply(params, NOISY, TIME)
    assert logits.shape == (3, 5) and logits.dtype == jnp.float32
    agree("alone", apply(params, NOISY[1:2], TIME[1:2]), logits[1:2])
    moved = apply(params, NOISY, np.float32([400, 500, 999]))
    assert not np.allclose(moved[0], logits[0], atol=1e-4) and np.allclose(moved[1:], logits[1:], atol=1e-5)
    slope = jax.jit(jax.grad(chosen))
    together, other = slope(NOISY), slope(np.concatenate([NOISY[:1] + 1, NOISY[1:]]))
    assert np.isfinite(together).all() and (np.abs(together).max(axis=(1, 2, 3)) > 1e-4).all()
    np.testing.assert_allclose(other[1:], together[1:], atol=1e-5)
    assert not np.allclose(other[0], together[0], atol=1e-4)
    drawn = [apply(params, NOISY, TIME, train=True, rngs={"dropout": jax.random.key(i)}) for i in (0, 1)]
    assert not np.allclose(*drawn, atol=1e-4), "no dropout in training"


def test_attention_pooling_is_torchs_attention_of_the_mean():
    """Oracle: torch's multi_head_attention_forward, asked by the first token alone. Catches heads and q, k, v mixed up, positions
    that are not added or added to the wrong token, the mean left out of the keys, a wrong scale."""
    torch = pytest.importorskip("torch")
    x, pool = RNG.standard_normal((3, 2, 4, 8)).astype(np.float32), AttentionPool(5, heads=2)
    params = random_like(shapes_of(pool, x), 1)
    tokens = x.reshape(3, 8, 8)
    tokens = np.concatenate([tokens.mean(1, keepdims=True), tokens], 1) + params["positions"]
    held = {name: torch.from_numpy(np.ascontiguousarray(params[name][part].T)) for name in ("qkv", "proj_out")
            for part in ("kernel",)}
    bias = {name: torch.from_numpy(params[name]["bias"]) for name in ("qkv", "proj_out")}
    given = torch.from_numpy(tokens.transpose(1, 0, 2).astype(np.float32))
    theirs, _ = torch.nn.functional.multi_head_attention_forward(
        given[:1], given, given, 8, 2, held["qkv"], bias["qkv"], None, None, False, 0.0, held["proj_out"], bias["proj_out"],
        need_weights=False)
    agree("pool", jax.jit(pool.apply)({"params": params}, x), theirs[0].numpy())


def test_the_way_down_has_the_unets_parameters():
    """Catches a second copy of the U-Net's way down that drifts from the first: paths and shapes are equal up to the middle."""
    from ldm_jax.core.types import Condition

    ours = dict(paths(shapes_of(NoisyClassifier(LEVELS, 5, 32), NOISY, TIME)))
    theirs = dict(paths(shapes_of(UNet(LEVELS, 2, 32), NOISY, TIME, Condition())))
    shared = {path: leaf.shape for path, leaf in theirs.items() if path.startswith(("time_", "conv_in", "down_", "middle"))}
    assert len(shared) > 30 and shared == {path: leaf.shape for path, leaf in ours.items() if not path.startswith(("norm_out", "pool"))}


WRONG = {
    "one class": (dict(classes=1), "at least 2"),
    "an unknown pooling": (dict(pooling="max"), "attention, mean"),
    "heads that do not divide": (dict(pool_heads=5), "divides the last level's width, 32"),
    "tokens": (dict(middle=MiddleSpec("transformer", 2)), "reads tokens"),
    "a width of time": (dict(time_width=12), "multiple of 8"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_field_is_refused(what):
    """Catches a network that is built and fails inside a program, or learns nothing."""
    changes, words = WRONG[what]
    with pytest.raises(UserError, match=words):
        NoisyClassifier(**(dict(levels=LEVELS, classes=5, time_width=32) | changes))


def test_other_shapes_are_refused():
    """Catches learned positions read at another size of latent, a time for another batch, and a side that does not halve."""
    model = NoisyClassifier(LEVELS, 5, 32)
    params = {"params": random_like(shapes_of(model, NOISY, TIME), 0)}
    with pytest.raises(UserError, match="made for 4 positions, got 4x4; a network for several sizes needs pooling='mean'"):
        jax.eval_shape(model.apply, params, jnp.zeros((3, 8, 8, 2)), TIME)
    with pytest.raises(UserError, match="B is 2, not 3"):
        jax.eval_shape(model.apply, params, NOISY, TIME[:2])
    with pytest.raises(UserError, match="noisy"):
        jax.eval_shape(model.apply, params, jnp.zeros((3, 5, 5, 2)), TIME)
