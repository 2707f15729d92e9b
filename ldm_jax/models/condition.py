"""Conditioners: from the fields of a batch to a Condition, each with its own null and its rate of dropping.

A conditioner is a linen module with
- `fields`: the names of the batch fields that it reads; `tells`: which of "tokens", "vector" and "image" it gives;
- `drop`: the rate at which training replaces an example's condition by the null (Ho and Salimans 2022); what is of rate 0
  is always told, under guidance too;
- the call, (fields, drop=None, encode=None) -> Condition: drop bool [B], True where an example is told nothing; encode,
  from images [B, H, W, C] in [-1, 1] to unit latents [B, h, w, c] without a draw, given by the caller;
- `null(count, fields=None, encode=None)`: the condition of `count` examples that are told nothing; what is never dropped
  stays as the fields say;
- `check(fields)`: on the host, before the device sees them;
- `example(count, image, latent)`: fields of zeros of these shapes, (H, W, C) and (h, w, c), to make its parameters with.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.core.types import Condition

PLACES = ("vector", "tokens")


class Unconditional(nn.Module):
    """Tells nothing; has no parameters."""

    fields: ClassVar[tuple[str, ...]] = ()
    tells: ClassVar[tuple[str, ...]] = ()
    drop: ClassVar[float] = 0.0

    def __call__(self, fields: Mapping, drop=None, encode=None) -> Condition:
        return Condition()

    def null(self, count: int, fields: Mapping | None = None, encode=None) -> Condition:
        return Condition()

    def check(self, fields: Mapping) -> None:
        """Nothing is needed, so nothing can be wrong."""

    def example(self, count: int, image: tuple, latent: tuple) -> dict:
        return {}


class ClassConditioner(nn.Module):
    """A learned vector for each class and, where training drops any, one more, the last, for "no class".

    Parameter: embedding [classes + 1, width], or [classes, width] with drop = 0; standard normal at the start.

    Fields: `into` is "vector" (added to the time embedding) or "tokens" (one token for the transformers). `drop` is the
    rate of the null in training.

    Raises:
      UserError: a number out of range, an unknown `into`.
    """

    classes: int
    width: int
    drop: float = 0.1
    into: Literal["vector", "tokens"] = "vector"
    fields: ClassVar[tuple[str, ...]] = ("label",)

    def __post_init__(self):
        if self.classes < 1 or self.width < 1 or not 0.0 <= self.drop <= 1.0:
            raise UserError(f"classes={self.classes}, width={self.width}, drop={self.drop}: expected at least 1 class (does the data "
                            f"source have labels?), a width of 1 or above and a rate from 0 to 1")
        if self.into not in PLACES:
            raise UserError(f"into={self.into!r}: expected one of {', '.join(PLACES)}")
        super().__post_init__()

    @property
    def tells(self) -> tuple[str, ...]:
        return (self.into,)

    @property
    def vector_width(self) -> int:
        return self.width if self.into == "vector" else 0

    @nn.compact
    def of(self, index) -> Condition:
        """Rows of the table, index int [B] in 0 .. classes; `classes` itself is the null."""
        rows = self.classes + (1 if self.drop else 0)
        table = self.param("embedding", nn.initializers.normal(1.0), (rows, self.width), jnp.float32)
        rows = table[index]
        return Condition(vector=rows) if self.into == "vector" else Condition(tokens=rows[:, None, :])

    def __call__(self, fields: Mapping, drop=None, encode=None) -> Condition:
        """fields["label"] int [B] in 0 .. classes - 1; drop bool [B], True where an example gets the null, or None."""
        label = jnp.asarray(fields["label"])
        return self.of(label if drop is None or not self.drop else jnp.where(drop, self.classes, label))

    def null(self, count: int, fields: Mapping | None = None, encode=None) -> Condition:
        """The trained null, `count` times; of a model that never dropped its labels, what they say."""
        if not self.drop:
            return self(own_fields(fields, self.fields))
        return self.of(jnp.full((count,), self.classes, jnp.int32))

    def check(self, fields: Mapping) -> None:
        """Checks labels on the host, because on the device a label out of range would silently be another class.

        Raises:
          UserError: no labels, labels that are not whole numbers, or a label out of range.
        """
        if "label" not in fields:
            raise UserError("label: the class conditioner needs labels; this data or this request has none")
        label = np.asarray(fields["label"])
        if label.ndim != 1 or label.dtype.kind not in "iu":
            raise UserError(f"label: expected whole numbers [B], got {label.dtype} {list(label.shape)}")
        wrong = label[(label < 0) | (label >= self.classes)]
        if wrong.size:
            raise UserError(f"label={wrong[0]}: expected a class from 0 to {self.classes - 1}")

    def example(self, count: int, image: tuple, latent: tuple) -> dict:
        return {"label": jnp.zeros((count,), jnp.int32)}


def dropped(conditioner, draw: Callable, name: str = "drop"):
    """Which examples training tells nothing: bool [B]; of a conditioner of several parts one such for each.

    Parts of drops="together" share a draw, so that the examples of a smaller rate are among those of a larger, and all that is dropped
    at times is at times dropped together: that is what guidance calls the null. Parts of drops="apart" have one each, and one more
    drops all of them at the rate `all_drop`: every part is at times told alone.

    Args:
      draw: draw(name) -> [B] in [0, 1), another for every name.
    """
    parts = getattr(conditioner, "parts", None)
    if parts is None or conditioner.drops == "together":
        return _below(conditioner, draw(name))
    everything = draw(f"{name}_all") < conditioner.all_drop
    return tuple(jax.tree.map(lambda own: own | everything, dropped(part, draw, f"{name}_{i}")) for i, part in enumerate(parts))


def _below(conditioner, uniform):
    parts = getattr(conditioner, "parts", None)
    return uniform < conditioner.drop if parts is None else tuple(_below(part, uniform) for part in parts)


def frozen_paths(conditioner, at: str = "conditioner") -> tuple[str, ...]:
    """Where the parameters begin that training leaves as they are: of conditioners that say `trained` = False."""
    parts = getattr(conditioner, "parts", None)
    if parts is None:
        return () if getattr(conditioner, "trained", True) else (f"{at}/",)
    return tuple(path for i, part in enumerate(parts) for path in frozen_paths(part, f"{at}/parts_{i}"))


def first_condition(conditioner, image: tuple[int, int, int], latent: tuple[int, int, int], key: jax.Array) -> tuple[Condition, dict]:
    """(the Condition of one example of zeros, new parameters) of a conditioner for images (H, W, C) and latents (h, w, c)."""
    def encode(images):
        return jnp.zeros((images.shape[0], *latent))

    condition, variables = conditioner.init_with_output(key, conditioner.example(1, image, latent), None, encode)
    return condition, variables.get("params", {})


def own_fields(fields: Mapping | None, names: tuple[str, ...]) -> Mapping:
    """The fields that a null keeps, those that are never dropped.

    Raises:
      UserError: one is missing.
    """
    missing = [name for name in names if name not in (fields or {})]
    if missing:
        raise UserError(f"{', '.join(missing)}: this model is always told {'it' if len(missing) == 1 else 'them'}, under guidance too; "
                        "give it to model.condition")
    return fields
