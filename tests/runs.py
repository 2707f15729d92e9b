"""The real commands as child processes: their configs, their devices, their ends; and what two finished runs differ in."""

import atexit
import dataclasses
import functools
import json
import multiprocessing
import os
import pathlib
import runpy
import signal
import socket
import sys
import threading
import time
import traceback
from multiprocessing import resource_tracker

ROOT = pathlib.Path(__file__).parents[1]
STEPS, SAVE_EVERY = 12, 3
# A loaded machine may keep a CPU collective waiting for longer than XLA's own patience.
FLAGS = (" --xla_cpu_collective_call_terminate_timeout_seconds=600 --xla_cpu_collective_call_warn_stuck_timeout_seconds=300"
         " --xla_backend_optimization_level=0")  # the last one halves the time to compile

SMALL = {"model.multipliers": (1, 2), "critic": dict(name="patch", width=8, layers=1, weight=0.8), "latent_units.images": 16,
         "run.steps": STEPS, "run.save_every": SAVE_EVERY, "run.keep_last": 2}
CONFIGS = {
    "kl": ("tiny_autoencoder()", SMALL),
    "vq": ("tiny_autoencoder()", SMALL | {"model.bottleneck": dict(name="vq", codes=32),
                                          "revival": dict(decay=0.5, threshold=0.5, every=2)}),
    "ldm": ("tiny_ldm(FIRST)", {"run.steps": STEPS, "run.save_every": SAVE_EVERY, "run.keep_last": 2, "network.dropout": 0.1,
                             "network.levels": (dict(width=8, blocks=1, attention="plain", heads=2, depth=1, down="none"),),
                             "times": dict(name="importance", remembered=2, bins=4), "log_variance": dict(name="learned", bins=4),
                             "offset_noise": 0.1}),
}
# How a run is spread: forced host devices, processes, and overrides.
ONE, EIGHT_DATA, TWO = (1, 1, ()), (8, 1, ()), (1, 2, ())
EIGHT_FSDP = (8, 1, ("--config.run.mesh.fsdp=2", "--config.run.mesh.fsdp_threshold=500"))
MODULE = """
from tests.conftest import tiny_autoencoder, tiny_ldm, updated
FIRST = {first!r}
def get_config():
    return updated({call}, {changes!r})
"""


def config_file(folder: pathlib.Path, kind: str, first="", **changes) -> str:
    """Writes a config module of one of CONFIGS, with dotted changes."""
    call, fixed = CONFIGS[kind]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{kind}_{len(list(folder.iterdir()))}.py"
    path.write_text(MODULE.format(first=str(first), call=call, changes=fixed | changes))
    return str(path)


def become(argv: list[str], log: str, flags: str) -> None:
    """In a forked process: `python *argv`, with what it says in a file."""
    os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    for number in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(ROOT)
    resource_tracker._resource_tracker.__init__()  # one of its own: it complains of what SIGKILL leaves, in this log then
    sys.argv, code = list(argv), 0
    try:
        runpy.run_path(str(ROOT / argv[0]), run_name="__main__")
    except SystemExit as leaving:
        code = leaving.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:  # as Python ends: jax leaves the other processes in an atexit handler, which a forked process would not call
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@functools.cache
def forks():
    """Processes are forked from one that has imported everything, and started nothing: it spares each command 4 s of CPU."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["jax", "grain", "tensorboardX", "sklearn.datasets", "sklearn.model_selection", "tqdm", "absl.flags",
                                    "ml_collections.config_flags", "orbax.checkpoint.v1", "ldm_jax.launch", "tests.runs"])
    return context


class Running:
    """One command on one or more processes; what they say goes to files."""

    def __init__(self, command: list[str], log: pathlib.Path, devices: int = 1, processes: int = 1, each=()):
        self.logs, self.processes = [], []
        address = f"localhost:{free_port()}"
        for number in range(processes):
            joined = [f"--coordinator={address}", f"--num_processes={processes}", f"--process_id={number}"] if processes > 1 else []
            self.logs.append(log.with_name(f"{log.name}_{number}_{time.monotonic_ns()}.log"))
            self.logs[-1].touch()
            argv = [*command, *joined, *(each[number] if each else ())]
            flags = f"--xla_force_host_platform_device_count={devices}{FLAGS}"
            self.processes.append(forks().Process(target=become, args=(argv, str(self.logs[-1]), flags), daemon=True))
            self.processes[-1].start()

    def said(self, number: int = 0) -> str:
        return self.logs[number].read_text()

    def wait(self, seconds: float = 240) -> list[int]:
        """Exit codes; what is still there after `seconds` is killed and counts as a hang."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.1, end - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        self.signal(signal.SIGKILL)
        told = "\n".join(log.read_text()[-2000:] for log in self.logs)
        assert None not in codes, f"still running after {seconds} s: {codes}\n{told}"
        return codes

    def finished(self) -> "Running":
        codes = self.wait()
        assert set(codes) == {0}, (codes, [log.read_text()[-3000:] for log in self.logs])
        return self

    def wait_for(self, text: str, seconds: float = 240) -> bool:
        """Waits until process 0 has said `text`; False if it ended without."""
        end = time.monotonic() + seconds
        while text not in self.said():
            if self.processes[0].exitcode is not None:
                return text in self.said()
            assert time.monotonic() < end, f"no {text!r} in {seconds} s: {self.said()[-2000:]}"
            time.sleep(0.01)
        return True

    def signal(self, number: int) -> None:
        for process in self.processes:
            if process.exitcode is None:
                os.kill(process.pid, number)
        if number == signal.SIGKILL:
            for process in self.processes:
                process.join()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def train(config: str, workdir: pathlib.Path, how=ONE, *overrides, each=()) -> Running:
    devices, processes, spread = how
    command = ["train.py", f"--config={config}", f"--workdir={workdir}", *spread, *overrides]
    return Running(command, workdir.with_name(workdir.name + "_said"), devices, processes, each)


