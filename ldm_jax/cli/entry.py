"""From a command to its exit status: flags are parsed, errors become one clear line."""

import contextlib
import os
import sys
import time
from collections.abc import Callable

from absl import flags

from ldm_jax.core.errors import MachineError, NumbersWentBad, Preempted, UserError

STATUS_OTHER, STATUS_INTERRUPTED = 1, 130
flags.DEFINE_bool("debug", False, "Show the traceback of an error.")


def run(main: Callable, argv: list[str] | None = None) -> None:
    """Parses flags, calls main(), and exits: 0 done, 2 bad arguments, config, data or checkpoint, 5 numbers went bad, 6 hosts or
    hardware, 75 preempted and saved, 130 interrupted, 1 anything else. `--debug` shows tracebacks.

    On several processes a failing one ends hard, so that the others are told at once instead of waiting for it.
    """
    argv = list(sys.argv if argv is None else argv)
    debug = any(a in ("--debug", "--debug=true") for a in argv)
    status = 0
    try:
        parse(argv)
        main()
    except (UserError, NumbersWentBad, MachineError, Preempted) as error:
        status = error.status
        tell(str(error), debug)
    except KeyboardInterrupt:
        status = STATUS_INTERRUPTED
        tell("interrupted", debug)
    except SystemExit:
        raise
    except Exception as error:  # noqa: BLE001  (the last resort of a command)
        status = STATUS_OTHER
        tell(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}", debug)
        if not debug:
            print("this is a defect of ldm_jax, or of the machine; --debug shows where", file=sys.stderr)
    if status and _several_processes():
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def tell(line: str, debug: bool) -> None:
    if debug:
        import traceback

        traceback.print_exc()
    print(f"error: {line}" if "\n" not in line else "errors:\n  " + line.replace("\n", "\n  "), file=sys.stderr, flush=True)


def parse(argv: list[str]) -> None:
    """absl flags, with every refusal a UserError of one line."""
    try:
        left = flags.FLAGS(argv)
    except flags.Error as error:
        raise UserError(str(error).splitlines()[0]) from None
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        from ldm_jax.experiment import explain_override

        raise UserError(explain_override(error, argv)) from None
    if len(left) > 1:
        raise UserError(f"{left[1]!r}: not a flag; every argument starts with --")


def _several_processes() -> bool:
    jax = sys.modules.get("jax")
    try:
        return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1
    except Exception:  # noqa: BLE001  (asked while something else is failing)
        return False


def process_flags() -> Callable[[], tuple[str, int, int]]:
    """Defines the flags that every command of several processes takes; the result gives their values, for `launch.initialise`."""
    coordinator = flags.DEFINE_string("coordinator", "", "host:port of process 0; pods and Slurm need none of these three.")
    processes = flags.DEFINE_integer("num_processes", 0, "How many processes there are.")
    process = flags.DEFINE_integer("process_id", -1, "Which of them this is, from 0.")
    return lambda: (coordinator.value, processes.value, process.value)


@contextlib.contextmanager
def progress(total: int, unit: str):
    """A function to be told how many are done, from process 0: a bar on a terminal, a plain line now and then in a pipe or a file."""
    import jax
    from tqdm import tqdm

    if jax.process_index() != 0:
        yield lambda done: None
    elif sys.stderr.isatty():
        with tqdm(total=total, unit=f" {unit}", file=sys.stderr) as bar:
            yield lambda done: bar.update(done - bar.n)
    else:
        yield PlainProgress(total, unit)


class PlainProgress:
    """Lines with rate and time left, at most one in ten seconds, and one at the end."""

    def __init__(self, total: int, unit: str):
        self.total, self.unit = total, unit
        self.began = self.last = time.monotonic()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if done < self.total and now - self.last < 10:
            return
        self.last = now
        rate = done / max(now - self.began, 1e-9)
        print(f"{done}/{self.total} {self.unit}  {rate:.3g}/s  {(self.total - done) / rate:.0f}s left", file=sys.stderr, flush=True)
