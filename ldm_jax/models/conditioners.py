"""The conditioners by name."""

from collections.abc import Mapping

from ldm_jax.core.choose import choose
from ldm_jax.models.condition import ClassConditioner, Unconditional
from ldm_jax.models.given_tokens import Tokens
from ldm_jax.models.several_condition import Several
from ldm_jax.models.size_condition import Sizes
from ldm_jax.models.spatial_condition import Depth, Inpainting, LowResolution, SemanticMap
from ldm_jax.models.text_condition import BertText, ClipText, TwoClipText


def several(parts: tuple[Mapping, ...], classes: int, factor: int, drops: str = "together", all_drop: float = 0.0) -> Several:
    """The sections of CONDITIONERS, in their order, as one conditioner; arguments and errors as of `Several` and `conditioner`."""
    made = tuple(conditioner(part, f"config.conditioner.parts[{i}]", classes, factor) for i, part in enumerate(parts))
    return Several(made, drops, all_drop)


CONDITIONERS = {"none": Unconditional, "class": ClassConditioner, "clip_text": ClipText, "two_clip_text": TwoClipText,
                "bert_text": BertText, "tokens": Tokens, "inpainting": Inpainting, "depth": Depth, "low_resolution": LowResolution,
                "semantic_map": SemanticMap, "sizes": Sizes, "several": several}
OF_LABELS = ("class", "several")


def conditioner(section: Mapping, where: str, classes: int, factor: int):
    """The conditioner of a section.

    Args:
      classes: of the data, for those that read its labels.
      factor: image pixels a latent, on a side.

    Raises:
      UserError: as `choose`; fewer parts than two.
    """
    given = {"classes": classes} if isinstance(section, Mapping) and section.get("name") in OF_LABELS else {}
    return choose(CONDITIONERS, section, where, factor=factor, **given)
