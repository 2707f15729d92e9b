"""Every choice that a stage offers takes a step, and learns. `make test-latest` runs this file under the newest Python and jax."""

import jax
import numpy as np
import pytest

from ldm_jax import choices, data_choices
from ldm_jax import experiment as ex
from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import base_key
from ldm_jax.core.trees import paths
from ldm_jax.models.first_stage import FirstStage
from ldm_jax.models.units import unit_of

FACTS = choices.Facts(channels=1, resolution=32, classes=10)
KEY = base_key(0)


@pytest.fixture(scope="module")
def batch():
    """Eight digits, as the reader gives them."""
    from ldm_jax.data.batches import stream
    from ldm_jax.data.digits import Digits

    return next(stream(Digits("train"), seed=0, batch=8, threads=0))


def steps(stage, frozen, batch, number=1):
    """The state and the metrics of each of `number` steps on one batch."""
    state, step, told = jax.jit(stage.init)(KEY), jax.jit(stage.step), []
    batch = {name: batch[name] for name in ("image", "label")}
    for _ in range(number):
        state, metrics = step(state, frozen, batch, KEY)
        told.append({name: float(value) for name, value in metrics.items()})
    return state, told


VQ = {"name": "vq", "codes": 32}
LEGACY = {"name": "vq", "codes": 32, "form": "legacy"}
PATCH = {"name": "patch", "width": 4, "layers": 1}
REVIVAL = {"decay": 0.5, "threshold": 0.5, "every": 2}


@pytest.mark.parametrize("changes, names", [
    ({}, {"kl"}),
    ({"model.bottleneck": VQ, "revival": REVIVAL, "critic": PATCH}, {"codebook/revived", "critic/weight", "critic/loss"}),
    pytest.param({"model.bottleneck": LEGACY, "critic": PATCH | {"loss": "vanilla"}, "loss.pixel": "l2", "optimizer": {"name": "adam"}},
                 {"critic/loss"}, marks=pytest.mark.slow),
])
def test_stage_1_takes_steps_and_learns(make_autoencoder_config, batch, changes, names):
    """Mistake: a choice that cannot be traced, a loss without gradient, a metric that is not told, numbers that are not finite."""
    stage = ex.build(make_autoencoder_config(**changes), FACTS).stage()
    state, told = steps(stage, {}, batch, 12)
    assert names <= told[0].keys()
    assert all(np.isfinite(list(metrics.values())).all() for metrics in told)
    assert told[-1]["loss/pixel"] < 0.8 * told[0]["loss/pixel"]
    assert int(state.step) == 12 and not bool(state.bad)


def test_revival_moves_only_dead_codes(make_autoencoder_config, batch):
    """Mistake: revival at every step, of every code, or of none; codes that live are left to the optimizer."""
    stage = ex.build(make_autoencoder_config(**{"model.bottleneck": VQ, "revival": REVIVAL}), FACTS).stage()
    _, told = steps(stage, {}, batch, 4)
    revived = [metrics["codebook/revived"] for metrics in told]
    assert revived[0] == revived[2] == 0 and 0 < revived[1] < 32


def diffusion(config, batch, first=None):
    """The stage and its frozen trees; `first` is the config of a first stage, None is pixels."""
    if first is None:
        side = batch["image"].shape[1]
        return ex.build(config, choices.Facts(1, side, 10)).stage(lambda *given: None), {"first_stage": {}}
    module = ex.build(first, FACTS).autoencoder
    params = jax.jit(lambda image: module.init(KEY, image, None, method="reconstruct")["params"])(batch["image"])
    return ex.build(config, FACTS, FirstStage(module, unit_of(2))).stage(lambda *given: None), {"first_stage": params}


@pytest.fixture(scope="module")
def small(batch):
    """The same digits, 8x8."""
    return batch | {"image": batch["image"].reshape(8, 8, 4, 8, 4, 1).mean((2, 4))}


TRANSFORMER = (dict(width=8, blocks=1, attention="transformer", heads=2, depth=1, down="residual"),
               dict(width=16, blocks=1, attention="plain", heads=2, depth=1, down="none"))
ALONE = {"conditioner": {"name": "none"}, "sampling.guidance": 1.0}


@pytest.mark.parametrize("changes", [
    {"prediction": {"name": "noise"}, "weight": {"name": "min_snr"}, "loss": {"name": "l1"}, "schedule": {"name": "cosine"}} | ALONE,
    pytest.param({"prediction": {"name": "clean"}, "schedule": {"name": "linear"}, "times": {"name": "stratified"},
                  "time_input": {"name": "log_snr"}, "network.levels": TRANSFORMER,
                  "conditioner": {"name": "class", "width": 8, "into": "tokens"}, "network.dropout": 0.1}, marks=pytest.mark.slow),
    {"schedule": {"name": "flow"}, "prediction": {"name": "flow"}, "time_input": {"name": "scaled"}, "times": {"name": "logit_normal"},
     "loss": {"name": "huber"}} | ALONE,
    {"schedule": {"name": "edm"}, "prediction": {"name": "edm"}, "time_input": {"name": "quarter_log_sigma"}, "offset_noise": 0.1,
     "times": {"name": "importance", "bins": 4}, "weight": {"name": "edm"}, "log_variance": {"name": "learned", "bins": 4},
     "sampling.grid": {"name": "karras"}} | ALONE,
], ids=["noise, min_snr, l1, unconditional", "clean, tokens", "flow", "edm with a memory"])
def test_stage_2_takes_steps_and_learns(make_ldm_config, small, changes):
    """Mistake: a choice that cannot be traced or whose target does not fit its prediction: nothing is learned then."""
    config = make_ldm_config("pixels", **{"learning_rate": {"name": "constant", "peak": 5e-3}, "data.resolution": 8} | changes)
    stage, frozen = diffusion(config, small)
    state, told = steps(stage, frozen, small, 120)
    assert all(np.isfinite(list(metrics.values())).all() for metrics in told)
    losses = [metrics["loss/unweighted"] for metrics in told]
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:10]), losses
    learned = {"log_variance"} if "log_variance" in changes else set()
    assert set(state.params) == {"network", "conditioner"} | learned and int(state.step) == 120
    if learned:
        assert float(np.abs(state.params["log_variance"]["u"]).min()) > 0.01 and told[-1]["times/known"] == 1 > told[0]["times/known"]
        assert int(state.extra["times"]["seen"].sum()) == 120 * 8


