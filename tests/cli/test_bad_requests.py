"""Bad requests to a trained model, and bad models, get exit status 2 and one clear line, and cost nobody a file (see test_bad_input.py)."""

import os
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.cli.folders import snapshot
from tests.untrained import save_untrained

SAMPLE_FLAGS = {  # refused from the flags alone
    "seed below 0": (["--seed=-1"], ["--seed=-1: expected a whole number from 0 to 4294967295"]),
    "seed of 2^32": (["--seed=4294967296"], ["--seed=4294967296"]),
    "seed in words": (["--seed=two"], ["--seed=two: expected a whole number"]),
    "last seed past the end": (["--seed=4294967290"], ["the last seed would be 4294967305"]),
    "no images": (["--num_samples=0"], ["--num_samples=0"]),
    "no batch": (["--batch_size=0"], ["--batch_size=0"]),
    "labels in words": (["--labels=three"], ["--labels='three': expected whole numbers, as 0,1,2 or 0-9"]),
    "labels from large to small": (["--labels=9-0"], ["--labels='9-0'"]),
    "broken section": (['--sampler={"name":ddim}'], ["--sampler={", "(mind the quotes)"]),
    "guidance in words": (["--guidance=much"], ["--guidance=much: expected a number"]),
    "broken guidance": (['--guidance={"name":free}'], ["--guidance={", "(mind the quotes)"]),
    "negative labels in words": (["--negative_labels=x"], ["--negative_labels='x': expected whole numbers"]),
    "mask without a picture": (["--mask=m.png"], ["--mask belongs to --init_image=FILE"]),
    "strength without a picture": (["--strength=0.5"], ["--strength belongs to --init_image=FILE"]),
    "picture without strength": (["--init_image=a.png"], ["--init_image: give --strength too"]),
    "border without a picture": (["--outpaint=8,0,0,0"], ["--outpaint belongs to --init_image=FILE"]),
    "border of nothing": (["--init_image=a.png", "--outpaint=0,0,0,0"], ["--outpaint=0,0,0,0: expected LEFT,TOP,RIGHT,BOTTOM in pixels"]),
    "border around no picture": (["--init_image=/nowhere.png", "--outpaint=8,0,0,0"], ["--init_image=/nowhere.png: no such file"]),
    "size of one number": (["--size=512"], ["--size=512: expected WIDTHxHEIGHT"]),
    "unknown dtype": (["--dtype=half"], ["dtype='half': expected one of float32, bfloat16"]),
    "unknown weights": (["--weights=best"], ["--weights=best", "<ema|raw>"]),
    "unknown flag": (["--step=5"], ["Unknown command line flag 'step'. Did you mean: steps"]),
    "positional leftover": (["samples"], ["'samples': not a flag"]),
    "empty prompt": (["--prompt="], ["--prompt='': an empty text"]),
    "blank text": (["--neighbours_of_prompt= "], ["--neighbours_of_prompt=' ': an empty text"]),
    "neighbours of nothing": (["--k=0"], ["--k belongs to --neighbours_of_prompt"]),
    "neighbours without an embedder": (["--neighbours_of_prompt=a"], ["--neighbours_of_prompt: give --embedder too"]),
    "neighbours and variations": (["--variation_of=a.png", "--neighbours_of_image=a.png", "--embedder=e"], ["expected one of them"]),
    "no model": (["--model="], ["--model is missing"]),
    "model not there": (["--model=/nowhere"], ["/nowhere does not exist: expected a run folder"]),
    "model that is none": (["--model=/etc"], ["/etc is there, but is none of these"]),
}
SAMPLE = {  # refused by the model
    "label too large": (["--labels=0,10"], ["label=10: expected a class from 0 to 9"]),
    "label below 0": (["--labels=-1"], ["label=-1"]),
    "no steps": (["--steps=0"], ["steps=0: expected a whole number, at least 1"]),
    "more steps than times": (["--steps=1001"], ["give at most 1000"]),
    "guidance nan": (["--guidance=nan"], ["weight nan is not finite"]),
    "unknown sampler": (["--sampler=ddmi"], ["sampler.name='ddmi': expected one of ddpm, ddim, "]),
    "stale key of a sampler": (['--sampler={"name":"heun","eta":1}'], ["'heun' does not take eta", '--sampler=\'{"name":"heun"}\'']),
    "unknown guidance": (['--guidance={"name":"cfg"}'], ["guidance.name='cfg': expected one of"]),
    "negative labels at guidance 1": (["--labels=1", "--negative_labels=2", "--guidance=1"], ["negative: without classifier-free"]),
    "threshold on latents": (["--threshold=clip"], ["threshold=clip: the latents of a first stage have no range"]),
    "picture that is not there": (["--init_image=/nowhere.png", "--strength=0.5"], ["--init_image=/nowhere.png: no such file"]),
    "size that does not fit": (["--size=36x32"], ["multiples of 8; nearest: 32x32"]),
    "handover without a refiner": (["--handover=0.5"], ["handover: there is no refiner"]),
    "tile of nothing": (["--tile=0"], ["tile=0: expected the side of a tile in latents"]),
    "told nothing": (["--labels="], ["this model reads --labels, and is told nothing; say it, or --unconditional"]),
    "told and not": (["--unconditional"], ["--unconditional: and the model is told --labels"]),
    "unknown grid": (["--grid=even"], ["grid.name='even': expected one of"]),
}


