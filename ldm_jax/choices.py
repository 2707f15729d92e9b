"""Each section of a config to the object that it names. `experiment.build` makes all of them, once."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np

from ldm_jax import data_choices, sampling
from ldm_jax.config_tree import LATER, Problems
from ldm_jax.core.choose import choose, fill, fits
from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import check_seed
from ldm_jax.diffusion.continuous import SCHEDULES
from ldm_jax.diffusion.log_variance import LOG_VARIANCES
from ldm_jax.diffusion.loss import LOSSES
from ldm_jax.diffusion.prediction import PREDICTIONS, TIME_INPUTS
from ldm_jax.diffusion.schedule import linear
from ldm_jax.diffusion.times import TIMES
from ldm_jax.diffusion.weights import WEIGHTS, check_weight
from ldm_jax.models.autoencoder import AUTOENCODERS
from ldm_jax.models.bottleneck import BOTTLENECKS
from ldm_jax.models.conditioners import conditioner
from ldm_jax.models.first_stage import FirstStage
from ldm_jax.models.levels import LevelSpec, MiddleSpec
from ldm_jax.models.lora import Lora
from ldm_jax.models.unet import UNet
from ldm_jax.models.units import unit_of
from ldm_jax.train.autoencoder_stage import Loss
from ldm_jax.train.loop import Plan
from ldm_jax.train.optim import LEARNING_RATES, OPTIMIZERS, Average, finished
from ldm_jax.train.sharding import Layout
from ldm_jax.train.steps import Descent

NETWORKS = {"unet": UNet}
ON_LATENTS = ("diffusion", "classifier")  # tasks


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the data says of itself: image channels, the resolution after the transforms, the number of labels (0: none)."""

    channels: int
    resolution: int
    classes: int


def facts_of(config: Mapping, source) -> Facts:
    return Facts(source.channels, config["data"]["resolution"], source.classes)


