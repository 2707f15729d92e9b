"""Several conditioners as one: their tokens one after the other, their vectors and their images side by side."""

from collections.abc import Mapping, Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_jax.core.errors import UserError
from ldm_jax.core.types import Condition
from ldm_jax.models.condition import own_fields

DROPS = ("together", "apart")


class Several(nn.Module):
    """Parts in their order: tokens joined on the token axis, vectors on the features, images on the channels.

    Parameters: parts_{i}/..., of those that have any.

    Fields:
      drops: "together", by one draw for all parts, or "apart", by a draw for each; see `condition.dropped`.
      all_drop: with "apart", the rate at which all parts are dropped, beside their own rates (arXiv 2211.09800, section 3.2.1: each of two
        at 5 %, and both at 5 %).

    Raises:
      UserError: fewer than two parts; a rate `all_drop` without parts that it can drop.
    """

    parts: tuple[nn.Module, ...]
    drops: Literal["together", "apart"] = "together"
    all_drop: float = 0.0

    def __post_init__(self):
        if self.drops not in DROPS:
            raise UserError(f"drops={self.drops!r}: expected one of {', '.join(DROPS)}")
        apart = self.drops == "apart" and any(part.drop for part in self.parts)
        if not 0 <= self.all_drop <= 1 or self.all_drop and not apart:
            raise UserError(f"all_drop={self.all_drop}, drops={self.drops!r}: expected a rate from 0 to 1, and above 0 only with "
                            "drops='apart' and parts of a rate above 0: what has none is always told")
        if len(self.parts) < 2:
            raise UserError(f"parts: expected two or more sections, as ({{'name': ...}}, {{'name': ...}}); got {len(self.parts)}")
        super().__post_init__()

    @property
    def fields(self) -> tuple[str, ...]:
        """Each field once, in the order of the parts."""
        return tuple(dict.fromkeys(name for part in self.parts for name in part.fields))

    @property
    def tells(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(kind for part in self.parts for kind in part.tells))

    @property
    def drop(self) -> float:
        """The largest of the parts' rates: above 0, there is a null."""
        return max(part.drop for part in self.parts)

    @property
    def vector_width(self) -> int:
        """Features of the joined vector; AttributeError where a part does not say its own."""
        return sum(part.vector_width for part in self.parts if "vector" in part.tells)

    def __call__(self, fields: Mapping, drop=None, encode=None) -> Condition:
        """drop: bool [B] for all parts that are ever dropped, or one such for each part (`condition.dropped`), or None."""
        each = drop if isinstance(drop, tuple) else (drop,) * len(self.parts)
        return joined([part(fields, of_part if part.drop else None, encode) for part, of_part in zip(self.parts, each)])

    def null(self, count: int, fields: Mapping | None = None, encode=None) -> Condition:
        """The parts' nulls; of a part that is never dropped, what the fields say."""
        return joined([part.null(count, fields, encode) if part.drop else part(own_fields(fields, part.fields), None, encode)
                       for part in self.parts])

    def pairs(self, count: int, fields: Mapping, encode=None) -> list[tuple[Condition, Condition | None]]:
        """Of each part what the fields say, and its null; None of a part that is never dropped."""
        return [(part(fields, None, encode), part.null(count, fields, encode) if part.drop else None) for part in self.parts]

    def check(self, fields: Mapping) -> None:
        for part in self.parts:
            part.check(fields)

    def example(self, count: int, image: tuple, latent: tuple) -> dict:
        return {name: value for part in self.parts for name, value in part.example(count, image, latent).items()}


def partials(pairs: Sequence[tuple[Condition, Condition | None]], alone: bool) -> list[Condition]:
    """What guidance of each part is told.

    Nothing of the parts that have a null, then, for each of them in their order, it alone, or it and those before it. What has no null is
    always told.

    Args:
      pairs: of each part (what is given, its null or None).
    """
    dropped = [i for i, (_, null) in enumerate(pairs) if null is not None]
    told = [set(), *({i} if alone else set(dropped[:k + 1]) for k, i in enumerate(dropped))]
    return [joined([given if null is None or i in now else null for i, (given, null) in enumerate(pairs)]) for now in told]


def joined(conditions: list[Condition]) -> Condition:
    """One Condition of several; where only some have a token mask, the tokens of the others all count."""
    sides = {c.image.shape[1:3] for c in conditions if c.image is not None}
    if len(sides) > 1:
        raise UserError(f"the condition's images are of {', '.join(f'{w}x{h}' for h, w in sorted(sides))} latents: make all for one size, "
                        "and say it as size=(width, height) where one is left out")
    with_tokens = [c for c in conditions if c.tokens is not None]
    mask = None
    if any(c.token_mask is not None for c in with_tokens):
        mask = [jnp.ones(c.tokens.shape[:2], bool) if c.token_mask is None else c.token_mask for c in with_tokens]
    return Condition(_side_by_side([c.tokens for c in with_tokens], 1), _side_by_side(mask or [], 1),
                     _side_by_side([c.vector for c in conditions if c.vector is not None], -1),
                     _side_by_side([c.image for c in conditions if c.image is not None], -1))


def _side_by_side(arrays: list[jax.Array], axis: int) -> jax.Array | None:
    return jnp.concatenate(arrays, axis) if arrays else None
