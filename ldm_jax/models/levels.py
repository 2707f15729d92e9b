"""What a U-Net is made of, in words: one spec a level, and one for the middle."""

import dataclasses

from ldm_jax.core.errors import UserError
from ldm_jax.ops.normalise import groups_for

ATTENTIONS = ("none", "plain", "transformer")
DOWNS = ("conv", "residual", "none")


@dataclasses.dataclass(frozen=True)
class LevelSpec:
    """One resolution of a U-Net.

    Fields:
      width: channels. GroupNorm has 32 groups where that leaves 4 channels each, fewer in smaller widths.
      blocks: residual blocks on the way down; there is one more on the way up.
      attention: after each block, "none", "plain" self-attention, or a "transformer" that also attends to tokens.
      heads: attention heads; each is width / heads wide.
      depth: transformer blocks in one "transformer".
      down: how the next level is reached and left again: "conv" (convolutions), "residual" (residual blocks that
        resample), and "none" for the last level and for it alone.
      cross_only: whether the transformers' first attention, too, is to the tokens instead of to the positions themselves (the
        published 4x upscaler); the level then has no self-attention.

    Raises:
      UserError: a number below 1, an unknown name, a width that the heads do not divide, or cross_only without a transformer.
    """

    width: int
    blocks: int
    attention: str = "none"
    heads: int = 1
    depth: int = 1
    down: str = "conv"
    cross_only: bool = False

    def __post_init__(self):
        if self.width < 1 or self.blocks < 1:
            raise UserError(f"level width={self.width}, blocks={self.blocks}: expected numbers of 1 and above")
        if self.down not in DOWNS:
            raise UserError(f"level down={self.down!r}: expected one of {', '.join(DOWNS)}")
        check_attention(self, self.width, "level")


@dataclasses.dataclass(frozen=True)
class MiddleSpec:
    """The attention between the two middle blocks; its width is the last level's."""

    attention: str = "none"
    heads: int = 1
    depth: int = 1
    cross_only: bool = False


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """What all blocks of a U-Net share: dropout rate, whether time scales and shifts, compute dtype, and GroupNorm's groups.

    identity: the places (names of the parts, "middle", "down_0") whose self-attention is disturbed, each position attending
    to itself alone.
    """

    dropout: float
    scale_shift: bool
    dtype: str
    identity: tuple[str, ...] = ()
    groups: int = 0


def check_attention(spec: LevelSpec | MiddleSpec, width: int, where: str) -> None:
    """Raises UserError: an unknown attention, a depth or a number of heads below 1, a width that the heads do not divide, or

    cross_only without a transformer.
    """
    if spec.attention not in ATTENTIONS:
        raise UserError(f"{where} attention={spec.attention!r}: expected one of {', '.join(ATTENTIONS)}")
    if spec.heads < 1 or spec.depth < 1:
        raise UserError(f"{where} heads={spec.heads}, depth={spec.depth}: expected numbers of 1 and above")
    if spec.cross_only and spec.attention != "transformer":
        raise UserError(f"{where} cross_only=True: only attention='transformer' attends to tokens, and it is {spec.attention!r}; "
                        "expected cross_only=False")
    if spec.attention != "none" and width % spec.heads:
        fitting = [n for n in range(1, width + 1) if width % n == 0]
        raise UserError(f"{where} width={width} is not divisible by heads={spec.heads}; "
                        f"it can have {', '.join(map(str, fitting))} heads")


def check_levels(levels: tuple[LevelSpec, ...]) -> None:
    """Raises UserError: no levels, or a `down` of "none" anywhere but at the last level, or not there."""
    if not levels or not all(isinstance(level, LevelSpec) for level in levels):
        raise UserError(f"levels={levels!r}: expected a tuple of at least one LevelSpec")
    wrong = [i for i, level in enumerate(levels) if (level.down == "none") != (i == len(levels) - 1)]
    if wrong:
        wanted = "'none', it is the last" if wrong[0] == len(levels) - 1 else "'conv' or 'residual', it is not the last"
        raise UserError(f"level {wrong[0]}: down={levels[wrong[0]].down!r}; expected {wanted} of {len(levels)} levels")


def shared_groups(groups: int, widths) -> int:
    """What GroupNorm's `groups` is in a network of these widths: the number itself, 0 (each width's own), or for -1 the
    smallest of their own, which all of them can share.

    Raises:
      UserError: a number that does not divide every width.
    """
    widths = list(widths)
    if groups == -1:
        return min(map(groups_for, widths))  # powers of 2: the smallest divides them all
    wrong = [width for width in widths if groups < 0 or groups and width % groups]
    if wrong:
        fitting = [n for n in (1, 2, 4, 8, 16, 32) if all(width % n == 0 for width in widths)]
        raise UserError(f"groups={groups}: a norm of width {wrong[0]} cannot have them; expected -1 (one number for all), 0 (each "
                        f"width's own), or one of {', '.join(map(str, fitting))}")
    return groups


def one_group_number(groups: int, widths) -> int:
    """The number of groups of all norms of a network whose `groups` this is, for layouts that have but one.

    Raises:
      UserError: the widths have numbers of their own, and these differ.
    """
    widths = list(widths)
    known = {shared_groups(groups, widths) or groups_for(width) for width in widths}
    if len(known) > 1:
        raise UserError(f"groups={groups}: norms of {', '.join(map(str, sorted(known)))} groups, a number for each width, which other "
                        "layouts have no word for; models trained with groups=-1 have one number for all")
    return known.pop()
