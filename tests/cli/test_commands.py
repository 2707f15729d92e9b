"""The commands as programs: their help, their exit statuses, and what they may not import before their flags are known to be right."""

import os
import pathlib
import subprocess
import sys

import pytest

from ldm_jax.cli import entry
from ldm_jax.core.errors import MachineError, NumbersWentBad, Preempted, UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMANDS = {
    "train.py": ("config", "workdir", "dry_run", "coordinator", "debug"),
    "sample.py": ("model", "out", "num_samples", "seed", "labels", "sampler", "grid", "steps", "guidance", "negative_labels",
                  "guide", "threshold", "init_image", "mask", "strength", "size", "tile", "decode_batch", "dtype", "refiner", "handover",
                  "unconditional", "weights", "batch_size", "rounding", "coordinator", "debug"),
    "ldm_jax.cli.evaluate": ("model", "out", "num_samples", "seed", "sampler", "steps", "guidance", "guide", "scales", "weights",
                             "batch_size", "debug", "measure", "likelihood_times", "posterior_variance", "images", "ode_images",
                             "ode_steps", "ode_probes", "picture"),
    "ldm_jax.cli.export": ("model", "out", "weights", "debug"),
    "ldm_jax.cli.inspect": ("model", "debug"),
    "ldm_jax.cli.convert": ("vgg", "heads", "out", "debug"),
}
LIGHT = """
import runpy, sys
sys.argv = [{name!r}, *{arguments!r}]
sys.path.insert(0, {root!r})
try:
    runpy.run_path({name!r}, run_name="__main__") if {name!r}.endswith(".py") else runpy.run_module({name!r}, run_name="__main__")
except SystemExit as leaving:
    print("status", leaving.code)
print("heavy", [name for name in ("jax", "numpy", "flax", "orbax", "grain") if name in sys.modules])
"""


def arguments_of(name: str) -> list[str]:
    return [name] if name.endswith(".py") else ["-m", name]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_every_flag_on_one_page(name, command):
    """Catches a command that does not know --help, and a page of the libraries' flags in which ours are lost."""
    done = command(*arguments_of(name), "--help")
    assert done.code == 0 and not done.err
    told = [line.split()[0].removeprefix("--") for line in done.out.splitlines() if line.startswith("  --")]
    assert set(COMMANDS[name]) <= set(told), f"not told: {set(COMMANDS[name]) - set(told)}"
    assert len(done.out.splitlines()) <= 60 and max(map(len, done.out.splitlines())) <= 140, done.out
    assert f"python {' '.join(arguments_of(name))} " in done.out, "no example"


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "--nosuchflag"])
def test_flags_are_settled_before_anything_heavy_is_imported(name, flag):
    """Catches a module-level import that lets a user wait for seconds to be told of a typo."""
    words = ["lpips"] if name.endswith("convert") and flag != "--help" else []
    program = LIGHT.format(name=name, arguments=[*words, flag], root=str(ROOT))
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert f"status {0 if flag == '--help' else 2}" in done.stdout and "heavy []" in done.stdout, done.stdout + done.stderr


def test_the_page_of_samplers(command):
    """Catches a sampler without its page's line, a default that is not told, and a page that needs a model."""
    from ldm_jax.diffusion.methods import METHODS
    from ldm_jax.diffusion.samplers import ABOUT, SAMPLERS

    done = command("-m", "ldm_jax.cli.inspect", "samplers")
    lines = {line.split()[0]: line for line in done.out.splitlines()}
    assert done.code == 0 and not done.err and set(lines) - {"sampler", "order:"} == {*SAMPLERS, *METHODS} and set(SAMPLERS) == set(ABOUT)
    assert max(map(len, done.out.splitlines())) <= 140
    assert lines["ddim"].split() == ["ddim", "1", "1", "no", "2010.02502", "eta=0"]
    assert lines["heun"].split() == ["heun", "2", "2", "no", "2206.00364", "form=ratio|flow"]
    assert "churn=40" in lines["edm"] and " yes " in lines["edm"]
    assert lines["annealed_langevin"].split()[1:4] == ["5.01", "yes", "1907.05600"] and "inner=5" in lines["annealed_langevin"]


