"""A LoRA trained on a base: what it is made of, what stays as it was, how it opens, samples and leaves for other tools."""

import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from ldm_jax import adapted, describe, launch, pipeline
from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import base_key
from ldm_jax.core.trees import content_digest, paths
from ldm_jax.loading import Opened
from ldm_jax.models.lora import Lora
from ldm_jax.publishing import publish
from ldm_jax.train.lora_stage import LoraStage
from ldm_jax.train.sharding import make_mesh
from tests.untrained import save_untrained

LORA = {"lora": {"rank": 2, "alpha": 4.0, "targets": "all"}, "learning_rate": {"name": "constant", "peak": 0.02}, "ema.decay": 0.5}
SMALL = {"network.levels": (dict(width=8, blocks=1, attention="plain", heads=2, depth=1, down="none"),)}
STEPS = 40


@pytest.fixture(scope="module")
def place(tmp_path_factory, trained_autoencoder, make_ldm_config):
    """A folder with a first stage, a base on it, and a LoRA of the base after 40 steps: "autoencoder", "ldm" and "lora"."""
    folder = tmp_path_factory.mktemp("adapted")
    shutil.copytree(trained_autoencoder, folder / "autoencoder")
    save_untrained(make_ldm_config(folder / "autoencoder", **SMALL), folder / "ldm", noise=0.1)
    before = (folder / "ldm/checkpoints/1/digests.json").read_bytes()
    launch.train(config_of(make_ldm_config, folder), str(folder / "lora"))
    assert (folder / "ldm/checkpoints/1/digests.json").read_bytes() == before
    return folder


def kernel(path):
    return path.startswith("network/") and path.endswith("/kernel")


def config_of(make_ldm_config, folder, **changes):
    given = SMALL | LORA | {"init_from": str(folder / "ldm"), "run.steps": STEPS, "run.save_every": 20}
    return make_ldm_config(changes.pop("first_stage", folder / "autoencoder"), **given | changes)


def test_a_step_holds_the_lora_alone_and_names_its_base(place):
    """Mistakes: the base saved in every step, an alpha that is trained, an average of something else, an absolute path."""
    opened, base = Opened(place / "lora"), Opened(place / "ldm")
    params = base.everything("ema", make_mesh())
    kernels = {path for path, _ in paths(params["network"]) if path.endswith("/kernel")}
    for item in ("params", "ema"):
        found = {path for path, _ in paths(opened.store.stored(STEPS, item))}
        assert found == {f"network/{path}/{leaf}" for path in kernels for leaf in ("down", "up")}
    record = opened.store.record(STEPS, adapted.RECORD)
    assert record == {"path": "../ldm", "step": 1, "digest": content_digest(params), "parameters": base.manifest.parameter_count}
    assert f"a LoRA of ../ldm, step 1, digest {record['digest'][:12]}" in describe.page(place / "lora")
    assert opened.manifest.config["init_from"] == "../ldm" and str(place) not in json.dumps(opened.manifest.to_json())


def test_training_lowers_the_loss(place):
    """Mistakes: gradients that do not reach the LoRA; down and up both at zero, where there is no gradient."""
    losses = [json.loads(line)["loss"] for line in (place / "lora/metrics.jsonl").read_text().splitlines()]
    assert len(losses) == STEPS and np.mean(losses[-10:]) < 0.9 * np.mean(losses[:5]), losses


def test_the_inner_stage_sees_the_base_with_the_lora_in_it():
    """Mistakes: alpha left out, a loss, a held-out loss or a preview of the base alone."""
    inner = SimpleNamespace(loss=lambda params, *_: params, evaluate=lambda params, *_: params, preview=lambda params, *_: params)
    frozen = {"base": {"network": {"a": {"kernel": np.ones((3, 2), np.float32)}}, "conditioner": {}}}
    params = {"network": {"a": {"kernel": {"down": np.ones((3, 2), np.float32), "up": np.full((2, 2), 0.5, np.float32)}}}}
    stage = LoraStage(inner, Lora(2, 4.0))
    for seen in (stage.loss(params, {}, frozen, {}, None, 0), stage.evaluate(params, frozen, {}, None),
                 stage.preview(params, frozen, {}, None)):
        np.testing.assert_array_equal(seen["network"]["a"]["kernel"], np.full((3, 2), 1 + 4 / 2 * 1.0))


@pytest.fixture(scope="module")
def models(place):
    """The base, and what its LoRA makes of it."""
    publish(place / "lora", place / "bundle")
    return pipeline.load(place / "ldm"), pipeline.load(place / "lora")


