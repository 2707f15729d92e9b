"""A tiny state with every kind of leaf a run saves, and children for the faults."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ldm_jax.core.types import Condition

REPOSITORY = str(pathlib.Path(__file__).parents[2])


def make_state(value: float) -> dict:
    """{"params", "ema", "train"}: dicts, a bfloat16 leaf, optax NamedTuples, a struct, counters, booleans."""
    value = float(value)
    params = {"a": {"kernel": jnp.full((4, 3), value), "bias": jnp.full((3,), value, jnp.bfloat16)}, "none": {}}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init(params)
    train = {"optimizer": optimizer, "step": jnp.asarray(int(value), jnp.int32), "latch": jnp.asarray(False),
             "units": Condition(vector=jnp.full((2,), value)), "pair": (jnp.ones(1), [jnp.zeros(2, jnp.uint8)])}
    return {"params": params, "ema": {"a": {"kernel": jnp.full((4, 3), value / 2)}}, "train": train}


def make_records(step: int) -> dict:
    data = {"next": step, "fingerprint": {"name": "digits", "split": None}}
    return {"data": data, "progress": {"seconds": 0.1 * step}, "manifest": {"step": step}}


@pytest.fixture
def state():
    return make_state


@pytest.fixture
def records():
    return make_records


@pytest.fixture
def same():
    """Whether two trees have one structure, and leaves equal in dtype, shape and bytes."""
    def equal(one, other) -> bool:
        if jax.tree.structure(one) != jax.tree.structure(other):
            return False
        pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other))
        return all(a.dtype == b.dtype and a.shape == b.shape and np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)
    return equal


@pytest.fixture
def child():
    """Starts `python -c code arguments...` with the repository on its path and the CPU split into `devices`."""
    started = []

    def start(code: str, *arguments, devices: int = 1) -> subprocess.Popen:
        flags = (f"--xla_force_host_platform_device_count={devices} --xla_cpu_collective_call_terminate_timeout_seconds=600 "
                 "--xla_cpu_collective_call_warn_stuck_timeout_seconds=300")
        environment = os.environ | {"PYTHONPATH": REPOSITORY, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], env=environment, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
