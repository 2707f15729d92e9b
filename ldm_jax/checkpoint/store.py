"""Saves and restores the steps of a run: Orbax for the arrays, digests for the trust.

A step is a folder `<step>/` of separately restorable items. Its life: Orbax writes a temporary folder and renames it;
then, off the main thread, digests.json is written; only then does the step count as saved. A fallen step is renamed to
`<step>.damaged` and stays; one without digests.json never counted and is moved to `<step>.unfinished`.

On several processes every method but `steps`, `poll` and `last_saved` is called by all of them, in one order. Process 0
writes the digests, the others wait for the file to appear, off their main thread; process 0 verifies, sets aside, and
broadcasts the step that all then use. The only waits on the main thread are Orbax's own barriers at the start of a save
and the end of the previous save.
"""

import json
import math
import threading
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from ldm_jax.checkpoint import digests, folders, items
from ldm_jax.core.errors import MachineError, UserError


class Store:
    """The checkpoints of one run.

    Args:
      directory: `<run>/checkpoints`, a local path or one that epath knows; the same on every process.
      keep_last: how many of the newest steps stay, >= 1.
      keep_every: steps divisible by it stay for ever; 0 for none.
      best: (metric, "min" | "max"): the best step by this metric stays too; None for none.
      read_only: for readers (sampling, evaluation): nothing is created, renamed or removed.

    Raises:
      UserError: a bad policy, or, read_only, a directory that is not there.
    """

    def __init__(self, directory, *, keep_last: int = 3, keep_every: int = 0, best: tuple[str, str] | None = None, read_only: bool = False):
        if keep_last < 1 or keep_every < 0:
            raise UserError(f"keep_last={keep_last}, keep_every={keep_every}: expected keep_last >= 1 and keep_every >= 0")
        if best is not None and (len(best) != 2 or best[1] not in ("min", "max")):
            raise UserError(f"best={best}: expected (metric name, 'min' or 'max')")
        self.directory = epath.Path(directory)
        if digests.is_local(self.directory):
            self.directory = self.directory.absolute()
        self.read_only = read_only
        self._keep_last, self._keep_every, self._best = keep_last, keep_every, best
        self._thread: threading.Thread | None = None
        self._error: tuple[str, BaseException] | None = None
        self._last_saved: int | None = None
        self._trusted: set[int] = set()
        if read_only:
            if not self.directory.is_dir():
                raise UserError(f"no checkpoints at {self.directory}: there is no such folder")
        else:
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
            except (OSError, ValueError, ImportError, NotImplementedError, RuntimeError) as error:
                raise UserError(f"checkpoints cannot be written to {self.directory}: {error}") from error

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._join()
        if kind is None:
            self.poll()

    # Writing

    @property
    def last_saved(self) -> int | None:
        """The newest step known to count as saved: by `save` of this object, or found by `newest_valid`."""
        return self._last_saved

    @property
    def busy(self) -> bool:
        """Whether a save is still being written."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, step: int, trees: Mapping[str, Any], records: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None:
        """Starts saving a step; returns when the arrays have been copied to the host, so they may be donated.

        Waits first for the save before this one. The step counts as saved when `last_saved` says so.

        Args:
          step: >= 0, not saved before.
          trees: item name -> pytree of jax arrays ("params", "ema", "train"); no typed keys (save their key_data).
          records: record name -> what JSON can say exactly ("data", "progress", "manifest").
          metrics: numbers to choose the best step by; one that is not finite never wins.

        Raises:
          MachineError: the save before this one failed, or this one could not be started.
          UserError: the step exists, or a tree or record holds what cannot be saved.
        """
        if self.read_only:
            raise UserError(f"{self.directory} was opened to read: nothing is saved there")
        self.wait()
        step = int(step)
        self._trusted.discard(step)
        measured = {k: float(v) if math.isfinite(v) else None for k, v in (metrics or {}).items()}
        folder = self.directory / str(step)
        if folder.exists():
            raise UserError(f"step {step} is already in {self.directory}: a step is saved once")
        try:
            response = items.save(folder, trees, records)
        except UserError:
            raise
        except Exception as error:
            raise MachineError(f"step {step} could not be saved to {self.directory}: {items.short(error)}") from error
        self._thread = threading.Thread(target=self._finish, args=(step, folder, response, measured), name=f"save-{step}", daemon=True)
        self._thread.start()

    def _finish(self, step: int, folder, response, metrics) -> None:
        """On the background thread: waits for Orbax's commit, writes the digests, removes what the policy does not keep."""
        doing = f"step {step} was not saved to {self.directory}"
        try:
            response.result()
            if jax.process_index() == 0:
                digests.write(folder, step, metrics)
            else:
                folders.await_file(folder / digests.NAME)
            self._last_saved = step
            doing = f"step {step} was saved to {self.directory}, but older ones could not be removed"
            if jax.process_index() == 0:
                for old in self._surplus(step):
                    self._trusted.discard(old)
                    folders.remove(self.directory, old)
        except BaseException as error:  # noqa: BLE001 - surfaces at the next poll, wait or save
            self._error = (doing, error)

    def poll(self) -> None:
        """Raises the error of background work that has ended, once; never waits.

        Raises:
          MachineError: which step was not saved, and why.
        """
        if self._error is not None and not self.busy:
            told, error = self._error
            self._error = None
            raise MachineError(f"{told}: {items.short(error)}") from error

    def wait(self) -> None:
        """Waits until the save that runs, if any, has ended, and raises its error."""
        self._join()
        self.poll()

    def close(self) -> None:
        """Waits for the last save; call it in a `finally`, or use the store as a context manager."""
        self.wait()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    # Keeping and removing

    def _surplus(self, newest: int) -> list[int]:
        """Saved steps that no rule keeps. `newest`, whose digests were just written, always stays."""
        saved = {}
        for step in self.steps():
            try:
                saved[step] = digests.read(self.directory / str(step), step).metrics
            except digests.Damaged:
                continue
        return folders.surplus(saved, newest, self._keep_last, self._keep_every, self._best)

    # Finding

    def steps(self) -> list[int]:
        """Steps that have a digests.json, ascending; their files are not verified."""
        return [step for step in self._folders() if (self.directory / str(step) / digests.NAME).exists()]

    def _folders(self) -> list[int]:
        if not self.directory.is_dir():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir() if folders.is_step(path.name))

    def check(self, step: int) -> None:
        """Verifies every file of one step against its digests.

        Raises:
          UserError: no such step, an unfinished one, or the file that is damaged; and the steps there are.
        """
        if step in self._trusted:
            return
        if step not in self._folders():
            raise UserError(f"no step {step} in {self.directory}: it has {', '.join(map(str, self.steps())) or 'none'}")
        try:
            digests.check(self.directory / str(step), step)
        except digests.Damaged as error:
            raise UserError(f"step {step} in {self.directory} is damaged: {error}") from None
        self._trusted.add(step)

    def newest_valid(self) -> int | None:
        """The newest step whose every file is as it was saved; None where nothing was ever saved.

        Damaged steps above it are renamed to `<step>.damaged` (unless read_only), each with one line on stderr; what
        interrupted saves left is moved aside (`<step>.unfinished`) or, if Orbax never committed it, removed. Process 0
        looks; all processes get its answer.

        Raises:
          UserError: there are steps and none is valid: each is named with its reason, and nothing is renamed.
        """
        self.wait()
        found, message = -1, ""
        if jax.process_index() == 0:
            try:
                step = self._find()
                found = -1 if step is None else step
            except Exception as error:  # whatever it is, the other processes wait for an answer
                found, message = -2, str(error) if isinstance(error, UserError) else items.short(error)
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils
            found = int(multihost_utils.broadcast_one_to_all(np.asarray(found, np.int32)))
        if found == -2:
            raise UserError(message or f"no valid step in {self.directory}: process 0 says why")
        if found == -1:
            return None
        self._trusted.add(found)
        self._last_saved = found
        return found

    def _find(self) -> int | None:
        damaged, unfinished, valid = {}, [], None
        for step in reversed(self._folders()):
            try:
                digests.check(self.directory / str(step), step)
                valid = step
                break
            except digests.Unfinished:
                unfinished.append(step)
            except digests.Damaged as error:
                damaged[step] = str(error)
        names = [path.name for path in self.directory.iterdir()]
        if valid is None:
            # One save runs at a time, so a kill leaves one unfinished step; more of them have lost their digests since.
            if len(unfinished) > 1:
                damaged |= {step: f"{digests.NAME}: missing" for step in unfinished}
            aside = [name for name in names if ".damaged" in name]
            if damaged or aside:
                told = [f"step {step}: {why}" for step, why in damaged.items()] + [f"{name}: set aside earlier" for name in sorted(aside)]
                raise UserError(f"no valid step in {self.directory}: {'; '.join(told)}. Restore a copy of one, or start again in "
                                "another folder")
        instead = f"step {valid} is used instead" if valid is not None else "there is no earlier step"
        for step, why in damaged.items():
            folders.set_aside(self.directory, step, "damaged", f"is damaged ({why})", instead, self.read_only)
        for step in unfinished:
            folders.set_aside(self.directory, step, "unfinished", f"was never finished (no {digests.NAME})", instead, self.read_only)
        if not self.read_only:
            for name in names:
                if folders.is_leftover(name):
                    (self.directory / name).rmtree()
        return valid

    # Reading

    def record(self, step: int, name: str) -> Any:
        """A JSON record of a step, after the step has been verified.

        Raises:
          UserError: no such step or record, or a damaged step.
        """
        self.check(step)
        path = self.directory / str(step) / name / items.RECORD_FILE
        if not path.exists():
            raise UserError(f"step {step} in {self.directory} has no record '{name}'")
        return json.loads(path.read_text())

    def stored(self, step: int, name: str) -> Any:
        """The shapes and dtypes of an item as saved: nested dicts (lists for tuples) of jax.ShapeDtypeStruct.

        Raises:
          UserError: no such step or item, or a damaged step.
        """
        self.check(step)
        return items.stored(self.directory / str(step), name, f"step {step} in {self.directory}")

    def restore(self, step: int, name: str, abstract: Any) -> Any:
        """An item of a verified step, onto any devices.

        Args:
          abstract: the tree wanted, of jax.ShapeDtypeStruct or arrays; each leaf's `sharding` says where it goes (none:
            the first device, on one process). Optimizer states and structs come back as the types they are here.

        Returns:
          The tree of jax arrays, bit for bit as saved.

        Raises:
          UserError: a damaged step, or leaves missing, superfluous, or of another shape or dtype: the first are named.
        """
        self.check(step)
        return items.restore(self.directory / str(step), name, abstract, f"step {step} in {self.directory}")
