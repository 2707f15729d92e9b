"""Bad input to training gets exit status 2 and one clear line, and costs nobody a file.

The mistake that each case catches is its name: input that ends in a traceback, in a line that does not say what is wrong, in a run that
starts all the same, or in a file that was written or lost.
"""

import ast
import pathlib

import numpy as np
import pytest
from PIL import Image

from ldm_jax.core.choose import literal
from tests.cli.folders import TINY, snapshot

AUTOENCODER = {  # what is wrong: (overrides, what the line says)
    "unknown key": (["--config.run.step=5"], ["config.run has no key 'step'; it has: steps"]),
    "unknown section": (["--config.optimiser.b1=0.5"], ["config has no key 'optimiser'; it has: optimizer"]),
    "key of a value": (["--config.seed.x=1"], ["config.seed is a value, not a section"]),
    "key of another choice": (["--config.critic.name=patch", "--config.critic.start=5"],
                              ["no key 'start'", '--config.critic=\'{"name":...,"start":...}\'']),
    "override without --config": (["NO CONFIG", "--config.seed=1"], ["--config is missing"]),
    "unknown choice": (["--config.optimizer.name=adm"], ["config.optimizer.name='adm': expected one of adam, adamw"]),
    "stale key": (["--config.optimizer.name=adam"],
                  ["does not take decay", '--config.optimizer=\'{"name":"adam","b1":0.9,"b2":0.99,"eps":1e-08}\'']),
    "missing key": (['--config.model.bottleneck={"name":"vq"}'], ["config.model.bottleneck: 'vq' needs codes"]),
    "nothing to train": (["--config.model.name=identity"], ["has nothing to train", "--config.first_stage=pixels"]),
    "best by what is not measured": (["--config.run.best=('held_out/l1','min')"], ["config.run.best", "needs a measurement at each save"]),
    "section without its keys": (['--config.run={"steps":5}'], ["config.run: it needs log_every"]),
    "section with a strange key": (['--config.latent_units={"images":5,"x":1}'], ["does not read 'x'; it reads: images"]),
    "value for a section": (["--config.data=5"], ["--config.data=5: expected a Python literal"]),
    "text for a number": (["--config.learning_rate.peak=fast"], ["--config.learning_rate.peak=fast: expected a number"]),
    "float for a whole number": (["--config.run.steps=10.5"], ["--config.run.steps=10.5: expected a whole number"]),
    "1e3 for a whole number": (["--config.run.steps=1e3"], ["--config.run.steps=1e3: expected a whole number in digits, as 1000"]),
    "float in a section": (['--config.revival={"decay":0.5,"threshold":0.5,"every":2.5}'], ["config.revival.every=2.5: expected int"]),
    "maybe for a bool": (["--config.model.middle_attention=maybe"], ["middle_attention=maybe: expected true or false"]),
    "number for a tuple": (["--config.model.multipliers=3"], ["expected a tuple, as --config.model.multipliers='(1,1,2,)'"]),
    "broken tuple": (["--config.model.multipliers=(1,2"], ["expected a tuple"]),
    "text in a tuple of numbers": (["--config.model.multipliers=(1,'a')"], ["config.model.multipliers=(1, 'a'): expected tuple[int"]),
    "empty tuple": (["--config.model.multipliers=()"], ["multipliers=()"]),
    "learning rate nan": (["--config.learning_rate.peak=nan"], ["config.learning_rate.peak=nan: expected a finite number"]),
    "learning rate inf": (["--config.learning_rate.peak=inf"], ["config.learning_rate.peak=inf"]),
    "learning rate -1": (["--config.learning_rate.peak=-1"], ["config.learning_rate.peak=-1.0: expected a number above 0"]),
    "learning rate 0": (["--config.learning_rate.peak=0"], ["config.learning_rate.peak=0.0: expected a number above 0"]),
    "warm-up past the end": (["--config.learning_rate.warmup=40"], ["warmup=40: expected 0 <= warmup < steps=40"]),
    "decay of 2": (["--config.optimizer.b1=2"], ["b1=2.0"]),
    "clipping at nan": (["--config.clip_norm=nan"], ["config.clip_norm=nan"]),
    "negative loss weight": (["--config.loss.kl=-1"], ["config.loss"]),
    "accumulate 0": (["--config.accumulate=0"], ["accumulate >= 1"]),
    "average of 1": (["--config.ema.decay=1.0"], ["config.ema.decay=1.0: expected 0 <= decay < 1"]),
    "no steps": (["--config.run.steps=0"], ["config.run.steps=0: expected a whole number from 1"]),
    "unknown direction of the best": (["--config.run.best=('loss','least')"], ["config.run.best=('loss', 'least')"]),
    "half a profile": (["--config.run.profile_steps=(1,)"], ["config.run.profile_steps=(1,): expected (first, last)"]),
    "no image for the units": (["--config.latent_units.images=0"], ["config.latent_units.images=0"]),
    "critic before the start": (['--config.critic={"name":"patch","start":-1}'], ["start=-1"]),
    "revival never": (["--config.revival.every=0"], ["every=0"]),
    "dropout of 2": (["--config.model.dropout=2"], ["config.model: dropout=2.0"]),
    "attention that no level has": (["--config.model.attention=(5,)"], ["no level has the resolution 5; the levels have 32, 16, 8"]),
    "unknown dtype": (["--config.model.dtype=half"], ["dtype='half': expected one of float32, bfloat16"]),
    "resolution of another size than the data's": (["--config.data.resolution=64"],
                                                   ["the image is 32x32, and 64x64 is asked for: put crop_resize"]),
    "resolution not divisible by f": (["--config.data.resolution=30", "--config.data.transforms=({'name':'crop_resize'},)"],
                                      ["resolution=30: expected a multiple of 4", "nearest: 28, 32"]),
    "no batch": (["--config.data.batch=0"], ["config.data.batch=0: expected a whole number from 1"]),
    "mesh of other devices": (["--config.run.mesh.data=3"], ["mesh data=3, fsdp=1, tensor=1 on 1 devices"]),
    "malformed mesh rule": (["--config.run.mesh.rules=(('x',),)"], ["config.run.mesh.rules=(('x',),)"]),
    "mesh rule for no axis": (["--config.run.mesh.rules=(('x',('rows',)),)"], ["'rows' is no axis of the mesh"]),
    "seed below 0": (["--config.seed=-1"], ["config.seed=-1: expected a whole number from 0 to 4294967295"]),
    "seed of 2^32": (["--config.seed=4294967296"], ["config.seed=4294967296"]),
    "unknown task": (["--config.task=sampling"], ["config.task='sampling': expected one of autoencoder, classifier, diffusion"]),
    "unknown source": (["--config.data.source.name=digit"], ["config.data.source.name='digit': expected one of digits"]),
    "images without a folder": (['--config.data.source={"name":"images"}'], ["'images' needs folder"]),
    "folder that is not there": (['--config.data.source={"name":"images","folder":"/nowhere"}'], ["folder='/nowhere': does not exist"]),
    "unknown transform": (["--config.data.transforms=({'name':'turn'},)"], ["config.data.transforms[0].name='turn'"]),
    "perceptual weight without a file": (["--config.loss.perceptual=1"], ["perceptual_weights must name a file", "cli.convert lpips"]),
    "perceptual file not there": (["--config.loss.perceptual=1", "--config.loss.perceptual_weights=/nowhere"], ["/nowhere: no such file"]),
    "no workdir": (["--workdir="], ["--workdir is missing; for example --workdir=runs"]),
    "workdir is a file": (["--workdir=/etc/passwd"], ["--workdir=/etc/passwd is a file"]),
    "workdir not writable": (["--workdir=/proc/here"], ["--workdir=/proc/here cannot be written"]),
    "unknown flag": (["--wrokdir=x"], ["Unknown command line flag 'wrokdir'. Did you mean: workdir"]),
    "positional leftover": (["configs/x.py"], ["'configs/x.py': not a flag"]),
    "half of the process flags": (["--num_processes=2"], ["--coordinator, --num_processes and --process_id go together"]),
}

