"""From a config to an experiment: every choice is made here, once, of plain dicts (see config_file.py)."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax

from ldm_jax import choices, classifier_choices, embedding_choices, parted
from ldm_jax.config_tree import Problems
from ldm_jax.core.choose import choose, fill, fits, nearest
from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import base_key
from ldm_jax.diffusion.loss import Objective
from ldm_jax.models.first_stage import FirstStage
from ldm_jax.models.lora import Lora
from ldm_jax.train.autoencoder_stage import CRITICS, AutoencoderStage, Loss, Revival
from ldm_jax.train.classifier_stage import ClassifierStage
from ldm_jax.train.diffusion_stage import DiffusionStage
from ldm_jax.train.embedding_stage import EmbeddingStage
from ldm_jax.train.loop import Plan
from ldm_jax.train.lora_stage import LoraStage
from ldm_jax.train.sharding import Layout
from ldm_jax.train.steps import Descent

TASKS = ("autoencoder", "diffusion", "classifier", "embedding")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All choices of a config, made: frozen and hashable. `sampling` is how to sample unless told otherwise, by name; `conditioner`
    what reads the fields of a batch: of task "embedding" the network itself.
    """

    task: str
    facts: choices.Facts
    first_stage: FirstStage | None
    autoencoder: Any
    network: Any
    conditioner: Any
    lora: Lora | None
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
    def factor(self) -> int:
        """Image pixels a latent, on a side."""
        return self.autoencoder.factor if self.autoencoder else 1

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """[h, w, c] of the latents of the training images."""
        side = self.facts.resolution // self.autoencoder.factor
        return side, side, self.autoencoder.latent_channels

    def stage(self, draw=None):
        """The Stage that the loop trains. draw: see DiffusionStage."""
        if self.task == "autoencoder":
            return AutoencoderStage(self.autoencoder, self.loss, self.critic, self.descent, self.revival).build()
        if self.task == "embedding":
            return EmbeddingStage(self.network, self.loss, self.descent).build()
        if self.task == "classifier":
            return ClassifierStage(self.objective, self.network, self.first_stage, self.latent_shape, self.descent).build()
        stage = DiffusionStage(self.objective, self.network, self.conditioner, self.first_stage, self.latent_shape, self.descent, draw)
        return LoraStage(stage, self.lora).build() if self.lora else stage.build()


@dataclasses.dataclass(frozen=True)
class _Shaped:
    """An experiment, equal to others whose parameters have the same shapes: how they are trained does not count."""

    alike: Experiment
    experiment: Experiment = dataclasses.field(compare=False)


@functools.lru_cache(maxsize=16)
def _shapes(shaped: _Shaped):
    return jax.eval_shape(lambda key: shaped.experiment.stage().init(key).params, base_key(0))


def parameter_shapes(experiment: Experiment):
    """The shapes of what an experiment trains, as a tree; traced once for experiments of one architecture."""
    apart = dict.fromkeys(("descent", "critic", "loss", "revival", "layout", "plan", "seed", "batch"))
    return _shapes(_Shaped(dataclasses.replace(experiment, **apart), experiment))


