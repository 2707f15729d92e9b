"""The one training loop: step, log, evaluate, preview, save, and stop well. It knows no stage."""

import contextlib
import dataclasses
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import jax

from ldm_jax.core.errors import NumbersWentBad, Preempted, UserError
from ldm_jax.core.keys import base_key
from ldm_jax.train.report import Report, floats, say
from ldm_jax.train.state import State
from ldm_jax.train.steps import Stage, finish_evaluation

LAG = 2  # metrics are read at most this many logged steps late; the device never waits for the host
HELD_OUT_SEED = 0  # of the draws of held-out losses, whatever the run's own seed


@dataclasses.dataclass(frozen=True)
class Plan:
    """When to do what, in steps; 0 means never, but the last step is always saved. profile: [first, last) steps of a profiler trace."""

    steps: int
    log_every: int = 50
    evaluate_every: int = 0
    preview_every: int = 0
    save_every: int = 0
    profile: tuple[int, int] = (0, 0)

    def due(self, every: int, step: int) -> bool:
        return every > 0 and (step % every == 0 or step == self.steps)


@dataclasses.dataclass(frozen=True)
class Run:
    """What the loop is given besides the stage and its state.

    batches: global batches from the state's step on, on the devices. held_out() -> an iterable of global batches with "weight" [B].
    save(state, step, metrics): starts an asynchronous save; wait() returns when it has ended. seed names the data in messages.
    key: base of every random draw in training.
    """

    plan: Plan
    batches: Iterable[dict[str, jax.Array]]
    held_out: Callable[[], Iterable[dict[str, jax.Array]]]
    preview_batch: dict[str, jax.Array] | None
    save: Callable[[State, int, dict[str, float]], None]
    wait: Callable[[], None]
    report: Report
    key: jax.Array
    seed: int


class Stopper:
    """Turns a first SIGTERM into `asked`; a second one, like SIGINT, ends the process at once.

    With several processes jax's own notice of preemption is used: every host then stops at the same step.
    """

    def __init__(self):
        self.asked = False
        self.previous = None

    def __enter__(self):
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self.previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def _note(self, *_):
        self.asked = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def now(self, step: int) -> bool:
        if jax.process_count() == 1:
            return self.asked
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)

    def __exit__(self, *_):
        if self.previous is not None:
            signal.signal(signal.SIGTERM, self.previous)


def evaluate(compiled: Callable, params, frozen, batches) -> dict[str, float]:
    """Means over all held-out batches. The key is the same for every step, run and seed, so that runs and steps pair."""
    total: dict[str, Any] = {}
    key = base_key(HELD_OUT_SEED)
    for batch in batches:
        for name, (value, weight) in compiled(params, frozen, batch, key).items():
            old = total.get(name, (0.0, 0.0))
            total[name] = (old[0] + value, old[1] + weight)
    return {f"held_out/{name}": value for name, value in finish_evaluation(total).items()}


def run(stage: Stage, state: State, frozen, job: Run) -> State:
    """Trains from state.step to plan.steps and returns the last state.

    Raises:
      NumbersWentBad: a loss or gradient was not finite. The bad update was not applied, and the last good state is saved.
      Preempted: SIGTERM arrived; the state after the step in flight is saved.
    """
    plan, first = job.plan, int(state.step)
    step_function = jax.jit(stage.step, donate_argnums=0)
    session = Session(jax.jit(stage.evaluate), jax.jit(stage.preview), frozen, job, saved=first)
    with Stopper() as stopper, contextlib.closing(Trace(plan.profile, job.report.workdir)) as trace:
        batches = iter(job.batches)
        for step in range(first, plan.steps):
            with session.saving_on_error(state):
                batch = next(batches)
            trace.at(step)
            state, metrics = step_function(state, frozen, batch, job.key)
            done = step + 1
            if plan.due(plan.log_every, done):
                session.pending.append((done, metrics))
            session.read(state, keep=LAG)
            if any(plan.due(every, done) for every in (plan.evaluate_every, plan.preview_every, plan.save_every)) or done == plan.steps:
                session.pause(state, done)
            if stopper.now(done):
                session.stop(state, done)
        session.read(state)
        session.check(state)
        job.wait()
    return state