def whole(value, where: str, least: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{where}={value!r}: expected a whole number from {least}")
    return value


def seed_of(config) -> int:
    check_seed(config["seed"], "config.seed")
    return config["seed"]


def layout_of(config) -> Layout:
    return fill(Layout, config["run"]["mesh"], "config.run.mesh")


def plan_of(config) -> Plan:
    run = config["run"]
    for key in ("steps", "log_every", "evaluate_every", "preview_every", "preview_images", "save_every", "keep_last", "keep_every",
                "reader_threads"):
        whole(run[key], f"config.run.{key}", 1 if key in ("steps", "keep_last") else 0)
    profile, best = run["profile_steps"], run["best"]
    if not fits(profile, tuple[int, int]) or not 0 <= profile[0] <= profile[1]:
        raise UserError(f"config.run.profile_steps={profile!r}: expected (first, last) with 0 <= first <= last; (0, 0) for none")
    if not fits(best, tuple[str, Literal["min", "max"]]):
        raise UserError(f"config.run.best={best!r}: expected (metric, 'min' or 'max'), as ('held_out/loss', 'min'); ('', 'min') for none")
    if best[0] and (not run["evaluate_every"] or not run["save_every"] or run["save_every"] % run["evaluate_every"]):
        raise UserError(f"config.run.best={best!r} needs a measurement at each save: make save_every={run['save_every']} a multiple of "
                        f"evaluate_every={run['evaluate_every']}")
    return Plan(run["steps"], run["log_every"], run["evaluate_every"], run["preview_every"], run["save_every"], profile)


def descent_of(config) -> Descent:
    section = config["learning_rate"]
    rate = choose(LEARNING_RATES, section, "config.learning_rate")
    if section["peak"] <= 0:
        raise UserError(f"config.learning_rate.peak={section['peak']}: expected a number above 0")
    optimizer = choose(OPTIMIZERS, config["optimizer"], "config.optimizer", learning_rate=rate)
    average = fill(Average, config["ema"], "config.ema", accumulate=config["accumulate"])
    return Descent(finished(optimizer, config["clip_norm"], config["accumulate"]), rate, average)


def check_data(config, problems: Problems) -> None:
    """The sections that are built again when the data is opened, so that their errors are told with the others."""
    with problems.noted():
        data_choices.transforms(config)
    if "latent_units" in config:
        with problems.noted():
            whole(config["latent_units"]["images"], "config.latent_units.images", 1)


def autoencoder_of(config, facts: Facts):
    section = dict(config["model"])
    if section.get("name") == "identity":
        raise UserError("config.model.name='identity' has nothing to train; diffusion in pixels is stage 2, --config.first_stage=pixels")
    given = {"channels": facts.channels, "resolution": facts.resolution}
    if "bottleneck" in section:
        given["bottleneck"] = choose(BOTTLENECKS, section.pop("bottleneck"), "config.model.bottleneck")
    return choose(AUTOENCODERS, section, "config.model", **given)


def first_stage_for(first: FirstStage | None, facts: Facts) -> FirstStage:
    if first is None:
        identity = AUTOENCODERS["identity"](channels=facts.channels, resolution=facts.resolution)
        return FirstStage(identity, unit_of(facts.channels))
    module = first.module
    if module.channels != facts.channels:
        raise UserError(f"config.data: images have {facts.channels} channels, and the first stage was trained on {module.channels}")
    if facts.resolution % module.factor:
        low = max(1, facts.resolution // module.factor) * module.factor
        raise UserError(f"config.data.resolution={facts.resolution}: not divisible by the first stage's factor f={module.factor}; "
                        f"nearest: {low}, {low + module.factor}")
    return first


def conditioner_of(config, facts: Facts, factor: int):
    """factor: image pixels a latent, on a side."""
    return conditioner(config["conditioner"], "config.conditioner", facts.classes, factor)


def network_of(config, latent_channels: int):
    return leveled(NETWORKS, config, out_channels=latent_channels)


def leveled(table, config, **given):
    """A network whose section has levels and may have a middle."""
    section = dict(config["network"])
    if section.get("middle") is not None:
        section["middle"] = fill(MiddleSpec, section["middle"], "config.network.middle")
    levels = tuple(fill(LevelSpec, level, f"config.network.levels[{i}]") for i, level in enumerate(section.pop("levels", ())))
    return choose(table, section, "config.network", levels=levels, **given)


def lora_of(config) -> Lora | None:
    """What is trained in the place of the parameters; None is the parameters."""
    lora = fill(Lora, config.get("lora", LATER["lora"]), "config.lora")
    return lora if lora.rank else None


def adapts(config) -> bool:
    """Whether a config asks for a LoRA, be its section right or wrong."""
    section = config.get("lora")
    return isinstance(section, Mapping) and bool(section.get("rank"))


def check_network(network, conditioner, side: int) -> None:
    """Checks that a U-Net fits the latents, of side `side`, and reads what the conditioner tells.

    Raises:
      UserError: levels that halve the side once too often, a condition that nothing reads, or one that is missing.
    """
    check_side(network, side)
    tells, of_classes = conditioner.tells, hasattr(conditioner, "into")
    if network.reads_tokens != ("tokens" in tells):
        mend = (("set config.conditioner.into=tokens" if of_classes else "take a conditioner that gives tokens") + ", or another attention"
                if network.reads_tokens else
                "give a level attention='transformer'" + (", or set config.conditioner.into=vector" if of_classes else ""))
        raise UserError(f"config.conditioner tells {' and '.join(tells) or 'nothing'} and config.network.levels have "
                        f"{'a transformer, which reads tokens' if network.reads_tokens else 'no transformer to read them'}: {mend}")
    if "vector" in tells and network.vector == "added" and conditioner.vector_width != network.time_width:
        raise UserError(f"config.conditioner tells a vector of width {conditioner.vector_width}: config.network.vector='added' adds it to "
                        f"the time embedding, so it must be config.network.time_width={network.time_width}")


def check_side(network, side: int) -> None:
    """Raises UserError: levels that halve a side once too often."""
    deepest = 1 + (side & -side).bit_length() - 1
    if side % network.factor:
        below = max(1, side // network.factor) * network.factor
        raise UserError(f"config.network.levels: {len(network.levels)} levels need a latent side that is a multiple of {network.factor}; "
                        f"it is {side}, which allows {deepest}; nearest sides: {below}, {below + network.factor}")


def loss_of(config) -> Loss:
    section = dict(config["loss"])
    weights = section.pop("perceptual_weights", "")
    loss = fill(Loss, section, "config.loss")
    if loss.perceptual and not weights:
        raise UserError("config.loss.perceptual is above 0, so config.loss.perceptual_weights must name a file made by "
                        "python -m ldm_jax.cli.convert lpips")
    return loss


def objective_parts(config, problems: Problems) -> dict:
    """The parts of the Objective; of those that cannot be made, the problems."""
    config = LATER | dict(config)
    parts = {}
    tables = {"schedule": SCHEDULES, "prediction": PREDICTIONS, "time_input": TIME_INPUTS, "times": TIMES, "weight": WEIGHTS,
              "loss": LOSSES, "log_variance": LOG_VARIANCES}
    for name, table in tables.items():
        given = {"schedule": parts.get("schedule", linear())} if name == "weight" else {}  # a stand-in, so that other keys are checked
        with problems.noted():
            parts[name] = choose(table, config[name], f"config.{name}", **given)
    with problems.noted():
        if not config["offset_noise"] >= 0:
            raise UserError(f"config.offset_noise={config['offset_noise']}: expected a number of 0 (off) or above; published: 0.1")
        parts["offset_noise"] = float(config["offset_noise"])
    with problems.noted("config.times"):
        if "times" in parts:
            parts["times"].check(config["data"]["batch"])
    if "schedule" in parts:
        check_objective(parts, problems)
    return parts


def check_objective(parts: dict, problems: Problems) -> None:
    """Notes each part of an objective that the schedule cannot serve."""
    schedule, before = parts["schedule"], len(problems.lines)
    for name in sorted(parts.keys() & {"times", "log_variance"}):
        with problems.noted(f"config.{name}"):
            parts[name].check_schedule(schedule)
    with problems.noted("config.prediction"):
        if "prediction" in parts:
            parts["prediction"].check(schedule)
    with problems.noted("config.time_input"), np.errstate(divide="ignore"):
        if "time_input" in parts and not np.isfinite(parts["time_input"](schedule, np.asarray([schedule.last]))).all():
            del parts["time_input"]  # no table can be made with it
            raise UserError("this schedule ends in pure noise (alpha = 0), where the number fed is infinite: set it to index or scaled")
    if parts.keys() >= {"prediction", "weight", "log_variance"} and len(problems.lines) == before:
        with problems.noted("config.weight"):
            check_weight(parts["weight"], schedule, parts["prediction"], above_0=parts["log_variance"].learned)


def sampling_of(config, schedule, time_input) -> Mapping:
    """The sampling section with what configs saved earlier lack, checked as far as its names go, and its table if there is a schedule."""
    section = config["sampling"]
    section = LATER["sampling"] | dict(section) if isinstance(section, Mapping) else {}
    if set(section) != set(sampling.KEYS):
        raise UserError(f"config.sampling: expected the keys {', '.join(sampling.KEYS)}; got {', '.join(section)}")
    if schedule is not None and time_input is not None:
        try:
            sampling.way_of(sampling.Parts(schedule, time_input, pixels=config["first_stage"] == "pixels"), section)
        except UserError as error:
            raise UserError(f"config.sampling: {error}") from None
    return section
