"""The sections of a config of task "classifier" to the objects that they name; the rest of it is read in choices.py."""

from collections.abc import Mapping

import numpy as np

from ldm_jax.choices import Facts, leveled
from ldm_jax.config_tree import Problems
from ldm_jax.core.choose import choose, fill
from ldm_jax.core.errors import UserError
from ldm_jax.diffusion.continuous import SCHEDULES
from ldm_jax.diffusion.prediction import TIME_INPUTS
from ldm_jax.diffusion.times import TIMES
from ldm_jax.models.classifier import NoisyClassifier
from ldm_jax.train.classifier_stage import CrossEntropy

CLASSIFIERS = {"unet_encoder": NoisyClassifier}
TABLES = {"schedule": SCHEDULES, "time_input": TIME_INPUTS, "times": TIMES}


def network_of(config: Mapping, facts: Facts):
    """The network of task "classifier", of the classes that the data has.

    Raises:
      UserError: data without labels, or levels that do not fit together.
    """
    if facts.classes < 2:
        told = "no labels" if not facts.classes else f"{facts.classes} class"
        raise UserError(f"config.data.source has {told}: a classifier needs at least 2 classes (a folder of images: labels='folders')")
    return leveled(CLASSIFIERS, config, classes=facts.classes)


def objective_parts(config: Mapping, problems: Problems) -> dict:
    """The parts of a classifier's Objective, which predicts nothing and weighs nothing; of those that cannot be made, the problems."""
    parts = {"prediction": None, "weight": None}
    for name, table in TABLES.items():
        with problems.noted():
            parts[name] = choose(table, config[name], f"config.{name}")
    with problems.noted():
        parts["loss"] = fill(CrossEntropy, config["loss"], "config.loss")
    with problems.noted("config.times"):
        if "times" in parts:
            parts["times"].check(config["data"]["batch"])
            _check_times(parts["times"], parts.get("schedule"))
    with problems.noted("config.schedule"):
        if "schedule" in parts:
            check_scale(parts["schedule"])
    with problems.noted("config.time_input"):
        if "schedule" in parts and "time_input" in parts:
            _check_finite(parts["time_input"], parts["schedule"])
    return parts


def _check_times(times, schedule) -> None:
    if schedule is not None:
        times.check_schedule(schedule)
        if times.start(schedule):
            raise UserError("times that remember losses are for diffusion models: use uniform or another that forgets")


def _check_finite(time_input, schedule) -> None:
    with np.errstate(divide="ignore"):
        ends = [float(time_input(schedule, np.asarray(t))) for t in (schedule.first, schedule.last)]
    if not np.all(np.isfinite(ends)):
        raise UserError(f"the network would be fed {ends[0]:.4g} and {ends[1]:.4g} at the schedule's ends: use index or scaled")


def check_scale(schedule) -> None:
    """Raises UserError unless noisy latents keep their scale at every level: a classifier is shown them as they are."""
    level = schedule.level_at(schedule.last)
    scale = float(level.alpha**2 + level.sigma**2) ** 0.5
    if not 0.5 <= scale <= 2:
        raise UserError(f"noisy latents grow to a deviation of {scale:.3g}, and a classifier is shown them as they are: "
                        "use a schedule that keeps it near 1 (scaled_linear, cosine, flow ...)")
