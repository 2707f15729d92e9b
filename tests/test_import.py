"""`import ldm_jax` is quick and light. Catches a heavy library pulled in at module level, by us or through a friend."""

import json
import os
import pathlib
import statistics
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
HEAVY = ["torch", "tensorflow", "transformers", "matplotlib", "orbax", "grain", "tensorflow_datasets", "sklearn", "tensorboardX",
         "diffusers"]
RUNS, LIMIT_S = 5, 1.0

PROGRAM = """
import json, sys, time
import jax, jax.numpy
before, wall, cpu = set(sys.modules), time.perf_counter(), time.process_time()
import {module}
seconds = time.perf_counter() - wall, time.process_time() - cpu
print(json.dumps(dict(wall=seconds[0], cpu=seconds[1], modules=sorted(set(sys.modules) - before))))
"""


def measure(module: str) -> dict:
    environment = dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS="cpu")
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(module=module)], env=environment, cwd=ROOT, capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def runs() -> list[dict]:
    measure("ldm_jax")  # writes the byte code
    return [measure("ldm_jax") for _ in range(RUNS)]


def test_import_adds_less_than_a_second_to_jax(runs):
    """The median of 5 processes, in processor seconds: a loaded machine stretches wall time, not work."""
    wall, cpu = (statistics.median(run[kind] for run in runs) for kind in ("wall", "cpu"))
    print(f"import ldm_jax beyond jax: {wall:.3f} s wall, {cpu:.3f} s processor, medians of {RUNS}")
    assert cpu < LIMIT_S, f"{cpu:.2f} s of processor time ({wall:.2f} s wall) beyond jax's own import"


def test_import_loads_no_heavy_library(runs):
    assert "ldm_jax" in runs[0]["modules"]
    loaded = [name for name in HEAVY if name in runs[0]["modules"]]
    assert not loaded, f"import ldm_jax loads {', '.join(loaded)}"


def test_the_public_names_load_no_heavy_library():
    """Catches a lazy `__init__` that only puts the heavy import off to the first `ldm.load`."""
    found = measure("ldm_jax; [getattr(ldm_jax, name) for name in ldm_jax.__all__]")
    assert "ldm_jax.pipeline" in found["modules"]
    loaded = [name for name in HEAVY if name in found["modules"]]
    assert not loaded, f"ldm_jax.load loads {', '.join(loaded)}"


def test_the_measurement_sees_a_heavy_library():
    """Catches a measurement that would pass whatever the package did."""
    found = measure("sklearn, ldm_jax")
    assert "sklearn" in found["modules"] and found["wall"] > 0


def test_every_module_imports():
    """Catches a name that moved, or an import that only one generation of the stack has. Commands each define flags, so they are run."""
    everything = ("import importlib, pkgutil, ldm_jax\n"
                  "for m in pkgutil.walk_packages(ldm_jax.__path__, 'ldm_jax.'):\n"
                  "    if not m.name.startswith('ldm_jax.cli.') or m.name == 'ldm_jax.cli.entry': importlib.import_module(m.name)\n"
                  "import grain, sklearn, tensorboardX, tensorflow_datasets, clu.parameter_overview\n"
                  "from orbax.checkpoint import v1")
    environment = dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS="cpu")
    done = subprocess.run([sys.executable, "-c", everything], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
