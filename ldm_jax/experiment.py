"""From a config to an experiment: every choice is made here, once. The only file that knows ml_collections."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ldm_jax import choices
from ldm_jax.config_tree import Problems
from ldm_jax.core.choose import choose, nearest
from ldm_jax.core.errors import UserError
from ldm_jax.diffusion.loss import Objective
from ldm_jax.models.condition import CONDITIONERS
from ldm_jax.models.first_stage import FirstStage
from ldm_jax.train.autoencoder_stage import CRITICS, AutoencoderStage, Loss, Revival
from ldm_jax.train.diffusion_stage import DiffusionStage
from ldm_jax.train.loop import Plan
from ldm_jax.train.sharding import Layout
from ldm_jax.train.steps import Descent

TASKS = ("autoencoder", "diffusion")


def config_flag():
    """Defines --config=FILE.py[:ARGUMENT] with its --config.KEY=VALUE overrides, for train.py and every cli."""
    from ml_collections import config_flags

    return config_flags.DEFINE_config_file("config", None, "The experiment, a file of configs/; --config.KEY=VALUE changes a line of it.")


def read_flag(holder) -> dict:
    """The config of a parsed flag as a plain dict.

    Raises:
      UserError: no config, or one that is not there.
    """
    try:
        config = holder.value
    except OSError as error:
        raise UserError(f"--config: {' '.join(str(error).split())}") from None
    if config is None:
        raise UserError("--config is missing; for example --config=configs/demo/autoencoder.py")
    return plain(config)


def explain_override(error: Exception, argv: list[str]) -> str:
    """One line for an override that ml_collections refused: the known keys beside it, nearest first."""
    files = [a.split("=", 1)[1] for a in argv if a.startswith("--config=")]
    if not files:
        return str(error)
    config = plain(_load(files[-1]))
    for argument in argv:
        if argument.startswith("--config."):
            path = argument[2:].split("=", 1)[0].split(".")[1:]
            section = config
            for depth, key in enumerate(path):
                if not isinstance(section, Mapping):
                    return f"--{'.'.join(['config', *path])}: config.{'.'.join(path[:depth])} is a value, not a section"
                if key not in section:
                    where = ".".join(["config", *path[:depth]])
                    return f"--{'.'.join(['config', *path])}: {where} has no key {key!r}; it has: {nearest(key, section)}"
                section = section[key]
    return " ".join(str(error).split())


def _load(argument: str):
    """The config that `FILE.py:ARGUMENT` gives, without overrides."""
    import importlib.util

    path, _, word = argument.partition(":")
    spec = importlib.util.spec_from_file_location("ldm_jax_config", path)
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.get_config(word) if word else module.get_config()
    except FileNotFoundError:
        raise UserError(f"--config={path}: no such file") from None


def plain(config) -> dict:
    """A ConfigDict, or anything nested in it, as dicts, tuples and scalars."""
    from ml_collections import ConfigDict, FieldReference

    if isinstance(config, FieldReference):
        config = config.get()
    if isinstance(config, ConfigDict):
        return {key: plain(config[key]) for key in config}
    if isinstance(config, Mapping):
        return {key: plain(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return tuple(plain(value) for value in config)
    return config


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All choices of a config, made: frozen and hashable. `sampling` is how to sample unless told otherwise, by name."""

    task: str
    facts: choices.Facts
    first_stage: FirstStage | None
    autoencoder: Any
    network: Any
    conditioner: Any
    objective: Objective | None
    descent: Descent
    critic: Any
    loss: Loss | None
    revival: Revival | None
    layout: Layout
    plan: Plan
    seed: int
    batch: int
    sampling: Mapping | None = dataclasses.field(compare=False)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """[h, w, c] of the latents of the training images."""
        side = self.facts.resolution // self.autoencoder.factor
        return side, side, self.autoencoder.latent_channels

    def stage(self, draw=None, perceptual=None):
        """The Stage that the loop trains. draw: see DiffusionStage; perceptual: the distance network, where its weight is above 0."""
        if self.task == "autoencoder":
            return AutoencoderStage(self.autoencoder, self.loss, self.critic, self.descent, self.revival, perceptual).build()
        return DiffusionStage(self.objective, self.network, self.conditioner, self.first_stage, self.latent_shape, self.descent,
                              draw).build()


def build(config: Mapping, facts: choices.Facts, first: FirstStage | None = None) -> Experiment:
    """Makes every choice of a config.

    Args:
      config: plain, as `plain` gives it.
      facts: of the training data.
      first: for task "diffusion", the first stage with its units; None is diffusion in pixels.

    Raises:
      UserError: all that is wrong with the config, one line each.
    """
    problems = Problems()
    task = config.get("task")
    if task not in TASKS:
        raise UserError(f"config.task={task!r}: expected one of {nearest(task, TASKS)}")
    made: dict[str, Any] = {}

    def make(name, function, *args, **kwargs):
        with problems.noted():
            made[name] = function(*args, **kwargs)

    make("seed", choices.seed_of, config)
    make("batch", choices.whole, config["data"]["batch"], "config.data.batch", 1)
    make("layout", choices.layout_of, config)
    make("plan", choices.plan_of, config)
    make("descent", choices.descent_of, config)
    choices.check_data(config, problems)
    if task == "autoencoder":
        make("autoencoder", choices.autoencoder_of, config, facts)
        make("loss", choices.loss_of, config)
        make("revival", choices.struct_of, Revival, config["revival"], "config.revival")
        make("critic", choose, CRITICS, config["critic"], "config.critic", descent=made.get("descent"))
    else:
        make("first_stage", choices.first_stage_for, first, facts)
        if "first_stage" in made:
            made["autoencoder"] = made["first_stage"].module
            make("network", choices.network_of, config, made["autoencoder"].latent_channels)
        make("conditioner", choose, CONDITIONERS, config["conditioner"], "config.conditioner", classes=facts.classes)
        make("objective", choices.objective_of, config)
        make("sampling", choices.sampling_of, config, made.get("objective"))
    problems.check()
    fields = {f.name for f in dataclasses.fields(Experiment)}
    return Experiment(**{name: made.get(name) for name in fields - {"task", "facts"}}, task=task, facts=facts)


SECTIONS = {
    "autoencoder": ("task", "seed", "data", "model", "loss", "critic", "revival", "latent_units", "optimizer", "learning_rate",
                    "clip_norm", "accumulate", "ema", "init_from", "run"),
    "diffusion": ("task", "seed", "data", "first_stage", "network", "conditioner", "schedule", "prediction", "time_input", "times",
                  "weight", "loss", "sampling", "optimizer", "learning_rate", "clip_norm", "accumulate", "ema", "init_from", "run"),
}


def check_keys(config: Mapping) -> None:
    """Raises UserError if a config lacks a section of its task, or has one that its task does not read."""
    task = config.get("task")
    if task not in TASKS:
        raise UserError(f"config.task={task!r}: expected one of {nearest(task, TASKS)}")
    missing = [key for key in SECTIONS[task] if key not in config]
    unknown = [key for key in config if key not in SECTIONS[task]]
    if missing or unknown:
        raise UserError(f"config: a config of task {task!r} " + "; ".join(
            [f"needs {', '.join(missing)}"] * bool(missing) + [f"does not read {', '.join(unknown)}"] * bool(unknown)))