DIFFUSION = {
    "no first stage": (["--config.first_stage="], ["config.first_stage: it must name a first stage"]),
    "first stage not there": (["--config.first_stage=/nowhere"], ["config.first_stage: /nowhere does not exist"]),
    "stale key": (["--config.schedule.name=cosine"], ["does not take end", '--config.schedule=\'{"name":"cosine","steps":1000}\'']),
    "unknown sampler": (["--config.sampling.sampler.name=ddmi"], ["sampler.name='ddmi': expected one of ddpm, ddim"]),
    "no sampling steps": (["--config.sampling.steps=0"], ["steps=0: expected a whole number, at least 1"]),
    "more sampling steps than times": (["--config.sampling.steps=1001"], ["give at most 1000"]),
    "guidance nan": (["--config.sampling.guidance=nan"], ["config.sampling.guidance=nan"]),
    "schedule that starts below 0": (["--config.schedule.start=-1"], ["start=-1.0"]),
    "levels too deep for the latent": (["--config.network.levels=(" + '{"width":8,"blocks":1},' * 6
                                        + '{"width":8,"blocks":1,"down":"none"})'],
                                       ["config.network.levels: 7 levels", "a multiple of 64; it is 32, which allows 6"]),
    "last level that goes down": (['--config.network.levels=({"width":8,"blocks":1},)'], ["down='conv'; expected 'none'"]),
    "typo in a level": (['--config.network.levels=({"width":8,"blcks":1},)'], ["config.network.levels[0].blcks", "it takes: blocks"]),
    "heads that do not divide": (['--config.network.levels=({"width":8,"blocks":1,"attention":"plain","heads":3,"down":"none"},)'],
                                 ["width=8 is not divisible by heads=3"]),
    "condition that nothing reads": (["--config.conditioner.into=tokens"], ["config.conditioner tells tokens"]),
    "guidance by a condition that is never dropped": (["--config.conditioner.drop=0"], ["config.sampling.guidance=2.0", "write 1"]),
    "section of the other stage": (["--config.model.width=8"], ["config has no key 'model'"]),
}


