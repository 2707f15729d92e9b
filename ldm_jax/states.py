"""The state that a run begins with, or goes on from."""

import dataclasses

import jax
import numpy as np

from ldm_jax.adapted import RECORD
from ldm_jax.checkpoint.manifest import Manifest
from ldm_jax.checkpoint.store import Store
from ldm_jax.config_tree import from_json
from ldm_jax.core.errors import UserError
from ldm_jax.core.trees import map_with_path, paths
from ldm_jax.data.batches import check_fingerprint
from ldm_jax.donor import initialised_from, open_donor, with_arrays
from ldm_jax.text_encoders import open_encoders
from ldm_jax.train import sharding
from ldm_jax.train.report import say
from ldm_jax.train.state import State, abstract_state, born_sharded, from_items, to_items
from ldm_jax.workdir import refuse_changes


def new_state(job, stage, key) -> State:
    """The state that a run begins with, spread over the mesh. job: a `launch.Prepared`, here and below."""
    state = born_sharded(stage.init, key, job.mesh, job.experiment.layout)
    if job.config["init_from"] and not job.base:
        state = initialised_from(job.config["init_from"], open_donor(job.config), state, job.mesh)
    texts = job.texts
    if not texts and job.config.get("text_encoders"):  # the folder was begun, and no step of it was finished: see `launch.prepare`
        texts = open_encoders(job.config["text_encoders"], job.experiment.conditioner, job.experiment.lora)
    return with_arrays(texts, state) if texts else state


def conditioner_params(job, stage, key) -> dict:
    """{"conditioner": ...} as a run begins with it; nothing else of the state is made.

    Raises:
      UserError: the model that config.init_from names has another conditioner.
    """
    if job.base:
        return {"conditioner": job.base.params["conditioner"]}
    made = jax.jit(lambda key: stage.init(key).params["conditioner"], out_shardings=sharding.replicated(job.mesh))(key)
    given = {}
    if job.config["init_from"]:
        every = open_donor(job.config).everything("ema", job.mesh)
        given = {path: leaf for path, leaf in paths(every) if path.startswith("conditioner/")}
        wanted = dict(paths({"conditioner": made}))
        wrong = [path for path, leaf in given.items() if path not in wanted or wanted[path].shape != leaf.shape]
        if wrong:
            raise UserError(f"config.init_from={job.config['init_from']}: its conditioner is another: {', '.join(wrong[:5])}")
    given = {path: np.asarray(leaf) for path, leaf in (given | dict(job.texts)).items()}
    everywhere = sharding.replicated(job.mesh)
    return map_with_path(lambda path, leaf: jax.device_put(given[path], everywhere) if path in given else leaf, {"conditioner": made})


def open_state(job, store: Store, stage, key) -> tuple[State, float]:
    """The newest valid state of the run, or a new one; and the seconds trained before."""
    layout = job.experiment.layout
    step = store.newest_valid()
    if step is None:
        return new_state(job, stage, key), 0.0
    manifest = Manifest.from_json(store.record(step, "manifest"), f"the manifest of step {step}")
    config = from_json(manifest.config)
    config.pop("facts")
    refuse_changes(config, job.config, store.directory.parent)
    if job.first and not job.first.is_as(manifest.first_stage):
        raise UserError(f"the first stage {job.config['first_stage']} has changed since this run began: its digest is "
                        f"{job.first.digest[:12]}, and was {manifest.first_stage.digest[:12]}, or its latent units differ. Name the "
                        "old step of it, or start another workdir")
    if job.base:
        job.base.check(store.record(step, RECORD))
    data = store.record(step, "data")
    check_fingerprint(data["fingerprint"], job.fingerprint)
    abstract = to_items(abstract_state(stage.init, key, job.mesh, layout))
    state = from_items({name: store.restore(step, name, tree) for name, tree in abstract.items()})
    say(f"resumed from step {step} of {store.directory.parent}")
    state = dataclasses.replace(state, bad=jax.device_put(state.bad, sharding.replicated(job.mesh)))
    return state, store.record(step, "progress")["seconds"]
