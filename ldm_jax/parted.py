"""Guidance as a conditioner allows it: whether there is what it steps away from; and what guidance of each part is told."""

from collections.abc import Mapping

from ldm_jax.core.errors import UserError
from ldm_jax.diffusion.guidance import Guided, Partials
from ldm_jax.diffusion.guiding import FromParts, choice
from ldm_jax.models.several_condition import partials
from ldm_jax.told import told


def check_guidance(config, conditioner) -> None:
    """Raises UserError if samples are to be guided by a condition that the model never has, or whose null it never learns."""
    value = config["sampling"].get("guidance") if isinstance(config["sampling"], Mapping) else None
    if value is None or conditioner is None:
        return
    try:
        guided = choice(value)
    except UserError:
        return  # told with the section
    if "parts" in guided.needs:
        check_parts(conditioner, guided)
    elif conditioner.fields and conditioner.drop:
        return
    if "null" in guided.needs and not guided.never:
        raise UserError(f"config.sampling.guidance={value}: without a condition that training drops (config.conditioner) there is nothing "
                        "to guide by; write 1")


def check_parts(conditioner, way: FromParts) -> None:
    """Raises UserError unless the conditioner has a part that is dropped for each weight, and training told what the guidance compares."""
    parts = [part for part in getattr(conditioner, "parts", ()) if part.drop]
    if len(parts) < 2:
        raise UserError("guidance 'each': it weighs the parts of a condition that training drops, and this model has "
                        f"{len(parts) if hasattr(conditioner, 'parts') else 'no parts'}; write a number, as guidance=2.0")
    names = [" and ".join(part.fields) for part in parts]
    if len(way.weights) != len(parts):
        raise UserError(f"guidance 'each': weights={tuple(way.weights)}: expected {len(parts)} numbers, for {', '.join(names)}")
    rates = [part.drop for part in parts]
    seen = way.form == "chain" and all(a < b for a, b in zip(rates, rates[1:]))
    if conditioner.drops == "together" and not seen:
        raise UserError(f"guidance 'each', form '{way.form}': training dropped {', '.join(names)} together, at the rates {rates}, and "
                        "never told some without the others; train with config.conditioner.drops='apart'")


def partials_of(model, condition, way: FromParts) -> Partials:
    """What the program of a way is told, of what `Model.condition` made; None is told nothing.

    Raises:
      UserError: as `check_parts`; a Condition that does not say its parts; a negative of a part that is never dropped.
    """
    check_parts(model.experiment.conditioner, way)
    condition = told(model, {}) if condition is None else condition
    if not isinstance(condition, Guided) or condition.parts is None:
        raise UserError("guidance 'each': expected what model.condition(...) makes, which knows its parts; got "
                        f"{type(condition).__name__}")
    pairs = [(part.given, part.null) for part in condition.parts]
    if sum(null is not None for _, null in pairs) != len(way.weights):
        raise UserError("guidance 'each': there is a negative of a part that training never drops, which no weight is for")
    return partials_of_pairs(pairs, way)


def partials_of_pairs(pairs, way: FromParts) -> Partials:
    """The same of the parts' own (given, null), null None where a part is never dropped."""
    null, *some = partials(pairs, way.form == "sum")
    return Partials(null, tuple(some))
