"""The doors of a run: its hosts, and its folder."""

import hashlib
import json
import os
from collections.abc import Mapping

import jax
import numpy as np
from etils import epath

from ldm_jax.checkpoint.digests import write_atomically
from ldm_jax.config_tree import differences, from_json
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
        raise MachineError(f"process {process_id} of {num_processes} could not join at {coordinator}: {why}") from None


def open_workdir(workdir: str, config: Mapping) -> epath.Path:
    """The folder of a run, made if need be.

    Raises:
      UserError: a file, not writable, or the run of another config.
    """
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
    if (folder / CONFIG).exists() and (folder / "checkpoints").is_dir() and any((folder / "checkpoints").iterdir()):
        refuse_changes(from_json(json.loads((folder / CONFIG).read_text())), config, folder)
    return folder


def refuse_changes(saved: Mapping, now: Mapping, folder) -> None:
    """Raises UserError, naming the keys, if a config differs outside config.run from the one that a run was started with."""
    told = differences(saved, now)
    if told:
        raise UserError(f"{folder} holds a run of another config: {'; '.join(told[:8])}{' ...' if len(told) > 8 else ''}. "
                        "Only config.run may change; give back the old values, or use another --workdir")


def same_everywhere(facts: Mapping) -> None:
    """Raises MachineError unless all hosts have the same config, data and step."""
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    digest = np.frombuffer(hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest(), np.uint8)
    everyone = multihost_utils.process_allgather(digest)
    differing = [i for i, other in enumerate(everyone) if not np.array_equal(other, everyone[0])]
    if differing:
        raise MachineError(f"hosts {differing} have another config, data or step than host 0: start all with the same command")
