"""`ldm.load` and what it gives: images that depend on their own seed and condition alone, whatever computes them, and models that survive
being moved. Each test says which mistake it catches.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import ldm_jax as ldm
from ldm_jax import describe, evaluate, output, sampling
from ldm_jax.core.errors import UserError
from ldm_jax.data.digits import Digits
from ldm_jax.publishing import publish
from tests.untrained import save_untrained

ROOT = pathlib.Path(__file__).resolve().parents[1]
LABELS = [i % 10 for i in range(16)]
NOISE = 0.1  # of the random parameters


@pytest.fixture(scope="module")
def first_run(make_autoencoder_config, tmp_path_factory):
    """The run folder of a first stage with random parameters."""
    folder = tmp_path_factory.mktemp("runs") / "autoencoder"
    save_untrained(make_autoencoder_config(), folder, 3, noise=3 * NOISE)
    return folder


@pytest.fixture(scope="module")
def run(first_run, make_ldm_config):
    """The run folder of a diffusion model on it whose parameters are random up to the last layer."""
    folder = first_run.parent / "ldm"
    save_untrained(make_ldm_config(first_run), folder, 3, 6, noise=NOISE)
    return folder


@pytest.fixture(scope="module")
def model(run):
    return ldm.load(run)


@pytest.fixture(scope="module")
def images(model):
    """16 images of seed 0, in one batch."""
    return model.sample(model.condition(labels=LABELS), seeds=range(16), batch_size=16)


def agree(found: np.ndarray, wanted: np.ndarray) -> None:
    """At most one uint8 level apart, 0.01 in the mean."""
    apart = np.abs(found.astype(int) - wanted.astype(int))
    print(f"most {apart.max()}, mean {apart.mean():.5f} levels apart")
    assert found.shape == wanted.shape and apart.max() <= 1 and apart.mean() <= 0.01, f"{apart.max()} levels, mean {apart.mean():.4f}"


@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_image_does_not_depend_on_its_batch(batch_size, model, images):
    """Catches keys drawn for a batch, padding that leaks, and a last batch that is cut or shifted: 16 is not a multiple of 3."""
    agree(model.sample(model.condition(labels=LABELS), seeds=range(16), batch_size=batch_size), images)


def test_an_image_does_not_depend_on_the_number_of_devices(run, images, tmp_path):
    """8 devices, and 13 images, which 8 does not divide. Catches per-device keys and rows that land in another place."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "sample.py", f"--model={run}", "--labels=0-9", "--num_samples=13", f"--out={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    agree(np.load(tmp_path / "samples.npz")["arr_0"], images[:13])


def test_seeds_and_conditions_are_the_image(model, images):
    """Image 3 of seed 0 is what seeds=[3] gives. Catches seeds folded with the place in the batch, and labels that do nothing."""
    agree(model.sample(model.condition(labels=[3]), seeds=[3]), images[3:4])
    other = model.sample(model.condition(labels=[4]), seeds=[3])
    assert np.abs(other.astype(int) - images[3:4]).max() > 1, "the label changes nothing"
    assert np.abs(images[0].astype(int) - images[10]).max() > 1, "the seed changes nothing"
    one_for_all = model.sample(model.condition(labels=[3]), seeds=[3, 13])
    agree(one_for_all, images[[3, 13]])


@pytest.fixture
def compilations():
    """A list that grows by one entry at each compilation of anything."""
    found = []

    def note(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield found
    jax.monitoring.unregister_event_duration_listener(note)


def test_a_change_of_sampling_compiles_nothing(model, images, compilations):
    """Catches tables, weights or seeds that became part of the program: sampler, grid, steps, guidance above 1 and seeds are data."""
    condition = model.condition(labels=LABELS)
    compilations.clear()
    for changes in ({"sampler": "heun"}, {"sampler": {"name": "ddim", "eta": 0.5}}, {"sampler": "ddpm", "steps": 11}, {"steps": 40},
                    {"guidance": 7.5}, {"grid": "karras"}, {"sampler": "euler", "steps": 1}):
        model.sample(condition, seeds=range(5, 21), **changes)
    assert not compilations, f"{len(compilations)} compilations"
    jax.jit(lambda x: x * 3.25)(1.0)
    assert compilations, "the count sees nothing"


def test_guidance_1_does_not_pay_for_the_null(model, monkeypatch):
    """Catches a second evaluation whose weight is 0: the network is traced on one batch, not on two of it."""
    seen, call = [], sampling.NetworkCall.__call__

    def watched(self, params, noisy, time, condition):
        seen.append(noisy.shape[0])
        return call(self, params, noisy, time, condition)

    monkeypatch.setattr(sampling.NetworkCall, "__call__", watched)
    condition = model.condition(labels=[1, 2, 3, 4, 5])
    model.sample(condition, seeds=range(5), guidance=1.0, steps=2)
    assert set(seen) == {5}, seen
    seen.clear()
    model.sample(condition, seeds=range(5), guidance=1.5, steps=2)
    assert set(seen) == {10}, seen


def test_encode_and_decode(model, first_run):
    """Catches raw latents where unit-variance ones are promised, and a decoder that is given the one for the other."""
    digits = Digits("train").images[:256]
    latents = model.encode(digits[:32])
    assert latents.shape == (32, 8, 8, 2) and latents.dtype == np.float32
    again = model.decode(latents)
    assert again.shape == (32, 32, 32, 1) and again.dtype == np.uint8
    np.testing.assert_array_equal(latents, model.encode(digits[:32].astype(np.float32) / 127.5 - 1))
    first = ldm.load(first_run)
    np.testing.assert_array_equal(first.decode(first.encode(digits[:32])), again)
    drawn = model.first_stage.encode(model.first_params, digits.astype(np.float32) / 127.5 - 1, jax.random.split(jax.random.key(1), 256))
    units = model.manifest.first_stage.latent_units
    assert np.abs(np.asarray(units["std"]) - 1).max() > 0.3, f"the raw latents have unit variance already: {units}"
    mean, std = np.asarray(drawn).mean((0, 1, 2)), np.asarray(drawn).std((0, 1, 2))
    assert np.abs(mean).max() < 0.15 and np.abs(std - 1).max() < 0.15, (mean, std)


@pytest.mark.parametrize("bad, words", [
    (lambda m: m.encode(np.full((1, 32, 32, 1), 2.0)), r"in \[-1, 1\]"), (lambda m: m.encode(np.full((1, 32, 32, 1), np.nan)), "expected"),
    (lambda m: m.encode(np.zeros((1, 30, 30, 1), np.uint8)), "28.*32"), (lambda m: m.encode(np.zeros((1, 32, 32, 3), np.uint8)), "C is 3"),
    (lambda m: m.decode(np.zeros((1, 8, 8, 5))), "c is 5"), (lambda m: m.condition(labels=[10]), "label=10"),
    (lambda m: m.sample(seeds=[]), "at least one image"), (lambda m: m.sample(seeds=[-1]), r"seeds\[0\]=-1"),
    (lambda m: m.sample(m.condition(labels=[1, 2]), seeds=[1, 2, 3]), "2.*3 seeds"), (lambda m: m.sample(seeds=[1], rounding="up"), "up"),
    (lambda m: m.sample(seeds=[1], sampler="plsm"), "expected one of plms"), (lambda m: m.sample(seeds=[1], eta=1.0), "eta")])
def test_the_api_refuses(bad, words, model):
    """Catches shapes and numbers that only break inside a compiled program, or do not break at all."""
    with pytest.raises(UserError, match=words):
        bad(model)


def test_raw_weights_are_others(run, model, images):
    """Catches a --weights flag that is not read."""
    raw = ldm.load(run, weights="raw")
    assert raw.digest != model.digest
    assert np.abs(raw.sample(raw.condition(labels=LABELS), seeds=range(16)).astype(int) - images).max() > 1
    with pytest.raises(UserError, match="expected one of ema, raw"):
        ldm.load(run, weights="best")


def test_a_run_a_step_and_a_bundle_are_one_model(run, model, images, tmp_path):
    """A bundle is read after both runs are gone. Catches a bundle that points at its first stage instead of holding it."""
    shutil.copytree(run.parent, tmp_path / "runs")
    bundle = tmp_path / "bundle"
    step = ldm.load(tmp_path / "runs" / "ldm" / "checkpoints" / "6")
    told = publish(tmp_path / "runs" / "ldm", bundle)
    assert "diffusion of step 6" in told and model.digest == step.digest
    shutil.rmtree(tmp_path / "runs")
    shutil.move(bundle, tmp_path / "moved")
    moved = ldm.load(tmp_path / "moved")
    assert moved.digest == model.digest and str(tmp_path) not in (tmp_path / "moved" / "manifest.json").read_text()
    for other in (step, moved):
        np.testing.assert_array_equal(other.sample(other.condition(labels=LABELS), seeds=range(16)), images)
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        publish(run, tmp_path / "moved")


def test_runs_moved_together_still_load(run, model, tmp_path):
    """Catches an absolute path to the first stage."""
    shutil.copytree(run.parent, tmp_path / "elsewhere")
    assert ldm.load(tmp_path / "elsewhere" / "ldm").digest == model.digest


def test_a_page_explains_a_checkpoint(run, first_run):
    """Catches a page that leaves out what somebody needs who has only the file."""
    page = describe.page(run)
    for told in ("diffusion, step 6", "images 32x32x1, 10 classes", "first stage: ../autoencoder, step 3, digest",
                 "trained on 48 images of digits", "saved steps: 3, 6", "jax ", "config", "network.time_width = 32",
                 "schedule.name = scaled_linear", "network/conv_in/kernel", "Total:"):
        assert told in page, f"{told!r} is missing:\n{page}"
    page = describe.page(first_run)
    for told in ("autoencoder, step 3", "latent units: mean", "std", "model.latent_channels = 2", "decoder/conv_out/kernel"):
        assert told in page, f"{told!r} is missing:\n{page}"


def test_samples_are_written_with_all_that_made_them(model, tmp_path):
    """Catches labels that do not go with their images, arrays of another layout than the field's evaluators read, and a page that could
    not make an image again."""
    request = output.Request(13, seed=4, labels=output.parse_labels("0-9"), sampling={"sampler": "ddim", "steps": 2, "guidance": 3.0})
    images = output.sample_to(model, request, str(tmp_path / "out"))
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == [f"{i:06d}.png" for i in range(13)] + ["grid.png", "samples.json", "samples.npz"]
    with np.load(tmp_path / "out" / "samples.npz", allow_pickle=False) as arrays:
        assert sorted(arrays) == ["arr_0", "arr_1"] and arrays["arr_1"].tolist() == [i % 10 for i in range(13)]
        np.testing.assert_array_equal(arrays["arr_0"], images)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "000012.png")), images[12, ..., 0])
    assert Image.open(tmp_path / "out" / "grid.png").width >= 10 * 32
    page = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert page["model_digest"] == model.digest and page["rounding"] == "round"
    assert [page[key] for key in ("sampler", "steps", "guidance")] == ["ddim", 2, 3.0] and page["grid"] == {"name": "trailing"}
    assert page["images"][12] == {"file": "000012.png", "seed": 16, "condition": {"label": 2}}
    again = model.sample(model.condition(labels=[2]), seeds=[16], sampler="ddim", steps=2, guidance=3.0)
    agree(again, images[12:])