def build(config: Mapping, facts: choices.Facts, first: FirstStage | None = None) -> Experiment:
    """Makes every choice of a config.

    Args:
      config: plain, as `plain` gives it.
      facts: of the training data.
      first: for the tasks on latents, the first stage with its units; None is to work in pixels.

    Raises:
      UserError: all that is wrong with the config, one line each.
    """
    problems, task = Problems(), config.get("task")
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
        make("revival", fill, Revival, config["revival"], "config.revival")
        make("critic", choose, CRITICS, config["critic"], "config.critic", descent=made.get("descent"))
    if task == "embedding":
        make("network", embedding_choices.network_of, config, facts)
        make("loss", embedding_choices.loss_of, config)
        made["conditioner"] = made.get("network")
    if task in choices.ON_LATENTS:
        make("first_stage", choices.first_stage_for, first, facts)
        if "first_stage" in made:
            made["autoencoder"] = made["first_stage"].module
    if task == "classifier":
        make("network", classifier_choices.network_of, config, facts)
        if "network" in made and "first_stage" in made:
            make("fits", choices.check_side, made["network"], facts.resolution // made["autoencoder"].factor)
        parts = classifier_choices.objective_parts(config, problems)
    if task == "diffusion":
        if "first_stage" in made:
            make("network", choices.network_of, config, made["autoencoder"].latent_channels)
        make("conditioner", choices.conditioner_of, config, facts, made["autoencoder"].factor if "autoencoder" in made else 1)
        if "network" in made and "conditioner" in made:
            make("fits", choices.check_network, made["network"], made["conditioner"], facts.resolution // made["autoencoder"].factor)
        make("lora", choices.lora_of, config)
        parts = choices.objective_parts(config, problems)
        make("sampling", choices.sampling_of, config, parts.get("schedule"), parts.get("time_input"))
        with problems.noted():
            parted.check_guidance(config, made.get("conditioner"))
    problems.check()
    if task in choices.ON_LATENTS:
        made["objective"] = Objective(**parts)
    fields = {f.name for f in dataclasses.fields(Experiment)}
    return Experiment(**{name: made.get(name) for name in fields - {"task", "facts"}}, task=task, facts=facts)


SECTIONS = {
    "autoencoder": ("task", "seed", "data", "model", "loss", "critic", "revival", "latent_units", "optimizer", "learning_rate",
                    "clip_norm", "accumulate", "ema", "init_from", "run"),
    "diffusion": ("task", "seed", "data", "first_stage", "network", "conditioner", "text_encoders", "schedule", "prediction", "time_input",
                  "times", "weight", "loss", "log_variance", "offset_noise", "lora", "sampling", "optimizer", "learning_rate", "clip_norm",
                  "accumulate", "ema", "init_from", "run"),
    "classifier": ("task", "seed", "data", "first_stage", "network", "schedule", "time_input", "times", "loss", "optimizer",
                   "learning_rate", "clip_norm", "accumulate", "ema", "init_from", "run"),
    "embedding": ("task", "seed", "data", "network", "loss", "optimizer", "learning_rate", "clip_norm", "accumulate", "ema", "init_from",
                  "run"),
}


INNER = {
    "data": ("source", "transforms", "variants", "fields", "cache", "resolution", "batch"),
    "run": ("steps", "log_every", "evaluate_every", "preview_every", "preview_images", "save_every", "keep_last", "keep_every", "best",
            "profile_steps", "reader_threads", "mesh"),
    "latent_units": ("images",),
}
SCALARS = {"seed": int, "first_stage": str, "clip_norm": float, "offset_noise": float, "accumulate": int, "init_from": str,
           "text_encoders": str}


def check_keys(config: Mapping) -> None:
    """Checks the form of a config, before anything is looked up in it.

    Raises:
      UserError: all that is wrong, one line each: a section of its task that it lacks or does not read, a scalar of another type,
        a number that is not finite.
    """
    task, problems = config.get("task"), Problems()
    if task not in TASKS:
        raise UserError(f"config.task={task!r}: expected one of {nearest(task, TASKS)}")
    problems.lines += _wrong_keys(config, SECTIONS[task], "config", f"a config of task '{task}'")
    for name in INNER.keys() & config.keys():
        problems.lines += _wrong_keys(config[name], INNER[name], f"config.{name}", "it")
    for name in SCALARS.keys() & config.keys():
        if not fits(config[name], SCALARS[name]):
            problems.lines.append(f"config.{name}={config[name]!r}: expected {SCALARS[name].__name__}, got {type(config[name]).__name__}")
    problems.lines += [f"{where}={value}: expected a finite number" for where, value in _numbers(config, "config")
                       if not math.isfinite(value)]
    problems.check()
    with problems.noted():
        choices.whole(config["data"]["batch"], "config.data.batch", 1)
    with problems.noted():
        choices.whole(config["data"]["resolution"], "config.data.resolution", 1)
    problems.check()


def _wrong_keys(section, known: tuple, where: str, who: str) -> list[str]:
    if not isinstance(section, Mapping):
        return [f"{where}={section!r}: expected a section of {', '.join(known)}"]
    told = [f"{where}: {who} needs {', '.join(missing)}" for missing in [[k for k in known if k not in section]] if missing]
    return told + [f"{where}.{key}: {who} does not read {key!r}; it reads: {nearest(key, known)}" for key in section if key not in known]


def _numbers(value, where: str):
    """(place, number) for every float in a config."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(inner, f"{where}.{key}")
    elif isinstance(value, tuple):
        for i, inner in enumerate(value):
            yield from _numbers(inner, f"{where}[{i}]")
    elif isinstance(value, float):
        yield where, value
