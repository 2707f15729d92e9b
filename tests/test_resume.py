"""Resume is an equality: killed at any moment and started again, a run ends as the undisturbed one, bit for bit."""

import os
import random
import shutil
import signal
import time

import pytest

from tests import runs
from tests.runs import EIGHT_FSDP, ONE, SAVE_EVERY, STEPS, TWO

SEED = int(os.environ.get("KILL_SEED", time.time_ns() % 10**6))
KILLS = {("kl", ONE): 3, ("ldm", ONE): 3, ("vq", ONE): 1, ("kl", EIGHT_FSDP): 1, ("ldm", EIGHT_FSDP): 1, ("kl", TWO): 1, ("ldm", TWO): 1}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return runs.shared(tmp_path_factory)


def name_of(case) -> str:
    (kind, (devices, processes, _)) = case
    return f"{kind}_on_{devices}_devices_of_{processes}_processes"


QUICK = {("ldm", TWO)}  # the others are slow


@pytest.mark.parametrize("case", [pytest.param(case, id=name_of(case), marks=[pytest.mark.slow] * (case not in QUICK)) for case in KILLS])
def test_killed_and_resumed_equals_undisturbed(shared, case):
    """Mistake: anything that a step changes and a checkpoint lacks (an optimizer, batch statistics, codebook use, what the times
    remember, the step that keys are made from), data that start again, a save that counts before it is whole, lines of metrics lost
    or written twice.

    The moment: a step drawn at random must have been told, then up to 0.3 s pass; every process gets SIGKILL. The last kill comes
    after step 6, so that a step is saved, and 3 steps and 2 saves before the end, so that there is something left to do.
    """
    kind, how = case
    dice = random.Random(f"{SEED} {name_of(case)}")
    whole, _ = shared.started(kind, how)  # in the background, while the other one is killed
    killed, told = whole.with_name(whole.name + "_killed"), 0
    for n in range(KILLS[case]):
        last = n == KILLS[case] - 1
        step, delay = dice.randrange(2 * SAVE_EVERY + 1 if last else min(told, 8), 3 * SAVE_EVERY), dice.uniform(0, 0.3)
        running = runs.train(shared.config(kind), killed, how)
        assert running.wait_for(f"step {step}/{STEPS}" if step > told else f"steps {told} to {STEPS}, in"), running.said()
        time.sleep(delay)
        running.signal(signal.SIGKILL)
        assert set(running.wait()) == {-signal.SIGKILL}
        told = newest(killed)
        print(f"KILL_SEED={SEED}: {name_of(case)}: killed {delay:.2f} s after step {step} was told; newest saved step {told}")
    assert 0 < told < STEPS
    resumed = runs.train(shared.config(kind), killed, how).finished()
    assert f"resumed from step {told}" in resumed.said()
    assert runs.different(shared.whole(kind, how), killed) == []
    state = runs.state_of(killed)
    wanted = {"kl": "critic/batch_stats", "vq": "code_use", "ldm": "extra/times/losses"}[kind]
    assert any(wanted in path for path in state) and any("ema/" in path for path in state) and int(state["train/step"]) == STEPS
    assert [line["step"] for line in runs.lines(killed)] == list(range(1, STEPS + 1))
    if kind == "vq":
        assert sum(line["codebook/revived"] for line in runs.lines(killed)) > 0, "no code was revived: the case tests nothing"


def newest(workdir) -> int:
    """The newest saved step, without touching what a kill left; 0 for none."""
    return max([int(path.parent.name) for path in workdir.glob("checkpoints/*/digests.json") if path.parent.name.isdigit()], default=0)


