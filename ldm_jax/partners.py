"""A second model in a sample: one that guides, or a refiner that is given the last rows. Both see the model's own latents and levels."""

import dataclasses
from collections.abc import Mapping

from ldm_jax.core.errors import UserError
from ldm_jax.diffusion.guidance import Guided
from ldm_jax.diffusion.handover import handover_row
from ldm_jax.sampling import Refiner, Way, parts_of, way_of

HANDOVER = 0.8  # SDXL's refiner was trained on the last 200 of 1000 times (arXiv 2307.01952, section 2.5)


def check_guide(model, guide) -> None:
    """Raises UserError unless a guide is a model that looks at the same latents, levels and times, on the same devices."""
    _check_loaded(model, guide, "guide")
    task = guide.experiment.task
    if task not in ("diffusion", "classifier"):
        raise UserError(f"guide: expected a weaker diffusion model or a classifier, this is of task {task}")
    _check_same(model, guide, "guide", *(m.experiment.latent_shape for m in (model, guide)))


def _check_loaded(model, other, what: str) -> None:
    if not hasattr(other, "experiment"):
        raise UserError(f"{what}={other!r}: expected a loaded model, as ldm.load(path, mesh=model.mesh)")
    if other.mesh != model.mesh:
        raise UserError(f"{what}: it lies on other devices than the model; load it with ldm.load(path, mesh=model.mesh)")


def _check_same(model, other, what: str, latents: tuple, others: tuple) -> None:
    """Raises UserError for other latents (as the two shapes say them), another first stage, schedule or time input."""
    if latents != others:
        raise UserError(f"{what}: its latents are {_by(others)}, the model's {_by(latents)}")
    ours, theirs = model.manifest.first_stage, other.manifest.first_stage
    same = what == "refiner" and ours and theirs and ours.latent_units == theirs.latent_units  # its decoder is not used: copies may differ
    if not same and (ours and (ours.digest, ours.latent_units)) != (theirs and (theirs.digest, theirs.latent_units)):
        told = [stage.digest[:12] if stage else "none (pixels)" for stage in (theirs, ours)]
        raise UserError(f"{what}: it was trained on another first stage, of digest {told[0]}; the model's is {told[1]}")
    for key in ("schedule", "time_input"):
        if dict(model.manifest.config[key]) != dict(other.manifest.config[key]):
            raise UserError(f"{what}: its {key} is {dict(other.manifest.config[key])}, the model's {dict(model.manifest.config[key])}")


def refined(model, asked, way: Way, section: Mapping) -> Way:
    """The way, with the refiner in it that `asked` (an asked.Asked) names.

    Args:
      section: the sampling section that the way was made of; the refiner is guided by it too.

    Raises:
      UserError: a refiner that does not fit the model or the section; what belongs to a refiner, without one.
    """
    refiner = asked.refiner
    if refiner is None:
        for name in ("refiner_condition", "handover"):
            if getattr(asked, name) is not None:
                raise UserError(f"{name}: there is no refiner; give refiner=ldm.load(path, mesh=model.mesh) too")
        return way
    _check_loaded(model, refiner, "refiner")
    if refiner.experiment.task != "diffusion":
        raise UserError(f"refiner: expected a diffusion model, this is of task {refiner.experiment.task}")
    _check_same(model, refiner, "refiner", *(m.experiment.latent_shape[2:] for m in (model, refiner)))
    if asked.guide is not None:
        raise UserError("refiner and guide: a guide sees the base's rows and not the refiner's; take one of them")
    if way.needs_parts:
        raise UserError("refiner: guidance 'each' is of the parts that the base is told; take a number for both")
    if way.table is None:
        raise UserError("refiner: this sampler has no rows to hand over; take a sampler of a table, as ddim")
    conditioner = refiner.experiment.conditioner
    null = getattr(asked.refiner_condition, "null", None)
    if way.needs_null and null is None and not (conditioner.fields and conditioner.drop):
        raise UserError("refiner: it was trained without a condition that is dropped, so it knows no null; set guidance=1")
    parts = parts_of(refiner.experiment, None, way.window)
    program = way_of(parts, section, 1.0 if asked.strength is None else asked.strength).guidance
    if way.window is not None:
        way.window.check(refiner.experiment.network.factor)
    row = handover_row(way.table, parts.schedule, HANDOVER if asked.handover is None else asked.handover)
    return dataclasses.replace(way, refiner=Refiner(row, parts.denoise(), program))


def refiner_told(asked, way: Way, number: int):
    """What the refiner's guidance takes, of `number` images on the host; None without a refiner.

    Raises:
      UserError: the refiner reads a condition and none is given.
    """
    if way.refiner is None:
        return None
    refiner, told = asked.refiner, asked.refiner_condition
    if told is None and refiner.experiment.conditioner.fields:
        raise UserError("refiner_condition: say what the refiner is told, as refiner.condition(labels=[...]); refiner.null(1) for nothing")
    given, null = (told.given, told.null) if isinstance(told, Guided) else (told, None)
    return way.told(refiner.spread(given, number), refiner.spread(null, number) if way.needs_null else None)


def _by(shape) -> str:
    return "x".join(map(str, shape))
