"""The folder names of a run's checkpoints, and which saved steps stay."""

import sys
import time
from collections.abc import Mapping

from ldm_jax.checkpoint import digests
from ldm_jax.core.errors import MachineError

TEMPORARY = ".orbax-checkpoint-tmp"
PEER_SECONDS = 1200


def is_step(name: str) -> bool:
    """Whether a folder name is that of a step: its number, without leading zeros."""
    return name.isascii() and name.isdigit() and str(int(name)) == name


def is_leftover(name: str) -> bool:
    """Folders that no finished save or removal leaves: Orbax's temporary ones, and half removed steps."""
    step, _, rest = name.partition(".")
    return is_step(step) and (f".{rest}".startswith(TEMPORARY) or rest.split("-")[0] == "deleting")


def free(directory, name: str):
    """directory/name, or name-2, name-3 ... where it is taken."""
    number, path = 1, directory / name
    while path.exists():
        number += 1
        path = directory / f"{name}-{number}"
    return path


def set_aside(directory, step: int, word: str, what: str, instead: str, read_only: bool) -> None:
    """Renames a step's folder to `<step>.<word>` (never where only reading) and says so in one line on stderr."""
    where = "left where it is"
    if not read_only:
        folder, target = directory / str(step), free(directory, f"{step}.{word}")
        if not digests.is_local(folder) and (folder / digests.NAME).exists():
            (folder / digests.NAME).rename(folder / f"{digests.NAME}.{word}")
        folder.rename(target)
        where = f"kept as {target.name}"
    print(f"CHECKPOINT: step {step} in {directory} {what}; {where}; {instead}", file=sys.stderr, flush=True)


def remove(directory, step: int) -> None:
    """Deletes a step so that it never looks valid half gone: it loses its name (or its digests) first."""
    folder = directory / str(step)
    if digests.is_local(folder):
        folder = folder.rename(free(directory, f"{step}.deleting"))
    else:
        (folder / digests.NAME).unlink()
    folder.rmtree()


def await_file(path) -> None:
    """Waits until a file written by process 0 appears."""
    end = time.monotonic() + PEER_SECONDS
    while not path.exists():
        if time.monotonic() > end:
            raise MachineError(f"{path} did not appear within {PEER_SECONDS} s: did process 0 fail to save?")
        time.sleep(0.05)


def surplus(saved: Mapping[int, Mapping[str, float | None]], newest: int, keep_last: int, keep_every: int,
            best: tuple[str, str] | None) -> list[int]:
    """The saved steps that no rule keeps, ascending.

    Args:
      saved: {step: its metrics}.
      newest: the step just saved; it always stays.
      keep_last, keep_every, best: as for `Store`. Of two equally good steps the later one is the best.
    """
    kept = {newest} | set(sorted(saved)[-keep_last:])
    if keep_every:
        kept |= {step for step in saved if step % keep_every == 0}
    if best is not None:
        metric, direction = best
        sign = -1.0 if direction == "min" else 1.0
        scored = [(sign * values[metric], step) for step, values in saved.items() if values.get(metric) is not None]
        kept |= {max(scored)[1]} if scored else set()
    return sorted(saved.keys() - kept)