@pytest.mark.parametrize("what", SAMPLE_FLAGS)
def test_sampling_refuses_flags(what, command, tmp_path):
    flags, words = SAMPLE_FLAGS[what]
    command("sample.py", "--model=/nowhere", f"--out={tmp_path / 'out'}", *flags).refused(*words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", SAMPLE)
def test_sampling_refuses_what_the_model_cannot_do(what, command, trained_ldm, tmp_path):
    flags, words = SAMPLE[what]
    command("sample.py", f"--model={trained_ldm}", f"--out={tmp_path / 'out'}", "--labels=1", *flags).refused(*words)
    assert not (tmp_path / "out").exists()


def test_a_soft_mask_is_refused(command, trained_ldm, tmp_path):
    """Catches a JPEG's grey edges cut at a half where nobody said so (the other pictures: test_bad_layouts.py)."""
    for name, grey in (("picture", 0), ("mask", 99)):
        Image.fromarray(np.full((32, 32), grey, np.uint8)).save(tmp_path / f"{name}.png")
    flags = [f"--init_image={tmp_path / 'picture.png'}", f"--mask={tmp_path / 'mask.png'}", "--labels=1", f"--out={tmp_path / 'out'}"]
    command("sample.py", f"--model={trained_ldm}", *flags).refused("1024 of 1024 pixels (1 of all) are grey; expected black")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("names", [["000000.png"], ["thesis.tex"], ["samples.npz", "grid.png"]])
def test_a_folder_with_other_files_is_not_written_to(names, command, trained_ldm, tmp_path):
    """Catches samples written over somebody's numbered pictures."""
    for name in names:
        (tmp_path / name).write_text("dear")
    before = snapshot(tmp_path)
    command("sample.py", f"--model={trained_ldm}", f"--out={tmp_path}").refused("holds other files")
    assert snapshot(tmp_path) == before


def test_a_file_is_no_folder_for_samples(command, trained_ldm, tmp_path):
    (tmp_path / "out").write_text("dear")
    command("sample.py", f"--model={trained_ldm}", f"--out={tmp_path / 'out'}").refused("expected a folder")
    assert (tmp_path / "out").read_text() == "dear"


def test_a_first_stage_cannot_be_sampled(command, trained_autoencoder, tmp_path):
    done = command("sample.py", f"--model={trained_autoencoder}", f"--out={tmp_path / 'out'}")
    done.refused("this is a first stage", "Train a diffusion model on it")
    assert not (tmp_path / "out").exists()


def test_a_diffusion_model_is_no_first_stage(command, configs, trained_ldm, tmp_path):
    done = command("train.py", f"--config={configs['ldm']}", f"--config.first_stage={trained_ldm}", f"--workdir={tmp_path / 'run'}")
    done.refused("config.first_stage", "a first stage is a model of task autoencoder; this one is diffusion")
    assert not (tmp_path / "run").exists()


def test_a_workdir_of_another_run_is_refused_and_kept(command, configs, trained_autoencoder):
    """Catches two experiments mixed in one folder: the keys that differ are named, and not a byte changes."""
    before = snapshot(trained_autoencoder)
    arguments = ["train.py", f"--config={configs['autoencoder']}", f"--workdir={trained_autoencoder}"]
    command(*arguments, "--config.seed=3", "--config.model.width=16").refused(
        "holds a run of another config", "config.model.width: 8, now 16", "config.seed: 0, now 3",
        "Only config.run, config.data.cache and config.text_encoders may change")
    assert snapshot(trained_autoencoder) == before


@pytest.fixture
def runs(trained_ldm, tmp_path):
    """Copies of both tiny runs, to be spoilt."""
    shutil.copytree(trained_ldm.parent, tmp_path / "runs")
    return tmp_path / "runs"


def largest(folder: pathlib.Path) -> pathlib.Path:
    return max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def flip(file: pathlib.Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_a_damaged_model_is_named_and_left_alone(command, runs, tmp_path):
    """Catches images made from flipped bits. Reading must rename nothing: several readers may be at work."""
    step = max((runs / "ldm" / "checkpoints").iterdir(), key=lambda path: int(path.name))
    flip(largest(step))
    before = snapshot(runs)
    done = command("sample.py", f"--model={step}", f"--out={tmp_path / 'out'}")
    done.refused(f"step {step.name}", "is damaged", largest(step).name)
    assert snapshot(runs) == before and not (tmp_path / "out").exists()


def test_a_model_without_any_whole_step(command, runs, tmp_path):
    for step in (runs / "ldm" / "checkpoints").iterdir():
        flip(largest(step))
    command("sample.py", f"--model={runs / 'ldm'}", f"--out={tmp_path / 'out'}").refused("no valid step")


def test_a_first_stage_that_is_gone(command, runs, tmp_path):
    shutil.rmtree(runs / "autoencoder")
    command("sample.py", f"--model={runs / 'ldm'}", f"--out={tmp_path / 'out'}").refused("was trained on step 6 of the first stage",
                                                                                        "does not exist")


def test_a_first_stage_that_has_changed(command, runs, make_autoencoder_config, tmp_path):
    """Catches latents decoded by an autoencoder that they were not made for: it looks whole, and has another content."""
    shutil.rmtree(runs / "autoencoder")
    save_untrained(make_autoencoder_config(seed=1), runs / "autoencoder", 6)
    done = command("sample.py", f"--model={runs / 'ldm'}", f"--out={tmp_path / 'out'}")
    done.refused("has changed since", "its parameters differ", "digest", str(runs / "autoencoder"))
    assert not (tmp_path / "out").exists()


def test_parameters_of_another_architecture(command, configs, trained_autoencoder, tmp_path):
    """Catches a lenient load that leaves half of a network as it was drawn."""
    done = command("train.py", f"--config={configs['autoencoder']}", f"--workdir={tmp_path / 'run'}", "--config.model.width=16",
                   f"--config.init_from={trained_autoencoder}")
    done.refused("config.init_from", "do not fit", "decoder/conv_in/bias [16], here [32]")


def test_labels_for_a_model_without_labels(command, make_ldm_config, tmp_path):
    save_untrained(make_ldm_config("pixels", **{"conditioner": {"name": "none"}, "sampling.guidance": 1.0}), tmp_path / "run")
    command("sample.py", f"--model={tmp_path / 'run'}", f"--out={tmp_path / 'out'}", "--labels=3").refused("trained without labels")
    assert not (tmp_path / "out").exists()


def test_export_and_evaluate_refuse_before_the_work(command, trained_ldm, tmp_path):
    """Catches a folder that is overwritten, and numbers lost at the end of a long evaluation because they cannot be written."""
    (tmp_path / "dear.txt").write_text("dear")
    command("-m", "ldm_jax.cli.export", f"--model={trained_ldm}", f"--out={tmp_path}").refused("exists and is not an empty folder")
    assert os.listdir(tmp_path) == ["dear.txt"]
    done = command("-m", "ldm_jax.cli.evaluate", f"--model={trained_ldm}", f"--out={tmp_path / 'none' / 'x.json'}")
    done.refused("expected a file in a folder that exists")


LIKELIHOOD = {  # refused from the flags alone
    "odd times": (["--measure=likelihood", "--likelihood_times=3"], ["--likelihood_times=3: expected an even number of times"]),
    "one probe": (["--measure=likelihood", "--ode_probes=1"], ["--ode_probes=1: expected at least 2"]),
    "unknown measure": (["--measure=bits"], ["--measure=bits", "<quality|likelihood>"]),
    "guided likelihood": (["--measure=likelihood", "--guidance=2"], ["--guidance belongs to --measure=quality"]),
    "picture of a sweep": (["--picture=x.png", "--scales=1,2"], ["--picture beside --scales: a picture shows one way of sampling"]),
    "times of samples": (["--likelihood_times=8"], ["--likelihood_times belongs to --measure=likelihood"]),
}


@pytest.mark.parametrize("what", LIKELIHOOD)
def test_a_likelihood_is_refused(what, command):
    """Catches a flag of the other measure that is passed over: a guided likelihood is none."""
    flags, words = LIKELIHOOD[what]
    command("-m", "ldm_jax.cli.evaluate", "--model=/nowhere", *flags).refused(*words)


def test_a_cache_of_negative_batches(command, configs, tmp_path):
    """Catches a batch below 0 that is read as another number."""
    done = command("-m", "ldm_jax.cli.encode", f"--config={configs['ldm']}", f"--out={tmp_path / 'cache'}", "--batch_size=-1")
    done.refused("--batch_size=-1: expected a whole number of images from 1, or 0 for config.data.batch")


CONVERT = {
    "no word": ([], ["the first argument is one of lpips"]),
    "unknown word": (["clip"], ["'clip': the first argument is one of lpips"]),
    "flags first": (["--vgg=x", "lpips"], ["the first argument is one of lpips"]),
    "no files": (["lpips"], ["convert lpips needs --vgg and --out"]),
    "file not there": (["lpips", "--vgg=/nowhere.pth", "--out=x.safetensors"], ["/nowhere.pth: no such file"]),
    "file that is no weights": (["lpips", "--vgg=/etc/passwd", "--out=x.safetensors"], ["/etc/passwd"]),
}


@pytest.mark.parametrize("what", CONVERT)
def test_convert_refuses(what, command, tmp_path):
    arguments, words = CONVERT[what]
    command("-m", "ldm_jax.cli.convert", *arguments, cwd=tmp_path).refused(*words)
    assert not list(tmp_path.iterdir())
