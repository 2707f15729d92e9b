"""Models that a run starts from: their parameters (config.init_from), or all of them as the frozen base of a LoRA."""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from ldm_jax import experiment as ex
from ldm_jax.adapted import Base, open_model
from ldm_jax.checkpoint.items import compare
from ldm_jax.choices import adapts
from ldm_jax.config_tree import from_json
from ldm_jax.core.choose import typed
from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import base_key
from ldm_jax.core.trees import content_digest, count, map_with_path, paths
from ldm_jax.loading import LoadedFirstStage, Opened
from ldm_jax.train import sharding
from ldm_jax.train.report import say
from ldm_jax.train.state import State


def open_donor(config: Mapping) -> Opened:
    """The checkpoint that config.init_from names.

    Raises:
      UserError: it is of another task, or its network means another thing by its output or by its time.
    """
    opened = open_model(config["init_from"])
    if opened.manifest.task != config["task"]:
        raise UserError(f"{config['init_from']} is of task {opened.manifest.task}, this run of {config['task']}")
    theirs = from_json(opened.manifest.config)
    for name in ("prediction", "time_input"):
        if name in theirs and theirs[name] != config[name]:
            raise UserError(f"{config['init_from']} was trained with {name} {typed(theirs[name])}, and config.{name} is "
                            f"{typed(config[name])}; to go on from it write --config.{name}='{typed(theirs[name])}'")
    differing = [name for name in ("network", "conditioner", "schedule") if adapts(config) and theirs[name] != config[name]]
    if differing:
        raise UserError(f"{config['init_from']} has another {', '.join(differing)} than this config, which its LoRA would be run with: "
                        f"there config.{differing[0]} is {typed(theirs[differing[0]])}")
    return opened


def initialised_from(source: str, opened: Opened, state: State, mesh: Mesh) -> State:
    """The new state with the parameters of another model in it, of the same task.

    Raises:
      UserError: parameters there that this model has not, or of another shape.
    """
    given, wanted = dict(paths(opened.everything("ema", mesh))), dict(paths(state.params))
    wrong = [f"{path} {list(leaf.shape)}, here {list(wanted[path].shape) if path in wanted else 'absent'}" for path, leaf in given.items()
             if path not in wanted or wanted[path].shape != leaf.shape]
    if wrong:
        raise UserError(f"config.init_from={source}: {len(wrong)} of its parameters do not fit: {'; '.join(wrong[:5])}")
    new = sorted(wanted.keys() - given.keys())
    say(f"parameters from {source}: {len(given)} arrays" + (f"; new: {', '.join(new)}" if new else "; none new"))
    return with_arrays(given, state)


def with_arrays(given: Mapping, state: State) -> State:
    """The state with {path: array} in the place of these parameters, and of their average."""
    def placed(path, leaf):
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda i: np.asarray(given[path])[i]) if path in given else leaf

    params = map_with_path(placed, state.params)
    ema = None if state.ema is None else map_with_path(placed, state.ema)
    return dataclasses.replace(state, params=params, ema=ema)


def load_base(opened: Opened | None, experiment: ex.Experiment, first: LoadedFirstStage | None, mesh: Mesh) -> Base:
    """The base of a LoRA, with the weights that inference uses, spread over the mesh as parameters that are trained would be.

    Raises:
      UserError: none is named, it works on another first stage, it is not of this config's network, or nothing in it is adapted.
    """
    if opened is None:
        raise UserError("config.lora adapts another model: name it, a run, a step of it or a bundle")
    reference = opened.manifest.first_stage
    if (reference and reference.digest) != (first and first.digest):
        raise UserError(f"the base {opened.folder} was trained on {_stage(reference)}, and config.first_stage is {_stage(first)}")
    abstract = jax.eval_shape(dataclasses.replace(experiment, lora=None).stage().init, base_key(0)).params
    jax.eval_shape(lambda key: experiment.lora.start(abstract, key), base_key(0))
    given = dict(paths(opened.everything("ema", mesh)))
    compare(given, dict(paths(abstract)), f"the base {opened.folder}")
    places = sharding.shardings(abstract, mesh, dataclasses.replace(experiment.layout, rules=()))
    places = dict(paths(places))

    def placed(path, leaf):
        return jax.make_array_from_callback(leaf.shape, places[path], lambda i: np.asarray(given[path])[i])

    return Base(map_with_path(placed, abstract), content_digest(given), opened.manifest.step, opened.folder, count(given))


def _stage(first) -> str:
    return f"the first stage of digest {first.digest[:12]}" if first else "pixels"