def check_training(command, config: str, overrides: list[str], words: list[str], workdir: pathlib.Path) -> None:
    config = [] if overrides[0] == "NO CONFIG" else [f"--config={config}"]
    done = command("train.py", *config, f"--workdir={workdir}", *[o for o in overrides if o != "NO CONFIG"])
    done.refused(*words)
    assert not workdir.exists(), f"written: {list(workdir.rglob('*'))}"


@pytest.mark.parametrize("what", AUTOENCODER)
def test_training_an_autoencoder_refuses(what, command, configs, tmp_path):
    check_training(command, configs["autoencoder"], *AUTOENCODER[what], tmp_path / "run")


@pytest.mark.parametrize("what", DIFFUSION)
def test_training_a_diffusion_model_refuses(what, command, configs, tmp_path):
    check_training(command, configs["pixels"], *DIFFUSION[what], tmp_path / "run")


CONFIG_FILES = {  # what is wrong: (the file, what the line says)
    "not there": (None, ["bad.py: no such file"]),
    "syntax error": ("def get_config():\n    return (\n", ["bad.py:2: SyntaxError"]),
    "error in it": ("def get_config():\n    x = 1\n    return {}['missing']\n", ["bad.py:3: KeyError: 'missing'"]),
    "import that fails": ("import nosuchmodule\n", ["bad.py:1: ModuleNotFoundError"]),
    "file that it reads is not there": ("def get_config():\n    return open('/nowhere')\n", ["bad.py:2: FileNotFoundError"]),
    "no get_config": ("config = 5\n", ["bad.py: it has no function get_config()"]),
    "get_config without a result": ("def get_config():\n    pass\n", ["get_config() gave NoneType, expected a ConfigDict"]),
    "argument that it does not take": ("WORD", ["TypeError: get_config() takes 0 positional arguments"]),
}


@pytest.mark.parametrize("what", CONFIG_FILES)
def test_a_broken_config_file_is_told_by_its_line(what, command, tmp_path):
    text, words = CONFIG_FILES[what]
    file, argument = tmp_path / "bad.py", ":large" * (text == "WORD")
    if text:
        file.write_text(TINY.format(call="tiny_autoencoder()") if text == "WORD" else text)
    command("train.py", f"--config={file}{argument}", f"--workdir={tmp_path / 'run'}").refused(*words)


