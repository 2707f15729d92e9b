"""`command("sample.py", "--seed=-1")`: one of our commands, run for real in a process of its own (see server.py)."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.cli.folders import TINY

ROOT = pathlib.Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Done:
    """What a command left: exit status, standard output and error, seconds."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()

    def refused(self, *words: str, lines: int = 1) -> str:
        """Checks exit status 2, at most `lines` lines on stderr without a traceback, and the words in them."""
        assert self.code == 2, f"exit status {self.code}\n{self.err}"
        assert "Traceback" not in self.err and 1 <= len(self.lines) <= lines, self.err
        missing = [word for word in words if word not in self.err]
        assert not missing, f"{missing} not in: {self.err}"
        assert not self.out, self.out
        return self.err


@pytest.fixture(scope="session")
def command(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs")
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen([sys.executable, str(pathlib.Path(__file__).with_name("server.py"))], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True, env=environment)
    assert server.stdout.readline() == "ready\n"

    def run(*argv, cwd=ROOT, seconds: int = 120, environment=None) -> Done:
        out, err = folder / "out", folder / "err"
        job = {"argv": [str(a) for a in argv], "cwd": str(cwd), "out": str(out), "err": str(err), "seconds": seconds,
               "environment": environment or {}}
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        result = json.loads(server.stdout.readline())
        return Done(result["code"], out.read_text(), err.read_text(), result["seconds"])

    yield run
    server.stdin.close()
    server.wait(30)


@pytest.fixture(scope="session")
def configs(tmp_path_factory):
    """{"autoencoder", "ldm", "pixels"}: config files of tiny experiments."""
    folder = tmp_path_factory.mktemp("configs")
    for name, call in {"autoencoder": "tiny_autoencoder()", "ldm": "tiny_ldm('')", "pixels": "tiny_ldm('pixels')"}.items():
        (folder / f"{name}.py").write_text(TINY.format(call=call))
    return {file.stem: str(file) for file in folder.glob("*.py")}