@dataclasses.dataclass(frozen=True)
class Shared:
    """The undisturbed runs of a session of tests, each done once, by whichever worker asks first. They stand in one folder and know
    each other by relative paths."""

    folder: pathlib.Path

    @functools.cache  # noqa: B019  (one folder a session)
    def config(self, kind: str) -> str:
        return config_file(self.folder / f"configs_{os.getpid()}", kind, self.first_stage() if kind == "ldm" else "")

    @functools.cache  # noqa: B019
    def started(self, kind: str, how) -> tuple[pathlib.Path, "Running | None"]:
        """The workdir and, if this worker is the first to ask, the run; None if another worker runs it."""
        workdir = self.folder / f"{kind}_{how[0]}x{how[1]}_{len(how[2])}"
        config = self.config(kind)
        try:
            workdir.with_name(workdir.name + "_taken").mkdir(parents=True)
        except FileExistsError:
            return workdir, None
        return workdir, train(config, workdir, how)

    def whole(self, kind: str, how) -> pathlib.Path:
        """The workdir of the undisturbed run."""
        workdir, running = self.started(kind, how)
        done = workdir.with_name(workdir.name + "_done")
        if running is not None:
            running.finished()
            done.touch()
        end = time.monotonic() + 480
        while not done.exists():
            if time.monotonic() > end or (workdir / "checkpoints" / str(STEPS) / "digests.json").exists() and len(lines(workdir)) == STEPS:
                time.sleep(1)  # all is written; the process is ending
                break
            time.sleep(0.2)
        return workdir

    def first_stage(self) -> pathlib.Path:
        """The first stage of every stage 2 run here: stage 1 on one device."""
        return self.whole("kl", ONE)


def shared(factory) -> Shared:
    """The same for every test file of a session, and for all workers of xdist."""
    base = factory.getbasetemp()
    return Shared((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared_runs")


def lines(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def state_of(workdir, step: int = STEPS) -> dict:
    """{path: host array} of everything in a saved step."""
    import numpy as np

    from ldm_jax.checkpoint.store import Store
    from ldm_jax.core.trees import paths

    store = Store(workdir / "checkpoints", read_only=True)
    named = {name: store.restore(step, name, store.stored(step, name)) for name in ("params", "ema", "train")}
    return {path: np.asarray(leaf) for path, leaf in paths(named)}


def different(one, other, step: int = STEPS) -> list[str]:
    """What differs in two runs: arrays by their bytes, records but for seconds, lines of metrics.jsonl."""
    from ldm_jax.checkpoint.store import Store

    a, b = state_of(one, step), state_of(other, step)
    found = sorted(a.keys() ^ b.keys())
    found += [path for path in a.keys() & b.keys() if (a[path].dtype, a[path].shape, a[path].tobytes()) !=
              (b[path].dtype, b[path].shape, b[path].tobytes())]
    stores = [Store(place / "checkpoints", read_only=True) for place in (one, other)]
    found += [name for name in ("data", "manifest") if stores[0].record(step, name) != stores[1].record(step, name)]
    if (one / "metrics.jsonl").read_text() != (other / "metrics.jsonl").read_text():
        found.append("metrics.jsonl")
    return found