def test_a_dry_run_tells_every_error_at_once(command, configs, tmp_path):
    """Catches a check that stops at the first error, so that a user mends them one run at a time."""
    planted = ["--config.seed=-1", "--config.learning_rate.peak=-1", "--config.run.steps=0", "--config.model.width=0",
               "--config.loss.kl=-1", "--config.data.transforms=({'name':'turn'},)"]
    told = command("train.py", f"--config={configs['autoencoder']}", "--dry_run", *planted, cwd=tmp_path).refused(
        "config.seed=-1", "config.learning_rate.peak=-1.0", "config.run.steps=0", "width=0", "config.loss", "'turn'", lines=7)
    assert len(told.splitlines()) == len(planted) + 1 and not list(tmp_path.iterdir())
    planted = ["--config.network.time_width=3", "--config.sampling.steps=0", "--config.conditioner.width=0", "--config.weight.name=x"]
    command("train.py", f"--config={configs['pixels']}", "--dry_run", *planted).refused(
        "time_width=3", "steps=0", "config.conditioner", "config.weight.name='x'", lines=len(planted) + 1)


def test_a_batch_that_the_devices_do_not_divide(command, configs, tmp_path):
    """Catches a shape error from deep inside jit, long after the start."""
    check = ["train.py", f"--config={configs['autoencoder']}", f"--workdir={tmp_path / 'run'}", "--config.data.batch=12"]
    done = command(*check, environment={"XLA_FLAGS": "--xla_force_host_platform_device_count=8"})
    done.refused("config.data.batch=12: not divisible by the 8 ways", "nearest: 8, 16")
    assert not (tmp_path / "run").exists()


def test_bad_images_are_named(command, configs, tmp_path):
    """Catches an error without the file's name, a folder without images that trains on nothing, and images that were changed."""
    folder, config = tmp_path / "images", f"--config={configs['autoencoder']}"
    folder.mkdir()
    source = f"--config.data.source={{'name':'images','folder':'{folder}','channels':1,'held_out':0.1}}"
    arguments = ["train.py", config, source, f"--workdir={tmp_path / 'run'}", "--config.data.transforms=({'name':'crop_resize'},)"]
    (folder / "notes.txt").write_text("")
    command(*arguments).refused("no images; looked at any depth", "found 1 .txt")
    assert not (tmp_path / "run").exists()
    for i in range(9):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 40), np.uint8)).save(folder / f"{i}.png")
    for file in sorted(folder.glob("*.png"))[2:]:  # the first of either split is read before the start
        file.write_bytes(file.read_bytes()[:500])
    before = snapshot(folder)
    done = command(*arguments)
    assert done.code == 2 and "Traceback" not in done.err and ".png" in done.lines[-1] and str(folder) in done.lines[-1], done.err
    assert snapshot(folder) == before


def test_a_class_model_of_images_without_classes(command, configs, tmp_path):
    """Catches a class conditioner that silently learns one class."""
    for i in range(3):
        Image.fromarray(np.full((32, 32), 9 * i, np.uint8)).save(tmp_path / f"{i}.png")
    done = command("train.py", f"--config={configs['pixels']}", f"--workdir={tmp_path / 'run'}",
                   f"--config.data.source={{'name':'images','folder':'{tmp_path}'}}")
    done.refused("config.conditioner: classes=0", "does the data source have labels?")
    assert not (tmp_path / "run").exists()


def test_a_section_is_shown_as_it_can_be_typed():
    """Catches JSON's true, and quotes that end the shell's: the literal goes between single quotes and is read back as a literal."""
    section = {"scale": True, "rate": 1e-8, "sizes": (1,), "levels": ({"kind": "none"}, {"kind": "plain"}), "empty": (), "old": 3}
    shown = literal("unet", section, section.keys() - {"old"})
    assert "'" not in shown and ast.literal_eval(shown) == {"name": "unet"} | {k: v for k, v in section.items() if k != "old"}
