"""From what a user says of the samples to a Condition: the fields that the model's conditioner reads, checked, and its null."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.core.choose import nearest
from ldm_jax.core.errors import UserError
from ldm_jax.core.types import Condition
from ldm_jax.diffusion.guidance import Guided
from ldm_jax.models.several_condition import joined
from ldm_jax.ops.images import from_uint8

PART = 64  # examples whose condition is made at a time
NAMES = {"label": "labels"}  # field -> what a user calls it, where that differs
WHOLE = {"label"}  # fields of whole numbers
PICTURES = {"image"}  # fields that are pictures: uint8, or float in [-1, 1]


def told(model, given: Mapping, number: int | None = None) -> Guided:
    """The condition of N examples and its null (None where nothing is ever dropped).

    Args:
      model: a pipeline.Model of task "diffusion".
      given: by the names that a user gives them; None is not given.
      number: of examples, where nothing given says it.

    Raises:
      UserError: what is missing, of another number, out of range, or not read by this model, by its name.
    """
    conditioner = model.experiment.conditioner
    given = {name: value for name, value in given.items() if value is not None}
    fields = {name: given.pop(NAMES.get(name, name)) for name in conditioner.fields if NAMES.get(name, name) in given}
    if given:
        raise UserError(_superfluous(conditioner, next(iter(given))))
    fields = _of_one_number({name: _array(name, value) for name, value in fields.items()}, number)
    count = next((len(value) for value in fields.values()), number or 1)
    untold = _untold(conditioner, fields)
    fields = {name: value.astype(np.int32 if name in WHOLE else np.float32) for name, value in fields.items()}
    of = (conditioner, model.first_stage, model.params["conditioner"], model.first_params)
    parts = [{name: value[low:low + PART] for name, value in fields.items()} for low in range(0, count, PART)]
    made = [_conditions(*of, part, min(PART, count - low), untold) for low, part in zip(range(0, count, PART), parts)]
    return jax.tree.map(lambda *leaves: leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves), *made)


def _untold(conditioner, fields: Mapping):
    """Checks the fields of each part that is told, and says which is not: for a part of rate above 0, True where no field of it is
    given. A tuple for a conditioner of parts."""
    parts = getattr(conditioner, "parts", None)
    if parts is not None:
        return tuple(_untold(part, fields) for part in parts)
    own = {name: fields[name] for name in conditioner.fields if name in fields}
    if not own and conditioner.drop:
        return True
    missing = [NAMES.get(name, name) for name in conditioner.fields if name not in own]
    if missing:
        raise UserError(f"{', '.join(missing)}: this model must be told {'it' if len(missing) == 1 else 'them'}; give "
                        f"{', '.join(f'{name}=' for name in missing)} to model.condition")
    conditioner.check(own)
    return False


def _superfluous(conditioner, name: str) -> str:
    if name == "labels":
        return "labels: this model was trained without labels"
    return f"{name}: this model does not read it; it reads {nearest(name, [NAMES.get(n, n) for n in conditioner.fields]) or 'nothing'}"


def _array(name: str, value) -> np.ndarray:
    """On the host; uint8 pictures become [-1, 1]."""
    value = np.asarray(value)
    return from_uint8(value) if name in PICTURES and value.dtype == np.uint8 else value


def _of_one_number(fields: Mapping, number: int | None) -> dict:
    """Arrays of 1 or N examples as arrays of N."""
    sizes = {NAMES.get(name, name): len(value) if value.ndim else 0 for name, value in fields.items()}
    count = max([*sizes.values(), number or 1])
    wrong = [f"{name} of {size}" for name, size in sizes.items() if size not in (1, count)]
    if wrong:
        raise UserError(f"{', '.join(wrong)}, and {count} examples: expected one for each, or one for all, as a list")
    return {name: value if len(value) == count else np.broadcast_to(value, (count, *value.shape[1:])) for name, value in fields.items()}


@functools.partial(jax.jit, static_argnums=(0, 1, 5, 6))
def _conditions(conditioner, first_stage, params, first_params, fields: Mapping, count: int, untold) -> Guided:
    """untold: of `_untold`. The null is made beside what is given, so that images are encoded once for both."""
    encode, variables = functools.partial(first_stage.encode, first_params), {"params": params}
    null = conditioner.apply(variables, count, fields, encode, method="null") if conditioner.drop else None
    return Guided(conditioner.apply(variables, count, fields, encode, untold, method=_given), null)


def _given(conditioner, count: int, fields: Mapping, encode, untold) -> Condition:
    if isinstance(untold, tuple):
        return joined([_given(part, count, fields, encode, of_part) for part, of_part in zip(conditioner.parts, untold)])
    return conditioner.null(count, fields, encode) if untold else conditioner(fields, None, encode)
