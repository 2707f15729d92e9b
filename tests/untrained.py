"""Runs that were saved before their first step: whole, and cheap to make."""

import dataclasses
import pathlib

import jax


def save_untrained(config, folder: pathlib.Path, *steps: int, noise: float = 0.0) -> None:
    """Writes steps (by default step 1) of a run into `folder`, with parameters as they were drawn.

    noise: added to them, times standard normal draws, others for the moving average: new networks end in zeros, and then no input
    reaches the output.
    """
    from ldm_jax import launch
    from ldm_jax.checkpoint.store import Store
    from ldm_jax.core.keys import base_key
    from ldm_jax.train.state import born_sharded

    job = launch.prepare(config)
    state = born_sharded(launch.stage_of(job).init, base_key(config["seed"]), job.mesh, job.experiment.layout)
    state = dataclasses.replace(state, params=shaken(state.params, noise, 0), ema=shaken(state.ema, noise, 1))
    with Store(folder / "checkpoints") as store:
        saver = launch.Saver(job, store, folder, 0.0)
        for step in steps or (1,):
            saver(state, step, {})
        store.wait()


def shaken(tree, noise: float, seed: int):
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(structure, [x + noise * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys)])