@pytest.mark.parametrize("how", [pytest.param(ONE, id="1_process", marks=pytest.mark.slow), pytest.param(TWO, id="2_processes")])
def test_sigterm_saves_and_exits_with_75(shared, tmp_path, how):
    """Mistake: a preempted run that loses its steps, says it failed, or whose hosts stop at different steps (a hang)."""
    long = ("--config.run.steps=5000", "--config.run.save_every=0")
    config = shared.config("kl")
    running = runs.train(config, tmp_path / "run", how, *long)
    assert running.wait_for("step 4/")
    os.kill(running.processes[-1].pid, signal.SIGTERM)  # one host alone is told to go
    if how is ONE:
        assert running.wait() == [75]
    else:
        assert running.wait() == [75, 75]
    steps = {text.split("stopped by SIGTERM at step ")[1].split(";")[0] for text in map(running.said, range(how[1]))}
    assert len(steps) == 1 and int(steps.pop()) == newest(tmp_path / "run") >= 4
    if how is ONE:
        stopped = newest(tmp_path / "run")
        again = runs.train(config, tmp_path / "run", how, f"--config.run.steps={stopped + 1}").finished()
        assert f"resumed from step {stopped}" in again.said()


def test_a_second_sigterm_ends_at_once(shared, tmp_path):
    """Mistake: a process that can only be ended by SIGKILL while it waits, here for its first compilation."""
    running = runs.train(shared.config("kl"), tmp_path / "run", ONE, "--config.run.steps=5000", "--config.run.save_every=0")
    assert running.wait_for("to 5000, in")
    time.sleep(0.1)
    running.signal(signal.SIGTERM)
    time.sleep(0.1)
    assert running.processes[0].exitcode is None
    began = time.monotonic()
    running.signal(signal.SIGTERM)
    assert running.wait(30) == [-signal.SIGTERM] and time.monotonic() - began < 5
    assert newest(tmp_path / "run") == 0


@pytest.fixture
def copy(shared, tmp_path):
    """(workdir, plain config) of a finished run on one device, for a test to break; the first stage stands beside it."""
    from ldm_jax.config_tree import from_json

    def copied(kind):
        whole = shared.whole(kind, ONE)
        for source in {shared.first_stage(), whole}:
            shutil.copytree(source, tmp_path / source.name)
        workdir = tmp_path / whole.name
        saved = from_json(runs.json.loads((workdir / "config.json").read_text()))
        if kind == "ldm":
            saved["first_stage"] = str(tmp_path / shared.first_stage().name)
        return workdir, saved | {"run": saved["run"] | {"steps": STEPS + 1}}

    return copied


@pytest.fixture
def first_step(monkeypatch):
    """Replaces the loop: the steps that runs would have begun with."""
    from ldm_jax import launch

    begun = []
    monkeypatch.setattr(launch.loop, "run", lambda stage, state, *_: begun.append(int(state.step)) or state)
    return begun


def test_every_damaged_file_is_found_before_the_first_step(copy, first_step, capsys):
    """Mistake: a bit that flipped on disk trained on (Orbax restores it silently), or a fall back to an older step without a word."""
    from ldm_jax import launch

    workdir, config = copy("kl")
    step, dice = workdir / "checkpoints" / str(STEPS), random.Random(0)
    files = sorted(path.relative_to(step) for path in step.rglob("*") if path.is_file())
    kinds = {(path.parts[0] if path.name == "data.json" else "", path.name if path.parent.name != "d" else "d"): path for path in files}
    known = {"digests.json", "_METADATA", "_sharding", "manifest.ocdbt", "d", "data.json", "commit_success.txt"}
    assert {name for _, name in kinds} >= known
    for path in kinds.values():
        good = (step / path).read_bytes()
        broken = bytearray(good or b"\0")  # a file that is empty can only grow
        broken[dice.randrange(len(broken))] ^= 1 << dice.randrange(8)
        (step / path).write_bytes(broken)
        capsys.readouterr()
        launch.train(config, str(workdir))
        said = [line for line in capsys.readouterr().err.splitlines() if "CHECKPOINT" in line]
        assert len(said) == 1 and path.name in said[0] and f"step {STEPS - SAVE_EVERY} is used instead" in said[0], said
        assert first_step.pop() == STEPS - SAVE_EVERY
        step.with_name(f"{STEPS}.damaged").rename(step)
        (step / path).write_bytes(good)
    launch.train(config, str(workdir))
    assert first_step == [STEPS]