def test_an_interrupted_folder_is_known_and_taken_up(model, tmp_path, monkeypatch):
    """Catches a samples.json beside images of another call, a folder that nobody can write to again, and a file of the user's lost."""
    small = {"steps": 1, "guidance": 1.0}
    output.sample_to(model, output.Request(4, sampling=small), str(tmp_path))
    (tmp_path / "holiday.png").write_text("dear")
    monkeypatch.setattr(output.np, "savez_compressed", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        output.sample_to(model, output.Request(2, seed=7, sampling=small), str(tmp_path))
    assert not (tmp_path / "samples.json").exists() and not (tmp_path / "000003.png").exists()
    monkeypatch.undo()
    output.sample_to(model, output.Request(3, sampling=small), str(tmp_path))
    assert len(json.loads((tmp_path / "samples.json").read_text())["images"]) == 3
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"000000.png", "000001.png", "000002.png", "grid.png", "samples.npz", "samples.json", "holiday.png"}


def test_labels_in_words():
    assert output.parse_labels("0-9") == tuple(range(10)) and output.parse_labels("3, 1,5-6") == (3, 1, 5, 6)
    assert output.parse_labels("") == () and output.parse_labels("-1") == (-1,)


def test_truncation_is_one_level_below(model, images):
    """Catches a rounding flag that is not read: the LDM scripts cut the fraction off."""
    cut = model.sample(model.condition(labels=LABELS), seeds=range(16), rounding="truncate").astype(int)
    assert set(np.unique(images - cut)) == {0, 1}


