"""A LoRA trained on a base: what it is made of, what stays as it was, how it opens, samples and leaves for other tools."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from ldm_jax import adapted, experiment, launch, pipeline
from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import base_key
from ldm_jax.core.trees import content_digest, paths
from ldm_jax.data.batches import in_order
from ldm_jax.loading import Opened
from ldm_jax.models.lora import Lora
from ldm_jax.train.lora_stage import LoraStage
from tests.untrained import save_untrained

LORA = {"lora": {"rank": 2, "alpha": 4.0, "targets": "attention"}, "learning_rate": {"name": "constant", "peak": 0.03},
        "ema.decay": 0.5}
SMALL = {"network.levels": (dict(width=8, blocks=1, attention="plain", heads=2, depth=1, down="none"),)}
KERNELS = {f"network/{place}/{name}/kernel" for name in ("qkv", "proj_out")
           for place in ("down_0/attention_0", "middle/attention_1", "up_0/attention_0", "up_0/attention_1")}


@pytest.fixture(scope="module")
def place(tmp_path_factory, trained_autoencoder, make_ldm_config):
    """A folder with a first stage, a base on it, and a LoRA of the base after 4 steps: "autoencoder", "ldm" and "lora"."""
    folder = tmp_path_factory.mktemp("adapted")
    shutil.copytree(trained_autoencoder, folder / "autoencoder")
    save_untrained(make_ldm_config(folder / "autoencoder", **SMALL), folder / "ldm", noise=0.1)
    before = (folder / "ldm/checkpoints/1/digests.json").read_bytes()
    launch.train(config_of(make_ldm_config, folder), str(folder / "lora"))
    assert (folder / "ldm/checkpoints/1/digests.json").read_bytes() == before
    return folder


def config_of(make_ldm_config, folder, **changes):
    given = SMALL | LORA | {"init_from": str(folder / "ldm"), "run.steps": 4, "run.save_every": 2}
    return make_ldm_config(changes.pop("first_stage", folder / "autoencoder"), **given | changes)


@pytest.fixture(scope="module")
def models(place):
    return pipeline.load(place / "ldm"), pipeline.load(place / "lora")


def test_a_step_holds_the_lora_alone_and_names_its_base(place):
    """Mistakes: the base saved in every step, kernels that are not attention's, an alpha that is trained, an absolute path."""
    opened = Opened(place / "lora")
    assert {path for path, _ in paths(opened.shapes())} == {f"{path}/{leaf}" for path in KERNELS for leaf in ("down", "up")}
    assert {path for path, _ in paths(opened.store.stored(4, "ema"))} == {path for path, _ in paths(opened.shapes())}
    record = opened.store.record(4, adapted.RECORD)
    base = Opened(place / "ldm")
    params = base.everything("ema", launch.sharding.make_mesh())
    assert record == {"path": "../ldm", "step": 1, "digest": content_digest(params), "parameters": base.manifest.parameter_count}
    assert opened.manifest.config["init_from"] == "../ldm" and str(place) not in json.dumps(opened.manifest.to_json())


def test_training_lowers_the_loss_and_leaves_the_base_bit_for_bit(place, make_ldm_config):
    """Mistakes: gradients that reach the base, or none that reach the LoRA; down and up both at zero, where there is no gradient."""
    job = launch.prepare(config_of(make_ldm_config, place))
    stage, frozen, key = launch.stage_of(job), launch.frozen_of(job), base_key(0)
    batch = next(in_order(job.source, (), batch=8, resolution=32))
    state, step, before = jax.jit(stage.init)(key), jax.jit(stage.step), content_digest(jax.device_get(frozen))
    losses = []
    for k in range(41):  # the first and the last with the same draws
        state, told = step(dataclasses.replace(state, step=state.step * (k % 40 > 0)), frozen, batch, key)
        losses.append(float(told["loss"]))
    assert losses[-1] < 0.9 * losses[0], losses
    assert content_digest(jax.device_get(frozen)) == before
    assert {path.rpartition("/")[0] for path, _ in paths(state.params)} == KERNELS


def test_the_inner_stage_sees_the_base_with_the_lora_in_it():
    """Mistakes: alpha left out, a loss, a held-out loss or a preview of the base alone."""
    inner = SimpleNamespace(loss=lambda params, *_: params, evaluate=lambda params, *_: params, preview=lambda params, *_: params)
    frozen = {"base": {"network": {"a": {"kernel": np.ones((3, 2), np.float32)}}, "conditioner": {}}}
    params = {"network": {"a": {"kernel": {"down": np.ones((3, 2), np.float32), "up": np.full((2, 2), 0.5, np.float32)}}}}
    stage = LoraStage(inner, Lora(2, 4.0))
    for seen in (stage.loss(params, {}, frozen, {}, None, 0), stage.evaluate(params, frozen, {}, None),
                 stage.preview(params, frozen, {}, None)):
        np.testing.assert_array_equal(seen["network"]["a"]["kernel"], np.full((3, 2), 1 + 4 / 2 * 1.0))


