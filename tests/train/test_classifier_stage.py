"""Stage 3: a classifier of noisy latents learns on the tiny config, is measured by time, and says what it cannot be trained on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import choices
from ldm_jax import experiment as ex
from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import base_key
from ldm_jax.train.classifier_stage import CELL, CrossEntropy

KEY = base_key(0)
FACTS = choices.Facts(1, 8, 10)


@pytest.fixture(scope="module")
def batch():
    """16 digits, 8x8, with what the loop's held-out batches have beside them."""
    from ldm_jax.data.batches import stream
    from ldm_jax.data.digits import Digits

    found = next(stream(Digits("train"), seed=0, batch=16, threads=0))
    image = found["image"].reshape(16, 8, 4, 8, 4, 1).mean((2, 4))
    return {"image": image, "label": found["label"], "index": np.arange(16, dtype=np.int32), "weight": np.ones(16, np.float32)}


@pytest.fixture(scope="module")
def stage(make_classifier_config):
    changes = {"data.resolution": 8, "data.batch": 16, "learning_rate": {"name": "constant", "peak": 5e-3}, "ema.decay": 0.9,
               "schedule": {"name": "cosine"}}  # of whose times fewer are noise alone
    return ex.build(make_classifier_config("pixels", **changes), FACTS).stage()


@pytest.fixture(scope="module")
def trained(stage, batch):
    """(state, metrics of each step) after 150 steps on one batch."""
    state, step, told = jax.jit(stage.init)(KEY), jax.jit(stage.step), []
    for _ in range(150):
        state, metrics = step(state, {"first_stage": {}}, {name: batch[name] for name in ("image", "label")}, KEY)
        told.append({name: float(value) for name, value in metrics.items()})
    return state, told


def test_stage_3_learns(trained):
    """Catches a loss without gradient, labels that go with other rows' latents (16 digits could then not be told apart), and
    metrics that are not told or not finite."""
    state, told = trained
    assert all(np.isfinite(list(metrics.values())).all() for metrics in told) and int(state.step) == 150 and not bool(state.bad)
    losses, hits = [m["loss"] for m in told], [m["accuracy"] for m in told]
    print(f"loss {np.mean(losses[:5]):.2f} to {np.mean(losses[-20:]):.2f}, accuracy to {np.mean(hits[-20:]):.2f}")
    assert abs(losses[0] - np.log(10)) < 1 and np.mean(losses[-20:]) < 0.7 * losses[0] and np.mean(hits[-20:]) > 0.45
    assert set(state.params) == {"network"} and state.ema is not None


def test_held_out_accuracy_is_by_record_and_by_time(stage, trained, batch):
    """Catches draws by the batch or the run's key, weights of padding that count, bins of other records, and a classifier that is not
    told the noise: clean digits that it has learned are known, pure noise is not."""
    evaluate, params = jax.jit(stage.evaluate), trained[0].params
    shown = {name: np.concatenate([value] * 10) for name, value in batch.items()} | {"index": np.arange(160, dtype=np.int32)}
    shown["index"] = shown["index"] % 16 * 10 + shown["index"] // 16  # each record in each bin
    once = evaluate(params, {"first_stage": {}}, shown, KEY)
    halves = [evaluate(params, {"first_stage": {}}, {name: v[s] for name, v in shown.items()}, KEY) for s in (slice(0, 80), slice(80, 160))]
    for name, (total, weight) in once.items():
        np.testing.assert_allclose([sum(float(h[name][i]) for h in halves) for i in (0, 1)], [total, weight], rtol=1e-5, atol=1e-5)
    assert {f"time_{i}" for i in range(10)} | {"loss", "accuracy"} == once.keys()
    assert [float(once[f"time_{i}"][1]) for i in range(10)] == [16.0] * 10
    by_time = [float(once[f"time_{i}"][0]) / 16 for i in range(10)]
    print("accuracy by time", by_time)
    assert np.mean(by_time[:3]) > 0.8 and by_time[-1] < 0.6
    assert sum(float(once[f"time_{i}"][0]) for i in range(10)) == float(once["accuracy"][0])
    half = evaluate(params, {"first_stage": {}}, shown | {"weight": (np.arange(160) < 80).astype(np.float32)}, KEY)
    assert float(half["accuracy"][1]) == 80


def test_the_preview_is_the_probability_of_the_label(stage, trained, batch):
    """Catches a picture out of range, of one time only, or with noise to the left."""
    strip = jax.jit(stage.preview)(trained[0].params, {"first_stage": {}}, batch, KEY)["confidence"]
    assert strip.shape == (16, CELL, 10 * CELL, 1) and np.abs(strip).max() <= 1
    cells = np.asarray(strip)[:, 0, ::CELL, 0].mean(0)
    assert cells[:3].mean() > cells[-2:].mean() + 0.5


def test_cross_entropy_is_its_closed_form():
    """Catches smoothing on the other classes only, or taken off twice; in float64 by hand."""
    logits, label = np.float32([[1, 2, 0], [0, -1, 3]]), np.int32([1, 0])
    log_p = logits - np.log(np.exp(logits.astype(np.float64)).sum(1, keepdims=True))
    for smoothing in (0.0, 0.3):
        q = np.full((2, 3), smoothing / 3)
        q[[0, 1], label] += 1 - smoothing
        found = CrossEntropy(smoothing)(jnp.asarray(logits), jnp.asarray(label))
        np.testing.assert_allclose(found, -(q * log_p).sum(1), rtol=1e-6)


WRONG = {
    "no labels": ({}, choices.Facts(1, 8, 0), "config.data.source has no labels"),
    "one class": ({}, choices.Facts(1, 8, 1), "config.data.source has 1 class"),
    "a smoothing of 1": ({"loss.smoothing": 1.0}, FACTS, "config.loss: smoothing=1.0"),
    "a stale key": ({"loss.huber": 1.0}, FACTS, "config.loss.huber"),
    "pooling": ({"network.pooling": "max"}, FACTS, "config.network: pooling='max'"),
    "a U-Net": ({"network.name": "unet"}, FACTS, "config.network.name='unet': expected one of unet_encoder"),
    "latents that grow": ({"schedule": {"name": "edm"}}, FACTS, "config.schedule: noisy latents grow to a deviation of 80"),
    "an infinite time": ({"schedule": {"name": "flow"}, "time_input": {"name": "log_snr"}}, FACTS, "config.time_input: the network would"),
    "times that remember": ({"times": {"name": "importance"}}, FACTS, "config.times: times that remember losses"),
    "a side that does not halve": ({}, choices.Facts(1, 9, 10), "2 levels need a latent side that is a multiple of 2"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_config_is_one_clear_line(what, make_classifier_config):
    """Catches a classifier of nothing, and a choice of another task that is silently not read."""
    changes, facts, words = WRONG[what]
    config = make_classifier_config("pixels", **{"data.resolution": 8} | changes)
    with pytest.raises(UserError) as found:
        ex.build(config, facts)
    assert str(found.value).startswith(words) or words in str(found.value) and "\n" not in str(found.value), found.value


def test_sections_of_other_tasks_are_refused(make_classifier_config):
    """Catches a conditioner or a sampler that a classifier's config has and nothing reads."""
    config = make_classifier_config("pixels") | {"conditioner": {"name": "none"}}
    with pytest.raises(UserError, match="a config of task 'classifier' does not read 'conditioner'"):
        ex.check_keys(config)
