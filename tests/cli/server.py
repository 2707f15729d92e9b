"""Runs commands in forked processes that have our libraries imported already: real flags, exit codes and outputs, without the seconds
of importing. Started by conftest.py; reads one JSON job a line, answers one JSON result a line.

Safe because importing starts no thread and no jax backend (both are checked); the commands' own modules are not imported here.
"""

import json
import os
import runpy
import signal
import sys
import time
import traceback

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def import_all() -> None:
    import grain  # noqa: F401
    import jax  # noqa: F401
    import sklearn.model_selection
    import sklearn.svm  # noqa: F401
    import tensorboardX  # noqa: F401
    import tqdm  # noqa: F401
    from ml_collections import config_flags  # noqa: F401
    from orbax.checkpoint import v1  # noqa: F401

    import ldm_jax.describe
    import ldm_jax.evaluate  # noqa: F401
    from ldm_jax.data.digits import Digits

    Digits("train")
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads: forking is not safe"
    assert not jax._src.xla_bridge._backends, "a jax backend is up: forking is not safe"


def child(job: dict) -> None:
    """Becomes `python *argv`."""
    for number, path in ((1, job["out"]), (2, job["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(job["cwd"])
    os.environ.update(job["environment"])
    signal.alarm(job["seconds"])
    sys.argv = job["argv"] = list(job["argv"])
    try:
        if sys.argv[0] == "-m":
            sys.argv = sys.argv[1:]
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(os.path.join(ROOT, sys.argv[0]), run_name="__main__")
        code = 0
    except SystemExit as leaving:
        code = leaving.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    sys.path.insert(0, ROOT)
    import_all()
    print("ready", flush=True)
    for line in sys.stdin:
        job, began = json.loads(line), time.perf_counter()
        process = os.fork()
        if not process:
            child(job)
        _, status = os.waitpid(process, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status), "seconds": time.perf_counter() - began}), flush=True)


if __name__ == "__main__":
    main()