def test_a_lora_opens_as_the_model_that_it_makes(place, models):
    """Mistakes: a LoRA left out, or in twice; raw weights for the average; a manifest that asks for the base again once it is inside;
    sampling that differs from what the preview of the run, which never merges on the host, shows."""
    base, whole = models
    again = base.with_lora(place / "lora")
    for (path, one), (_, two), (_, old) in zip(paths(whole.params), paths(again.params), paths(base.params)):
        assert np.array_equal(one, two) and np.array_equal(one, old) == (path not in KERNELS), path
    assert whole.digest == again.digest != base.digest and whole.manifest.parameter_count == base.manifest.parameter_count
    told, way = whole.condition([3, 7]), {"seeds": [0, 1], "steps": 2}
    images = whole.sample(told, **way)
    assert np.array_equal(images, again.sample(told, **way)) and not np.array_equal(images, base.sample(told, **way))
    assert base.with_lora(place / "lora", 0.0).digest == base.digest
    twice = base.with_lora(place / "lora", 0.25).with_lora(place / "lora", 0.75)
    for (path, one), (_, two) in zip(paths(whole.params), paths(twice.params)):
        np.testing.assert_allclose(one, two, atol=1e-6, err_msg=path)
    assert [record["scale"] for record in twice.loras] == [0.25, 0.75]
    pipeline.export(place / "lora", place / "bundle")
    bundle = pipeline.load(place / "bundle")
    assert bundle.digest == whole.digest and bundle.manifest.config["init_from"] == ""


def test_the_preview_of_a_run_is_what_its_model_samples(place, models, make_ldm_config):
    """Mistake: a LoRA that is merged otherwise at inference than in training."""
    job = launch.prepare(config_of(make_ldm_config, place, **{"run.preview_every": 1, "run.preview_images": 2}))
    tree = Opened(place / "lora").params("ema", jax.eval_shape(job.experiment.stage().init, base_key(0)).params, job.mesh)
    batch = launch.preview_batch(job)
    shown = jax.jit(launch.stage_of(job).preview)(tree, launch.frozen_of(job), batch, base_key(0))["sample"]
    images = models[1].sample(models[1].condition(np.asarray(batch["label"])), seeds=[0, 1])
    assert np.abs(np.asarray(shown) - (images / 127.5 - 1)).max() < 1.01 / 127.5 / 2 + 1e-3


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_a_trained_lora_leaves_for_other_tools_and_comes_back(form, place, models, tmp_path):
    """Mistakes: alpha lost on the way (the file then counts half), a fused kernel's parts exchanged, a file written over."""
    base, whole = models
    told = adapted.export_lora(place / "lora", tmp_path / "lora.safetensors", form)
    assert "rank 2, alpha 4" in told
    back = base.with_lora(tmp_path / "lora.safetensors")
    for (path, one), (_, two) in zip(paths(whole.params), paths(back.params)):
        np.testing.assert_allclose(one, two, atol=1e-6, err_msg=path)
    with pytest.raises(UserError, match="exists"):
        adapted.export_lora(place / "lora", tmp_path / "lora.safetensors", form)


def test_what_cannot_be_a_lora_or_its_base_is_refused(place, models, make_ldm_config, tmp_path):
    """Mistakes: a LoRA without a base trained from noise, a base on other latents, a base that changed under its LoRA, a model given
    as a LoRA."""
    for changes, told in (({"init_from": ""}, "config.init_from: config.lora adapts another model"),
                          ({"first_stage": "pixels"}, "and config.first_stage is pixels"),
                          ({"lora.rank": -1}, "rank=-1"), ({"lora.targets": "atention"}, "expected one of attention"),
                          ({"network.time_width": 24}, "the base .* does not fit this model")):
        with pytest.raises(UserError, match=told):
            launch.prepare(config_of(make_ldm_config, place, **changes))
    with pytest.raises(UserError, match="holds a whole model, and no LoRA"):
        models[0].with_lora(place / "ldm")
    with pytest.raises(UserError, match="scale=nan"):
        models[0].with_lora(place / "lora", float("nan"))
    moved = tmp_path / "moved"
    shutil.copytree(place, moved)
    assert pipeline.load(moved / "lora").digest == models[1].digest
    shutil.rmtree(moved / "ldm")
    with pytest.raises(UserError, match="is a LoRA of step 1 of .*ldm: .* does not exist"):
        pipeline.load(moved / "lora")
    save_untrained(make_ldm_config(moved / "autoencoder", **SMALL), moved / "ldm", noise=0.2)
    with pytest.raises(UserError, match=r"the base ../ldm has changed since"):
        pipeline.load(moved / "lora")
    with pytest.raises(UserError, match="the base .*ldm has changed since this run began"):
        launch.train(config_of(make_ldm_config, moved, **{"run.steps": 5}), str(moved / "lora"))


@pytest.mark.slow
def test_a_lora_resumes_bit_for_bit(place, make_ldm_config, tmp_path):
    """Mistake: a resumed run that starts its LoRA, its base or its optimizer anew."""
    folder = tmp_path / "place"
    shutil.copytree(place, folder, ignore=shutil.ignore_patterns("lora", "bundle"))
    for steps in (2, 4):
        state = launch.train(config_of(make_ldm_config, folder, **{"run.steps": steps}), str(folder / "lora"))
    whole = Opened(place / "lora").everything("raw", launch.sharding.make_mesh())
    for (path, one), (_, two) in zip(paths(whole), paths(state.params)):
        assert np.array_equal(one, two), path


def test_a_scale_follows_the_last_colon():
    """Mistake: a path with a colon cut in two."""
    assert adapted.parse_lora("a/b") == ("a/b", 1.0) and adapted.parse_lora("a:b/c:0.5") == ("a:b/c", 0.5)
    assert adapted.parse_lora("a:b/c") == ("a:b/c", 1.0) and adapted.parse_lora("c:-1e-1") == ("c", -0.1)
    assert experiment.SECTIONS["diffusion"].count("lora") == 1