class Session:
    """The host's side of a run: metrics not read yet, and what is due at a pause."""

    def __init__(self, evaluate_step, preview_step, frozen, job: Run, saved: int):
        self.evaluate_step, self.preview_step, self.frozen, self.job = evaluate_step, preview_step, frozen, job
        self.pending: deque = deque()
        self.saved = saved

    def read(self, state: State, keep: int = 0) -> None:
        """Reports all but the last `keep` logged steps, and stops the run if one of them was bad.

        A single process also reports what happens to be done already; several must all stop at the same step.
        """
        while self.pending and (len(self.pending) > keep or jax.process_count() == 1 and self.pending[0][1]["bad"].is_ready()):
            step, metrics = self.pending.popleft()
            values = floats(metrics)
            if values.pop("bad"):
                self.fail(state, values)
            self.job.report.scalars(step, values)
            shown = {name: values[name] for name in ("loss", "gradient_norm") if name in values}
            self.job.report.progress(step, shown)

    def fail(self, state: State, values: dict[str, float]) -> None:
        """Saves the last good state and names the batch that broke."""
        good = int(state.step)
        if good != self.saved:
            self.job.save(dataclasses.replace(state, bad=jax.numpy.zeros_like(state.bad)), good, {})
        saved = f"step {good} is saved" if good else "nothing is saved, for no step was good"
        raise NumbersWentBad(f"not finite at step {good}: batch (seed={self.job.seed}, k={good}); "
                             f"the update was not applied and {saved}. Last seen: {values}")

    def check(self, state: State) -> None:
        """Stops the run if a step that was not logged was bad."""
        if bool(state.bad):
            self.fail(state, {})

    def pause(self, state: State, step: int) -> None:
        plan, job = self.job.plan, self.job
        self.read(state)
        self.check(state)
        params = state.params if state.ema is None else state.ema
        values: dict[str, float] = {}
        if plan.due(plan.evaluate_every, step):
            with self.saving_on_error(state):
                values = evaluate(self.evaluate_step, params, self.frozen, job.held_out())
            job.report.scalars(step, values)
            say(f"step {step}  " + "  ".join(f"{name} {value:.4g}" for name, value in values.items() if "/time" not in name))
        if plan.due(plan.save_every, step) or step == plan.steps:
            job.save(state, step, values)
            self.saved = step
        if plan.due(plan.preview_every, step) and job.preview_batch is not None:
            images = self.preview_step(params, self.frozen, job.preview_batch, job.key)
            job.report.pictures(step, "preview", {name: fetch(image) for name, image in images.items()})
        job.report.resume_clock(step)

    @contextlib.contextmanager
    def saving_on_error(self, state: State):
        """Saves the state before an error of the data ends the run. Several processes do not meet it together, and so do not save."""
        try:
            yield
        except UserError:
            step = int(state.step)
            if jax.process_count() == 1 and step != self.saved and not bool(state.bad):
                self.job.save(state, step, {})
                self.saved = step
            raise

    def stop(self, state: State, step: int) -> None:
        self.read(state)
        self.check(state)
        if self.saved != step:
            self.job.save(state, step, {})
        raise Preempted(f"stopped by SIGTERM at step {step}; saved")


def fetch(array: jax.Array):
    """A global array on every host, as numpy."""
    if array.is_fully_addressable:
        return jax.device_get(array)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(array, tiled=True)


class Trace:
    """A profiler trace of the steps [first, last), or of those of them that are run; (0, 0) for none. Written when it is closed."""

    def __init__(self, span: tuple[int, int], workdir):
        self.span, self.folder, self.began = span, str(workdir / "profile"), None

    def at(self, step: int) -> None:
        """Call before each step."""
        if self.began is None and self.span[0] <= step < self.span[1]:
            jax.profiler.start_trace(self.folder)
            self.began = step
        elif step >= self.span[1]:
            self.close()

    def close(self) -> None:
        if self.began is not None:
            jax.profiler.stop_trace()
            say(f"profile from step {self.began} on written to {self.folder}")
            self.began, self.span = None, (0, 0)