def test_the_first_stage_is_frozen_and_held_out_losses_pair(make_autoencoder_config, make_ldm_config, batch):
    """Mistakes: a first stage that is trained along; held-out draws from the run's seed or the batch's number: two runs, or one at
    two batch sizes, would not pair."""
    stage, frozen = diffusion(make_ldm_config("given"), batch, make_autoencoder_config())
    state, told = steps(stage, frozen, batch)
    assert np.isfinite(told[0]["loss"]) and set(state.params) == {"network", "conditioner"}
    params = jax.tree.map(lambda p: p + 0.1, state.params)
    whole = {name: batch[name] for name in ("image", "label")} | {"index": np.arange(8, dtype=np.int32), "weight": np.ones(8, np.float32)}
    evaluate = jax.jit(stage.evaluate)
    once = evaluate(params, frozen, whole, KEY)
    halves = [evaluate(params, frozen, jax.tree.map(lambda x, s=s: x[s], whole), KEY) for s in (slice(0, 4), slice(4, 8))]
    assert once["loss"][1] == 8
    np.testing.assert_allclose(sum(h["loss"][0] for h in halves), once["loss"][0], rtol=1e-5)
    for i in range(10):
        np.testing.assert_allclose(sum(h[f"time_{i}"][1] for h in halves), once[f"time_{i}"][1])


TEXT = dict(name="clip_text", width=8, layers=1, heads=2, vocabulary=9, length=4, bos=7, eos=8, pad=0, final_norm=False)


@pytest.fixture(scope="module")
def told(make_ldm_config, small):
    """(stage, frozen trees, batch, experiment) of a conditioner of three parts, of which the first is frozen."""
    parts = (TEXT, dict(name="inpainting"), dict(name="semantic_map", classes=3, halvings=0, channels=2))
    levels = (dict(width=8, blocks=1, attention="transformer", heads=2, depth=1, down="none"),)
    config = make_ldm_config("pixels", **{"data.resolution": 8, "network.levels": levels, "optimizer.decay": "all",
                                          "conditioner": {"name": "several", "parts": parts}})
    batch = {"image": small["image"], "mask": np.ones((8, 8, 8), np.float32), "map": np.ones((8, 8, 8), np.int32),
             "tokens": np.int32([[[7, i, 8, 0]] for i in range(8)])}
    return *diffusion(config, small), batch, ex.build(config, choices.Facts(1, 8, 10))


def test_a_stage_with_several_conditions(told):
    """Mistakes: a text encoder with a state of the optimizer though it is frozen, a part without one, fields or a first stage that do not
    reach a part; a run that begins with data that has no such fields."""
    stage, frozen, batch, experiment = told
    state = jax.eval_shape(stage.init, KEY)
    places = [path for path, _ in paths(state.optimizer)]
    assert any("parts_2" in path for path in places) and not any("parts_0" in path for path in places)
    assert {path.split("/")[0] for path, _ in paths(state.params["conditioner"])} == {"parts_0", "parts_2"}
    after, metrics = jax.eval_shape(stage.step, state, frozen, batch, KEY)
    assert jax.tree.structure(after) == jax.tree.structure(state) and metrics["loss"].shape == ()
    with pytest.raises(UserError, match="it reads tokens, mask, map, and batches .* have image, label only"):
        data_choices.check_fields(experiment.conditioner, FACTS, {})


@pytest.mark.slow
def test_a_frozen_part_stays(told):
    """Mistake: weight decay of parameters without a gradient; a part beside them that does not learn."""
    stage, frozen, batch, _ = told
    state, step = jax.jit(stage.init)(KEY), jax.jit(stage.step)
    moved = state
    for _ in range(3):  # the network's last layer begins at zero
        moved, _ = step(moved, frozen, batch, KEY)
    before, after = (dict(paths(tree.params["conditioner"])) for tree in (state, moved))
    changed = {path for path in before if np.abs(before[path] - after[path]).max() > 0}
    assert changed == {path for path in before if path.startswith("parts_2")} and not bool(moved.bad)


def test_a_perceptual_weight_needs_its_file(make_autoencoder_config):
    """Mistake: a weight above 0 that is silently taken for 0."""
    with pytest.raises(UserError, match="perceptual_weights"):
        ex.build(make_autoencoder_config(**{"loss.perceptual": 1.0}), FACTS)