def test_evaluation_of_a_diffusion_model(model):
    """Catches an evaluation that is not of the samples asked for: their number, seeds, guidance and steps stand beside the numbers."""
    request = output.Request(20, seed=5, batch_size=20, sampling={"steps": 2, "guidance": 1.5})
    result = evaluate.evaluate(model, request)
    page = evaluate.told(result, "tiny")
    for told in ("accuracy", "frechet ratio", "nearest training distance", "spread within class", "samples 20", "seeds 5..24",
                 "guidance 1.5", "steps 2", "sampler dpmpp_2m", model.digest[:12]):
        assert told in page, f"{told!r} is missing:\n{page}"


@pytest.mark.parametrize("bottleneck, measures", [({"name": "kl"}, ["kl_nats", "kl_nats_per_dimension"]),
                                                  ({"name": "vq", "codes": 16}, ["codebook_use", "codebook_perplexity"])])
def test_evaluation_of_a_first_stage(bottleneck, measures, make_autoencoder_config, tmp_path):
    """On every held-out digit, once: 397 is not a multiple of the batch. Catches padding that is counted."""
    save_untrained(make_autoencoder_config(**{"model.bottleneck": bottleneck, "data.batch": 64}), tmp_path / "run")
    model = ldm.load(tmp_path / "run")
    result = evaluate.evaluate(model)
    assert result["images"] == 397 and {"psnr_db", "ssim", "l1", *measures} <= result.keys(), result
    test = Digits("test").images
    if bottleneck["name"] == "kl":
        wanted = np.mean(np.abs(test[:50] / 127.5 - 1 - (_reconstructed(model, test[:50]))))
        assert np.isfinite(wanted) and abs(result["l1"] - wanted) < 0.2 * wanted
    page = evaluate.told(result, "tiny", str(tmp_path / "evaluation.json"))
    assert "psnr db" in page and json.loads((tmp_path / "evaluation.json").read_text())["images"] == 397


def _reconstructed(model, images: np.ndarray) -> np.ndarray:
    return model.decode(model.encode(images)) / 127.5 - 1