@pytest.mark.parametrize("arguments, words", [([], "--model is missing"), (["sampler"], "'sampler': the first argument is one of samplers"),
                                              (["samplers", "--model=x"], "--model does not go with 'samplers'")])
def test_inspect_refuses(arguments, words):
    """Catches a missing model that is told only after jax was imported."""
    program = LIGHT.format(name="ldm_jax.cli.inspect", arguments=arguments, root=str(ROOT))
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "status 2" in done.stdout and "heavy []" in done.stdout and words in done.stderr, done.stdout + done.stderr


def test_a_config_is_refused_before_anything_heavy_is_imported():
    """The same for the errors of a config file and of its overrides, which ml_collections tells with 35 lines."""
    for arguments, word in ((["--config=nowhere.py"], "no such file"),
                            (["--config=configs/demo/ldm.py", "--config.first_stagee=x"], "no key 'first_stagee'; it has: first_stage")):
        program = LIGHT.format(name="train.py", arguments=arguments, root=str(ROOT))
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert "status 2" in done.stdout and "heavy []" in done.stdout and word in done.stderr, done.stdout + done.stderr


def leaves(error: BaseException | None, capsys, *flags: str) -> tuple[int, str]:
    """(exit status, standard error) of a command whose main raises `error`."""
    def main():
        if error is not None:
            raise error

    with pytest.raises(SystemExit) as leaving:
        entry.run(main, ["command", *flags])
    return leaving.value.code, capsys.readouterr().err


@pytest.mark.parametrize("error, status", [
    (None, 0), (UserError("the line"), 2), (NumbersWentBad("the line"), 5), (MachineError("the line"), 6), (Preempted("the line"), 75),
    (KeyboardInterrupt(), 130), (ZeroDivisionError("the line"), 1), (MemoryError("the line"), 1)])
def test_exit_statuses(error, status, capsys):
    """Catches a scheduler that restarts what can never work, or gives up what was only preempted. One line, without a traceback."""
    code, told = leaves(error, capsys)
    assert code == status and "Traceback" not in told
    assert told.count("\n") == {0: 0, 1: 2}.get(status, 1), told
    assert status == 0 or ("interrupted" if status == 130 else "the line") in told


def test_debug_shows_the_traceback_and_still_ends_with_the_line(capsys):
    code, told = leaves(UserError("the line"), capsys, "--debug")
    entry.flags.FLAGS.debug = False
    assert code == 2 and "Traceback" in told and told.endswith("error: the line\n"), told


def test_several_errors_are_a_list(capsys):
    assert leaves(UserError("first\nsecond"), capsys)[1] == "errors:\n  first\n  second\n"


@pytest.mark.slow
def test_numbers_that_go_bad_end_with_5_and_a_saved_step(command, tmp_path):
    """A learning rate that makes infinities: the batch is named, the last good step is saved, and no traceback comes."""
    (tmp_path / "tiny.py").write_text("from tests.conftest import tiny_autoencoder as get_config\n")
    done = command("train.py", f"--config={tmp_path / 'tiny.py'}", f"--workdir={tmp_path / 'run'}", "--config.learning_rate.peak=1e30")
    assert done.code == 5 and "Traceback" not in done.err and "not finite at step" in done.lines[-1], done.err
    assert "batch (seed=0, k=" in done.lines[-1] and os.listdir(tmp_path / "run" / "checkpoints")


def test_a_closed_pipe_is_no_defect():
    """Catches a traceback under `python -m ldm_jax.cli.inspect ... | head`."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "sample.py", "--help"], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert not done.stderr, done.stderr
