"""The doors of a run: its hosts, and its folder."""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping

import jax
import numpy as np
from etils import epath

from ldm_jax.checkpoint.digests import write_atomically
from ldm_jax.config_tree import completed, differences, from_json
from ldm_jax.core.errors import MachineError, UserError

CONFIG = "config.json"


def initialise(coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Joins the processes of a run: as told, or as a TPU pod or Slurm says in the environment; one process otherwise.

    Raises:
      UserError: only some of the three are given.
      MachineError: the others were not reached.
    """
    given = [bool(coordinator), num_processes > 0, process_id >= 0]
    if any(given) and not all(given):
        raise UserError("--coordinator, --num_processes and --process_id go together")
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    found = len(hosts) > 1 or int(os.environ.get("SLURM_NTASKS", "1")) > 1
    try:
        if all(given):
            jax.distributed.initialize(coordinator, num_processes, process_id, initialization_timeout=120)
        elif found:
            jax.distributed.initialize(initialization_timeout=120)
    except (RuntimeError, ValueError) as error:
        why = " ".join(str(error).split())[:300]
        told = f"process {process_id} of {num_processes} could not join at {coordinator}"
        who = told if all(given) else "the hosts did not find each other"
        raise MachineError(f"{who}: {why}") from None


def open_workdir(workdir: str, config: Mapping) -> epath.Path:
    """The folder of a run, made if need be.

    Raises:
      UserError: a file, not writable, or the run of another config.
    """
    refuse_remote(workdir, "--workdir")
    folder = epath.Path(workdir)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--workdir={workdir} is a file; name a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            write_atomically(folder / ".writable", "")
            (folder / ".writable").unlink()
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error}") from None
    if (folder / CONFIG).exists() and begun(folder):
        refuse_changes(_saved_config(folder / CONFIG), config, folder)
    return folder


def begun(workdir) -> bool:
    """Whether a run has saved something there."""
    checkpoints = epath.Path(workdir) / "checkpoints"
    return checkpoints.is_dir() and any(checkpoints.iterdir())


def _saved_config(path: epath.Path) -> Mapping:
    try:
        return from_json(json.loads(path.read_text()))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): remove it; the checkpoints beside it hold the config too") from None


def refuse_remote(path: str, flag: str) -> None:
    """Raises UserError for a path with a scheme: pictures and event files are written to file systems only."""
    if "://" in str(path):
        raise UserError(f"{flag}={path}: remote paths are not written to yet; mount the bucket, or copy afterwards")


def refuse_changes(saved: Mapping, now: Mapping, folder) -> None:
    """Raises UserError, naming the keys, if a config differs, outside of what is free, from the one that a run was started with."""
    told = differences(completed(saved), now)
    if told:
        raise UserError(f"{folder} holds a run of another config: {'; '.join(told[:8])}{' ...' if len(told) > 8 else ''}. "
                        "Only config.run, config.data.cache and config.text_encoders may change; give back the old values, or "
                        "use another --workdir")


def _from_everyone(digest: bytes) -> list[bytes]:
    """The bytes that each host gives, as many from each, by the number of the host."""
    from jax.experimental import multihost_utils

    return [row.tobytes() for row in multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))]


def same_everywhere(facts: Mapping) -> None:
    """Raises MachineError unless all hosts have the same facts, JSON-able: config, data, first stage, step."""
    if jax.process_count() == 1:
        return
    everyone = _from_everyone(hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest())
    differing = [i for i, other in enumerate(everyone) if other != everyone[0]]
    if differing:
        raise MachineError(f"hosts {differing} have another {' or '.join(facts)} than host 0: start all with the same command")


@contextlib.contextmanager
def passed_by_all():
    """A door that every host passes or none: a UserError inside it on some hosts ends the others too, at once.

    Raises:
      UserError: this host's own.
      MachineError: another host's, on the hosts that have none.
    """
    error = None
    try:
        yield
    except UserError as refused:
        error = refused
    refusing = []
    if jax.process_count() > 1:
        refusing = [i for i, said in enumerate(_from_everyone(bytes([error is not None]))) if said != b"\0"]
    if error is not None:
        raise error
    if refusing:
        raise MachineError(f"hosts {refusing} refused their config, data or files, and say why themselves")


@contextlib.contextmanager
def lost_hosts_told():
    """On several hosts, an error of the runtime is most often a host that is gone: a MachineError then."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        raise MachineError(f"another host has ended, or cannot be reached: {' '.join(str(error).split())[:300]}") from error
