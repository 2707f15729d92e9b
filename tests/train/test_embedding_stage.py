"""The contrastive stage: its loss against the formula, its evaluation, and that it learns which caption is whose."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import base_key
from ldm_jax.models.embedder import Pairs, clip
from ldm_jax.train.embedding_stage import Contrastive, EmbeddingStage
from ldm_jax.train.optim import Average
from ldm_jax.train.steps import Descent

KEY, B = base_key(0), 6
LAYERS = dict(width=16, layers=1, heads=2)
NETWORK = clip(LAYERS | dict(patch=4), LAYERS | dict(vocabulary=12, length=5, bos=9, eos=10, pad=11), projection=8, side=8)


@pytest.fixture(scope="module")
def stage():
    rate = optax.linear_schedule(0.01, 0.01, 1)
    return EmbeddingStage(NETWORK, Contrastive(), Descent(optax.adam(rate), rate, Average(0.0))).build()


@pytest.fixture(scope="module")
def state(stage):
    return jax.jit(stage.init)(KEY)


@pytest.fixture(scope="module")
def evaluate(stage):
    return jax.jit(stage.evaluate)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    ids = np.concatenate([np.full((B, 1), 9), rng.integers(0, 9, (B, 3)), np.full((B, 1), 10)], axis=1).astype(np.int32)
    images = np.tile(rng.uniform(-1, 1, (B, 1, 1, 3)).astype(np.float32), (1, 8, 8, 1))
    return {"image": images, "tokens": ids[:, None], "weight": np.ones(B, np.float32)}


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_the_loss_is_the_mean_of_both_ways():
    """Mistake: one way only, a sum for a mean, another's caption taken for its own, cosines divided by the scale."""
    rng = np.random.default_rng(1)
    images, texts = unit(rng.normal(size=(5, 3))), unit(rng.normal(size=(5, 3)))
    logits = 7.0 * images @ texts.T
    of_images = -np.diagonal(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
    of_texts = -np.diagonal(logits - np.log(np.exp(logits).sum(axis=0, keepdims=True)))
    loss = Contrastive()
    losses, hits = loss(loss.logits(Pairs(jnp.float32(images), jnp.float32(texts), jnp.log(jnp.float32(7)))))
    np.testing.assert_allclose(losses, (of_images + of_texts) / 2, rtol=1e-5)
    wanted = [((logits[i].argmax() == i) + (logits[:, i].argmax() == i)) / 2 for i in range(5)]
    np.testing.assert_array_equal(hits, wanted)


def test_the_scale_has_a_limit_and_is_learned_below_it():
    """Mistake: a temperature that runs away, or that gets no gradient."""
    loss = Contrastive(limit=10.0)
    slope = jax.grad(lambda log_scale: loss.scale(log_scale))
    assert loss.scale(jnp.log(50.0)) == pytest.approx(10) and float(slope(jnp.log(50.0))) == 0
    assert loss.scale(jnp.log(4.0)) == pytest.approx(4) and float(slope(jnp.log(4.0))) == pytest.approx(4)
    with pytest.raises(UserError, match="limit=0.5: expected a number from 1"):
        Contrastive(0.5)


def test_it_learns_which_caption_is_whose(stage, state, evaluate, batch):
    """Mistake: the loss climbed, an encoder or the temperature without a gradient, embeddings that are not of length 1."""
    assert float(jnp.exp(state.params["network"]["log_scale"])) == pytest.approx(1 / 0.07)
    step, after = jax.jit(stage.step), state
    for _ in range(60):
        after, metrics = step(after, {}, {name: batch[name] for name in ("image", "tokens")}, KEY)
    assert metrics["found"] >= 0.6 and metrics["loss"] < 0.6 and not metrics["bad"], metrics  # ln 6 = 1.79 is to know nothing
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.params["network"], after.params["network"])
    assert all(max(jax.tree.leaves(moved[name])) > 1e-3 for name in ("image_encoder", "text_encoder", "log_scale"))
    pairs = jax.jit(NETWORK.apply)({"params": after.params["network"]}, batch["image"], batch["tokens"])
    np.testing.assert_allclose(np.linalg.norm(np.stack([pairs.images, pairs.texts]), axis=-1), 1, rtol=1e-5)
    total = evaluate(after.params, {}, batch, KEY)
    assert float(total["loss"][0]) / B == pytest.approx(float(metrics["loss"]), abs=0.1)


def test_records_that_fill_the_last_batch_are_no_candidates(state, evaluate, batch):
    """Mistake: a held-out loss that depends on the padding of the last batch, or counts it."""
    padded = batch | {"weight": np.float32([1, 1, 1, 1, 0, 0])}
    other = padded | {name: np.concatenate([batch[name][:4], batch[name][:2]]) for name in ("image", "tokens")}
    one, two = (evaluate(state.params, {}, b, KEY) for b in (padded, other))
    for name in ("loss", "found"):
        assert float(one[name][1]) == 4 and float(one[name][0]) == pytest.approx(float(two[name][0]), rel=1e-5)
    pairs = jax.jit(NETWORK.apply)({"params": state.params["network"]}, batch["image"], batch["tokens"])
    four = Pairs(np.asarray(pairs.images)[:4], np.asarray(pairs.texts)[:4], pairs.log_scale)
    assert float(one["loss"][0]) == pytest.approx(float(np.sum(Contrastive()(Contrastive().logits(four))[0])), rel=1e-4)


@pytest.mark.parametrize("change, words", [
    (dict(projection=0), "projection: 0 of images and 0 of texts"), (dict(temperature=0.0), "temperature=0.0: expected a number above 0"),
    (dict(side=10), "a side that patch divides"), (dict(image=LAYERS | dict(patch=4, projection=4)), "image.projection: both encoders"),
    (dict(text=LAYERS | dict(words=8)), "text.words: text does not take words"),
])
def test_numbers_that_do_not_fit(change, words):
    """Mistake: two widths that are compared, a division by zero, a key that nothing reads."""
    given = dict(image=LAYERS | dict(patch=4), text=LAYERS | dict(vocabulary=12, length=5, bos=9, eos=10, pad=11), projection=8, side=8)
    with pytest.raises(UserError, match=words):
        clip(**given | change)