def test_a_lora_opens_as_the_model_that_it_makes(place, models):
    """Mistakes: a LoRA left out, or in twice; raw weights for the average; a manifest that asks for the base again once it is inside;
    sampling that differs from what the preview of the run, which never merges on the host, shows."""
    base, whole = models
    again = base.with_lora(place / "lora")
    for (path, one), (_, two), (_, old) in zip(paths(whole.params), paths(again.params), paths(base.params)):
        assert np.array_equal(one, two) and np.array_equal(one, old) == (not kernel(path)), path
    assert whole.digest == again.digest != base.digest and whole.manifest.parameter_count == base.manifest.parameter_count
    told, way = whole.condition([3, 7]), {"seeds": [0, 1], "steps": 2}
    images = whole.sample(told, **way)
    assert np.array_equal(images, again.sample(told, **way)) and not np.array_equal(images, base.sample(told, **way))
    assert base.with_lora(place / "lora", 0.0).digest == base.digest
    twice = base.with_lora(place / "lora", 0.25).with_lora(place / "lora", 0.75)
    for (path, one), (_, two) in zip(paths(whole.params), paths(twice.params)):
        np.testing.assert_allclose(one, two, atol=1e-6, err_msg=path)
    assert [record["scale"] for record in twice.loras] == [0.25, 0.75]
    bundle = pipeline.load(place / "bundle")
    assert bundle.digest == whole.digest and bundle.manifest.config["init_from"] == ""


@pytest.mark.slow
def test_the_preview_of_a_run_is_what_its_model_samples(place, models, make_ldm_config):
    """Mistake: a LoRA that is merged otherwise at inference than in training."""
    job = launch.prepare(config_of(make_ldm_config, place, **{"run.preview_every": 1, "run.preview_images": 2}))
    tree = Opened(place / "lora").params("ema", jax.eval_shape(job.experiment.stage().init, base_key(0)).params, job.mesh)
    batch = launch.preview_batch(job)
    shown = jax.jit(launch.stage_of(job).preview)(tree, launch.frozen_of(job), batch, base_key(0))["sample"]
    images = models[1].sample(models[1].condition(np.asarray(batch["label"])), seeds=[0, 1])
    assert np.abs(np.asarray(shown) - (images / 127.5 - 1)).max() < 1.01 / 127.5 / 2 + 1e-3


def test_a_bundle_is_a_base_and_its_own_first_stage(place, models, make_ldm_config):
    """Mistake: a model with its first stage inside, as every published one, that cannot be adapted because no run of stage 1 is there; a
    first stage of another digest or other units, that later steps do not find again."""
    job = launch.prepare(config_of(make_ldm_config, place, first_stage=place / "bundle", init_from=str(place / "bundle")))
    reference = job.first.reference(place / "next")
    assert reference.path == "../bundle" and reference.digest == models[1].manifest.first_stage.digest == job.first.digest
    assert job.first.is_as(reference) and reference.latent_units == models[1].manifest.first_stage.latent_units
    assert job.base.digest == content_digest(jax.device_get(models[1].params))


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


@pytest.mark.slow
def test_what_cannot_be_a_lora_or_its_base_is_refused(place, models, make_ldm_config, tmp_path):
    """Mistakes: a LoRA without a base trained from noise, a base on other latents, a base that changed under its LoRA, a model given
    as a LoRA."""
    for changes, told in (({"init_from": ""}, "config.init_from: config.lora adapts another model"),
                          ({"first_stage": "pixels"}, "and config.first_stage is pixels")):
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
    shutil.copytree(place / "bundle", moved / "ldm")
    with pytest.raises(UserError, match=r"the base ../ldm has changed since"):
        pipeline.load(moved / "lora")
    with pytest.raises(UserError, match="the base .*ldm has changed since this run began"):
        launch.train(config_of(make_ldm_config, moved, **{"run.steps": STEPS + 1}), str(moved / "lora"))


@pytest.mark.slow
def test_a_lora_resumes_bit_for_bit(place, make_ldm_config, tmp_path):
    """Mistake: a resumed run that starts its LoRA, its base or its optimizer anew."""
    folder = tmp_path / "place"
    shutil.copytree(place, folder, ignore=shutil.ignore_patterns("lora", "bundle"))
    for steps in (20, STEPS):
        state = launch.train(config_of(make_ldm_config, folder, **{"run.steps": steps}), str(folder / "lora"))
    whole = Opened(place / "lora").everything("raw", make_mesh())
    for (path, one), (_, two) in zip(paths(whole), paths(state.params)):
        assert np.array_equal(one, two), path


def test_a_scale_follows_the_last_colon():
    """Mistake: a path with a colon cut in two."""
    assert adapted.parse_lora("a/b") == ("a/b", 1.0) and adapted.parse_lora("a:b/c:0.5") == ("a:b/c", 0.5)
    assert adapted.parse_lora("a:b/c") == ("a:b/c", 1.0) and adapted.parse_lora("c:-1e-1") == ("c", -0.1)
