"""A classifier's run from its config to its pages: trained, resumed, loaded, exported, evaluated, and no model of images."""

import dataclasses

import numpy as np
import pytest

import ldm_jax as ldm
from ldm_jax import describe, evaluate, launch, output
from ldm_jax.core.errors import UserError
from ldm_jax.data.digits import Digits
from ldm_jax.evals.tables import EVALS
from ldm_jax.publishing import publish
from tests import runs
from tests.untrained import save_untrained

TRAIN = Digits("train")


@pytest.fixture(scope="module")
def run(trained_autoencoder, make_classifier_config, tmp_path_factory):
    """The run folder of a tiny classifier, trained for 6 steps, with held-out accuracy and a preview at the third."""
    folder = tmp_path_factory.mktemp("third") / "classifier"
    launch.train(make_classifier_config(trained_autoencoder, **{"run.evaluate_every": 6, "run.preview_every": 6}), str(folder))
    return folder


@pytest.fixture(scope="module")
def model(run):
    return ldm.load(run)


@pytest.mark.slow
def test_the_loop_measures_previews_and_resumes_it(run, trained_autoencoder, make_classifier_config):
    """Catches a stage whose state a checkpoint does not hold, whose draws are not by step, or that the loop cannot measure or draw."""
    told = runs.lines(run)[-1]
    assert {"held_out/accuracy", "held_out/loss", "held_out/time_0", "held_out/time_9"} <= told.keys(), told
    assert (run / "previews" / "preview_00000006.png").exists()
    again = run.with_name("again")
    for steps in (3, 6):
        launch.train(make_classifier_config(trained_autoencoder, **{"run.steps": steps}), str(again))
    one, other = runs.state_of(run, 6), runs.state_of(again, 6)
    assert one.keys() == other.keys() and not [path for path in one if one[path].tobytes() != other[path].tobytes()]


def test_a_loaded_classifier_is_described_and_reads_images(model, run):
    """Catches a first stage that is not found from the classifier's manifest, and a page that cannot be made of it."""
    assert model.describe().startswith("classifier: images 32x32x1, latents 8x8x2") and "10 classes" in model.describe()
    images = Digits("test").images[:3]
    assert model.decode(model.encode(images)).shape == images.shape
    page = describe.page(run)
    assert "pool/positions" in page and "first stage: " in page and "config" in page


def test_a_classifier_is_not_sampled(model):
    """Catches a traceback, or noise, from a model that makes no images."""
    for ask in (lambda: model.sample(seeds=[0]), lambda: model.condition([1]), lambda: model.sampling(steps=3)):
        with pytest.raises(UserError, match="this is a classifier of noisy latents.*with --guide") as found:
            ask()
        assert "\n" not in str(found.value)


def test_a_bundle_of_a_classifier_is_the_classifier(model, run, tmp_path):
    """Catches an export without the first stage, or of other weights."""
    assert "classifier of step 6" in publish(run, tmp_path / "bundle")
    again = ldm.load(tmp_path / "bundle")
    assert again.digest == model.digest
    assert (again.experiment.network, again.experiment.objective) == (model.experiment.network, model.experiment.objective)


def test_evaluation_is_the_accuracy_of_every_record_at_every_time(model):
    """Catches a record that is looked at in one bin only, or twice in one."""
    found = evaluate.evaluate(model)
    assert found["n"] == {"records": 397, "times_each": 10} and 0 <= found["accuracy"] <= 1
    bins = [found[f"accuracy_time_{i}"] for i in range(10)]
    assert all(abs(share * 397 - round(share * 397)) < 1e-3 for share in bins)
    assert found["accuracy"] == pytest.approx(sum(bins) / 10)
    assert "accuracy time 9" in evaluate.told(found, "title")


def test_parameters_are_taken_from_another_classifier_only(run, trained_autoencoder, make_classifier_config, tmp_path):
    """Catches init_from that is not read for this task, and a first stage whose parameters are taken for a classifier's."""
    config = make_classifier_config(trained_autoencoder, init_from=str(run))
    launch.train(config | {"run": config["run"] | {"steps": 1}}, str(tmp_path / "run"))
    with pytest.raises(UserError, match="config.init_from: .* is of task autoencoder, this run of classifier"):
        launch.prepare(make_classifier_config(trained_autoencoder, init_from=str(trained_autoencoder)))


def test_a_classifier_is_no_first_stage(run, make_ldm_config):
    """Catches a diffusion model trained on the classifier's own latents."""
    with pytest.raises(UserError, match="a first stage is a model of task autoencoder; this one is classifier"):
        launch.prepare(make_ldm_config(run))


@pytest.mark.slow
def test_a_sweep_of_a_guides_scales_guides_by_it(model, trained_autoencoder, make_ldm_config, tmp_path):
    """Catches a guide that is not read, a scale 0 that is refused or guided, labels that go with other samples, and a weaker model
    at 1 that is evaluated."""
    alone = {"conditioner": {"name": "none"}, "sampling.guidance": 1.0}
    save_untrained(make_ldm_config(trained_autoencoder, **alone), tmp_path / "run", noise=0.1)
    plain = ldm.load(tmp_path / "run")
    request, labels = output.Request(20, seed=5, batch_size=20, sampling={"steps": 2}), [i % 10 for i in range(20)]
    found = evaluate.sweep(plain, request, (0.0, 5.0), model)
    wanted = [plain.sample(seeds=request.seeds, steps=2),
              plain.sample(seeds=request.seeds, steps=2, guide=model, guide_condition=labels, guidance=5.0)]
    assert np.abs(wanted[0].astype(int) - wanted[1]).max() > 3, "the guide changes nothing"
    test = Digits("test")
    for row, images in zip(found["rows"], wanted):
        alone = EVALS["digits"](images, np.asarray(labels), (TRAIN.images, TRAIN.labels), (test.images, test.labels))
        assert row["accuracy"] == alone["accuracy"]["samples"]
        assert row["frechet_distance"] == pytest.approx(alone["frechet_distance"]["samples"], rel=1e-3)
    assert f"guide classifier {model.digest[:12]}" in evaluate.told(found, "tiny")
    with pytest.raises(UserError, match="guide: it was trained on another first stage"):
        other = dataclasses.replace(model, manifest=dataclasses.replace(model.manifest, first_stage=None))
        evaluate.sweep(plain, request, (1.0,), other)


@pytest.mark.parametrize("given, words", [
    (("a,b",), "--scales='a,b': expected numbers"), (("0,inf",), "--scales='0,inf'"), (("1,,2",), "--scales='1,,2'"),
    (("", "runs/x"), "--guide=runs/x needs --scales"), (("1,2", "", "3"), "--guidance=3 beside --scales"),
])
def test_scales_in_words(given, words):
    """Catches a scale that is dropped, a guide that nothing reads, and a weight that the scales would silently replace."""
    assert evaluate.parse_scales("0, 1,2.5", "guide") == (0.0, 1.0, 2.5) and evaluate.parse_scales("") == ()
    with pytest.raises(UserError, match=words):
        evaluate.parse_scales(*given)
