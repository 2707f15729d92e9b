"""From a command to its exit status: flags are parsed, errors become one clear line. Light: a wrong flag is told before jax is imported."""

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable

from absl import flags

from ldm_jax.core.errors import MachineError, NumbersWentBad, Preempted, UserError

STATUS_OTHER, STATUS_INTERRUPTED = 1, 130
HELP = ("-h", "-help", "--help", "--helpfull", "--helpshort")
flags.DEFINE_bool("debug", False, "Show the traceback of an error.")


def run(main: Callable, argv: list[str] | None = None, words: tuple[str, ...] = ()) -> None:
    """Parses flags, calls main(), and exits: 0 done, 2 bad arguments, config, data or checkpoint, 5 numbers went bad, 6 hosts or
    hardware, 75 preempted and saved, 130 interrupted, 1 anything else. `--debug` shows tracebacks, `--help` the flags.
    With `words`, the first argument is one of them, and main is called with it.

    On several processes a failing one ends hard, so that the others are told at once instead of waiting for it.
    """
    argv = list(sys.argv if argv is None else argv)
    debug = any(a in ("--debug", "--debug=true") for a in argv)
    status = 0
    try:
        if any(a in HELP for a in argv[1:]):
            print(help_page(sys.modules["__main__"].__doc__ or ""), flush=True)
            sys.exit(0)
        given = [_word(argv, words)] if words else []
        parse(argv)
        main(*given)
        sys.stdout.flush()
    except (UserError, NumbersWentBad, MachineError, Preempted) as error:
        status = error.status
        tell(str(error), debug)
    except KeyboardInterrupt:
        status = STATUS_INTERRUPTED
        tell("interrupted", debug)
    except SystemExit:
        raise
    except BrokenPipeError:  # whoever read our output, as `| head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:  # noqa: BLE001  (the last resort of a command)
        status = STATUS_OTHER
        tell(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}", debug)
        if not debug:
            print("this is a defect of ldm_jax, or of the machine; --debug shows where", file=sys.stderr)
    if status and _several_processes():
        sys.stderr.flush()
        if status in (Preempted.status, NumbersWentBad.status):  # all hosts are here: they leave together
            _leave_together()
        os._exit(status)
    sys.exit(status)


def _leave_together() -> None:
    import jax

    try:
        jax.distributed.shutdown()
    except Exception as error:  # noqa: BLE001  (the status is decided already)
        print(f"the hosts did not part in order: {' '.join(str(error).split())[:200]}", file=sys.stderr, flush=True)


def _word(argv: list[str], words: tuple[str, ...]) -> str:
    """Takes the first argument out of argv."""
    if len(argv) < 2 or argv[1] not in words:
        raise UserError(f"{' '.join(argv[1:2])!r}: the first argument is one of {', '.join(words)}; --help says more")
    return argv.pop(1)


def tell(line: str, debug: bool) -> None:
    if debug:
        import traceback

        traceback.print_exc()
    print(f"error: {line}" if "\n" not in line else "errors:\n  " + line.replace("\n", "\n  "), file=sys.stderr, flush=True)


def parse(argv: list[str]) -> None:
    """absl flags, with every refusal a UserError of one line."""
    if "config" in flags.FLAGS:
        from ldm_jax.config_file import check_flag

        check_flag(argv)
    try:
        left = flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(_in_plain_words(str(error))) from None
    for name, flag in flags.FLAGS.flag_values_dict().items():
        if flag == "" and flags.FLAGS[name].default is None:
            raise UserError(f"--{name} is missing: {flags.FLAGS[name].help}")
    if len(left) > 1:
        raise UserError(f"{left[1]!r}: not a flag; every argument starts with --, as --name=value")


# How absl says that a value is of another type, and what was expected then.
_KINDS = ((r"invalid literal for int", "a whole number in digits, as 1000"), (r"could not convert string to float", "a number"),
          (r"Non-boolean argument", "true or false"), (r"required, found|Failed to parse (<|.* as a ConfigDict)",
          'a Python literal, as \'{"name":"cosine"}\' for a section, or (1, 2) for a tuple'))


def _in_plain_words(message: str) -> str:
    line = message.strip().splitlines()[0]
    missing = re.match(r"flag --(\w+)=None: Flag --\w+ must have a value", line)
    if missing:
        return f"--{missing.group(1)} is missing: {flags.FLAGS[missing.group(1)].help}"
    wrong = re.match(r"flag (--[\w.]+=.*?): (.*)", line)
    for pattern, expected in _KINDS:
        if wrong and re.search(pattern, wrong.group(2)):
            return f"{wrong.group(1)}: expected {expected}"
    return line


def help_page(about: str) -> str:
    """What the command does, with an example; then its own flags, and those that all commands share, with their defaults."""
    by_module = flags.FLAGS.flags_by_module_dict()
    ours = by_module.get("ldm_jax.config_file", []) + by_module.get(sys.argv[0], [])  # absl calls the main module by argv[0]
    shared = by_module.get("ldm_jax.cli.entry", [])
    lines = [about.strip(), ""]
    shown = [*ours, *sorted(shared, key=lambda flag: flag.name == "debug")]
    width = max(len(flag.name) for flag in shown) + 1
    for flag in shown:
        default = "" if flag.boolean or flag.default in (None, "", []) else f" [{flag.default}]"
        told, _, _ = flag.help.partition(";\n")  # absl adds a line to flags that may be repeated
        lines.append(f"  --{flag.name:<{width}}{told}{default}")
    return "\n".join(lines)


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
        with tqdm(total=total, unit=f" {unit}", file=sys.stderr, delay=0.5) as bar:  # none where nothing is told
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
