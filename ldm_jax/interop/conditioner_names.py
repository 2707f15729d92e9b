"""Where the tensors of conditioners stand in published files: text encoders, tables of classes and noise levels, the map's channel mapper.

Foreign names begin with the part of the file that they stand in, "network/" or the home of an encoder.
"""

from collections.abc import Iterator

from ldm_jax.core.errors import UserError
from ldm_jax.interop.layer_places import linear
from ldm_jax.interop.places import POINTWISE, Place, prefixed
from ldm_jax.interop.prefixes import CONDITIONER, EMBEDDERS
from ldm_jax.interop.text_names import bert_places, class_places, clip_text_places
from ldm_jax.interop.unet_names import LABEL_TABLE
from ldm_jax.models.bert_text import BertTextEncoder
from ldm_jax.models.condition import ClassConditioner
from ldm_jax.models.several_condition import Several
from ldm_jax.models.spatial_condition import LowResolution, SemanticMap
from ldm_jax.models.text_condition import BertText, ClipText, TwoClipText

TEXTS = (ClipText, TwoClipText, BertText)
Home = tuple[str, str]  # (a part of the file, its form: "hf", "openclip", "x_transformers", "ldmbert", "class", "rescaler")


def flattened(conditioner, ours: str = "") -> Iterator[tuple[str, object]]:
    """(the path of its parameters, a conditioner that is not several) one after the other."""
    if isinstance(conditioner, Several):
        for i, part in enumerate(conditioner.parts):
            yield from flattened(part, f"{ours}parts_{i}/")
    else:
        yield ours, conditioner


def conditioner_places(conditioner, form: str, homes: tuple[Home, ...]) -> tuple[Place, ...]:
    """Every parameter of a conditioner and the published tensor that holds it.

    Args:
      form: of the network's part, "compvis" or "diffusers".
      homes: of the encoders, tables and mappers, in the order in which the conditioner has them.

    Raises:
      UserError: more or fewer homes than the conditioner needs.
    """
    places, left = [], list(homes)

    def home() -> Home:
        if not left:
            raise UserError("this model is told by more encoders than the file has")
        return left.pop(0)

    for ours, part in flattened(conditioner):
        if isinstance(part, TEXTS):
            for name, encoder in part.encoders().items():
                theirs, kind = home()
                found = bert_places(encoder, kind) if isinstance(encoder, BertTextEncoder) else clip_text_places(encoder, kind)
                places += prefixed(found, f"{ours}{name}/", f"{theirs}/")
        elif isinstance(part, ClassConditioner) and part.into == "vector":
            places.append(Place(f"{ours}embedding", (f"network/{LABEL_TABLE[form]}",)))
        elif isinstance(part, ClassConditioner):
            places += prefixed(class_places(part), ours, f"{home()[0]}/")
        elif isinstance(part, SemanticMap):
            places += prefixed(linear("channel_mapper", "channel_mapper", POINTWISE, bias=False), ours, f"{home()[0]}/")
        elif isinstance(part, LowResolution) and part.levels:
            places.append(Place(f"{ours}embedding", (f"network/{LABEL_TABLE[form]}",)))
    if left:
        raise UserError(f"the file has encoders that this model is not told by: {', '.join(theirs for theirs, _ in left)}")
    return tuple(places)


def compvis_homes(conditioner) -> tuple[Home, ...]:
    """(prefix, form) of a conditioner's encoders, tables and mappers in a single file, in their order.

    Raises:
      UserError: more than one that has the prefix of all.
    """
    homes = []
    for _, part in flattened(conditioner):
        if isinstance(part, TwoClipText):
            homes += [(f"{EMBEDDERS}0.transformer.", "hf"), (f"{EMBEDDERS}1.model.", "openclip")]
        elif isinstance(part, ClipText) and part.vector == "pooled":
            homes.append((f"{EMBEDDERS}0.model.", "openclip"))
        elif isinstance(part, ClipText) and part.activation == "gelu":
            homes.append((f"{CONDITIONER}model.", "openclip"))
        elif isinstance(part, ClipText | BertText):
            homes.append((f"{CONDITIONER}transformer.", "x_transformers" if isinstance(part, BertText) else "hf"))
        elif isinstance(part, SemanticMap):
            homes.append((CONDITIONER, "rescaler"))
        elif isinstance(part, ClassConditioner) and part.into == "tokens":
            homes.append((CONDITIONER, "class"))
    if sum(prefix.startswith(CONDITIONER) for prefix, _ in homes) > 1:
        raise UserError("conditioner: the CompVis layout has one cond_stage_model, and this model is told by several")
    return tuple(homes)


def numbered(homes: tuple[Home, ...]) -> tuple[tuple[Home, ...], dict[str, str]]:
    """The parts of a single file that (prefix, form) of its encoders are: ((part, form) of each, {part: prefix})."""
    parts = [f"encoder_{i}" for i in range(len(homes))]
    return tuple((part, form) for part, (_, form) in zip(parts, homes)), {part: prefix for part, (prefix, _) in zip(parts, homes)}


def projection_of(conditioner) -> str:
    """How the U-Net of a model stores its transformers' proj_in and proj_out: "linear" beside OpenCLIP's text encoders (SD 2, SDXL),
    else "conv" (LDM, SD 1).
    """
    open_clip = any(isinstance(part, TwoClipText) or isinstance(part, ClipText) and part.activation == "gelu"
                    for _, part in flattened(conditioner))
    return "linear" if open_clip else "conv"