@pytest.mark.slow
def test_a_damaged_step_is_passed_over_by_the_command(copy, shared):
    """Mistake: a fall back that is found, but not trained on from, or that ends otherwise than the undisturbed run."""
    workdir, _ = copy("kl")
    (workdir / "checkpoints" / str(STEPS) / "train" / "_METADATA").write_text("{}")
    again = runs.train(shared.config("kl"), workdir).finished()
    assert again.said().count("CHECKPOINT: step") == 1 and f"resumed from step {STEPS - SAVE_EVERY}" in again.said()
    assert runs.different(shared.whole("kl", ONE), workdir) == []


def test_a_changed_first_stage_is_refused(copy, first_step):
    """Mistake: latents of another first stage, or of a damaged one, under a denoiser that was trained on the old ones."""
    from ldm_jax import launch
    from ldm_jax.core.errors import UserError

    workdir, config = copy("ldm")
    first = runs.pathlib.Path(config["first_stage"])
    steps = sorted((first / "checkpoints").iterdir(), key=lambda path: int(path.name))
    older = steps[0]
    steps[-1].rename(first / "aside")  # as if stage 1 had been trained anew: its newest step is another one
    with pytest.raises(UserError, match="the first stage .* has changed since this run began"):
        launch.train(config, str(workdir))
    data = max((older / "ema").rglob("d/*"), key=lambda path: path.stat().st_size)
    data.write_bytes(data.read_bytes()[:-1] + bytes([data.read_bytes()[-1] ^ 1]))
    for path in (first, older):
        with pytest.raises(UserError, match=rf"config.first_stage: .*{data.name}"):
            launch.train(config | {"first_stage": str(path)}, str(workdir))
    assert first_step == []


def test_a_flipped_bit_in_the_first_stage_is_exit_2(copy, shared):
    """Mistake: the same, by the command: a traceback, or another status."""
    workdir, config = copy("ldm")
    data = max(runs.pathlib.Path(config["first_stage"]).glob(f"checkpoints/{STEPS}/ema/d/*"), key=lambda path: path.stat().st_size)
    data.write_bytes(data.read_bytes()[:-1] + bytes([data.read_bytes()[-1] ^ 1]))
    again = runs.train(shared.config("ldm"), workdir, ONE, f"--config.first_stage={config['first_stage']}",
                       f"--config.run.steps={STEPS + 1}")
    assert again.wait() == [2], again.said()
    assert f"CHECKPOINT: step {STEPS} " in again.said() and "first stage" in again.said().splitlines()[-1]
    assert "Traceback" not in again.said() and f"step {STEPS + 1}/" not in again.said()


def test_other_data_are_refused_by_the_name_of_the_field(copy, first_step, monkeypatch):
    """Mistake: training on over other records, which no shape shows."""
    from ldm_jax import launch
    from ldm_jax.core.errors import UserError
    from ldm_jax.data.digits import Digits

    workdir, config = copy("kl")
    honest = Digits.fingerprint
    monkeypatch.setattr(Digits, "fingerprint", lambda self: honest(self) | {"records": 1401})
    with pytest.raises(UserError, match=r"not what this run was trained on: .*source.records.*1400.*1401"):
        launch.train(config, str(workdir))
    assert first_step == []


def test_only_config_run_may_change(copy, first_step):
    """Mistake: a resumed run that quietly trains with another learning rate, or one that may not even be trained for longer."""
    from ldm_jax import launch
    from ldm_jax.core.errors import UserError

    workdir, config = copy("kl")
    changed = config | {"learning_rate": config["learning_rate"] | {"peak": 2e-3}, "seed": 1}
    with pytest.raises(UserError, match=r"config.learning_rate.peak: 0.001, now 0.002; config.seed: 0, now 1") as told:
        launch.train(changed, str(workdir))
    assert "config.run" in str(told.value) and first_step == []
    launch.train(config | {"run": config["run"] | {"log_every": 5, "reader_threads": 0, "steps": STEPS + 7}}, str(workdir))
    assert first_step == [STEPS]
