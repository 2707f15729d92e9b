"""From what a user says of the samples to a Condition: the fields that the model's conditioner reads, checked, and its null."""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.core.choose import nearest
from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import key_for, normal_for
from ldm_jax.data.prompts import encode_prompts
from ldm_jax.diffusion.guidance import Guided
from ldm_jax.diffusion.sample import image_keys
from ldm_jax.layouts import SAID_OF_BOXES, classes_of_boxes, layout_tokens
from ldm_jax.models.several_condition import joined
from ldm_jax.ops.images import from_uint8
from ldm_jax.sizes import latent_shape
from ldm_jax.tokenized import ids_of, skipping
from ldm_jax.train.report import say

NEGATIVE = "negative_"
REFUSED = "refused"  # as long_prompts: a text that would lose its end is an error, and not told alone
PART = 16  # examples whose condition is made at a time, which may have images to encode
NAMES = {"label": "labels", "tokens": "prompts", "tokens_2": "prompts", "token_weights": "prompts"}  # field -> what a user calls it
WHOLE = {"label", "tokens", "tokens_2", "boxes_tokens", "noise_level", "map"}  # fields of whole numbers
DRAWN = {"image", "mask", "depth", "map", "low_res"}  # fields that say the images' size
PICTURES = {"image", "low_res"}  # fields that are pictures: uint8, or float in [-1, 1]
BESIDE = {"prompts": ("long_prompts", "clip_skip"), "low_res": ("noise_seeds",), "boxes_tokens": SAID_OF_BOXES}  # what says more of a field
FLAGS = {"labels": "--labels", "prompts": "--prompt", "map": "--map", "boxes_tokens": "--boxes", "image": "--init_image", "mask": "--mask",
         "depth": "--depth_image", "low_res": "--low_res", "noise_level": "--noise_level",
         "embeddings": "--neighbours_of_prompt, --neighbours_of_image or --variation_of"}
SIZES = {6: ("size", "original_size", "crop", "target_size"), 5: ("size", "original_size", "crop", "aesthetic")}  # by how many numbers
AESTHETIC = {"aesthetic": 6.0, "negative_aesthetic": 2.5}  # of the published SDXL refiner


def told(model, given: Mapping, number: int | None = None) -> Guided:
    """The condition of N examples and its null (None where nothing is ever dropped, and nothing negative was said).

    Args:
      model: a pipeline.Model of task "diffusion".
      given: by the names that a user gives them; None is not given. A name with "negative_" before it says what is told in the
        null's place.
      number: of examples, where nothing given says it.

    Raises:
      UserError: what is missing, of another number, out of range, or not read by this model, by its name.
    """
    given = {name: value for name, value in given.items() if value is not None}
    conditioner = model.experiment.conditioner
    size = given.get("size") if "sizes" in conditioner.fields or "image" not in conditioner.tells else given.pop("size", None)
    _check_names(conditioner, given)
    if "sizes" in conditioner.fields and "sizes" not in given:
        given |= _sizes(model, given)
    if given.get("clip_skip"):
        conditioner = skipping(conditioner, given["clip_skip"])
    return told_fields(model, _of_one_number(_fields(model, given), number), number, conditioner, size)


def told_fields(model, fields: Mapping, number: int | None = None, conditioner=None, size=None) -> Guided:
    """The condition of N examples and its null, from the fields that the conditioner reads, as a batch holds them.

    Args:
      model: a pipeline.Model of task "diffusion".
      fields: [N, ...] each, by the names of batch fields; "negative_" before one tells it in the null's place. Others are passed over.
      number: N, where no field says it.
      conditioner: in the place of the model's own.
      size: (width, height) of the images in pixels, where an image that is part of the condition is left out; None is as trained.

    Raises:
      UserError: as `told`.
    """
    conditioner = conditioner or model.experiment.conditioner
    read = {*conditioner.fields, *_optional(conditioner)}
    fields = {name: np.asarray(value) for name, value in fields.items() if name.removeprefix(NEGATIVE) in read}
    count = next((len(value) for value in fields.values()), number or 1)
    _check_sizes(conditioner, fields, model.experiment.autoencoder.factor)
    said = {name.removeprefix(NEGATIVE): fields.pop(name) for name in list(fields) if name.startswith(NEGATIVE)}
    negative = fields | said
    of = (conditioner, model.first_stage, model.params["conditioner"], model.first_params)
    how = (_untold(conditioner, fields, set(fields)), _untold(conditioner, negative, set(said), checked=bool(said)), frozenset(said))
    blank = _blank(conditioner, model, size)
    fields, negative = ({name: np.broadcast_to(x, (count, *x.shape[1:])) for name, x in blank.items()} | x for x in (fields, negative))
    parts = [[_cast(x, low) for x in (fields, negative)] for low in range(0, count, PART)]
    made = [_conditions(*of, *part, min(PART, count - i * PART), how) for i, part in enumerate(parts)]
    return jax.tree.map(lambda *leaves: leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves), *made)


def _optional(conditioner) -> tuple[str, ...]:
    parts = getattr(conditioner, "parts", (conditioner,))
    return tuple(name for part in parts for name in getattr(part, "optional", ()))


def _cast(fields: Mapping, low: int) -> dict:
    return {name: value[low:low + PART].astype(np.int32 if name in WHOLE else np.float32) for name, value in fields.items()}


def reads(conditioner) -> dict[str, tuple[str, ...]]:
    """What a user may say to a model, each with what may be said beside it."""
    names = dict.fromkeys(NAMES.get(name, name) for name in conditioner.fields)
    return {name: SIZES.get(_sizes_count(conditioner), ()) if name == "sizes" else BESIDE.get(name, ()) for name in names}


def _sizes_count(conditioner) -> int:
    return next(part.count for part in getattr(conditioner, "parts", (conditioner,)) if "sizes" in part.fields)


def _check_names(conditioner, given: Mapping) -> None:
    main = reads(conditioner)
    known = [name for field, beside in main.items() for name in (field, *beside)]
    turned = {NEGATIVE + name for name in known if name in main or name == "aesthetic"}
    for name in given:
        if name not in known and name not in turned:
            if name == "labels":
                raise UserError("labels: this model was trained without labels")
            raise UserError(f"{name}: this model does not read it; it reads {nearest(name, known) if known else 'nothing'}")


def _fields(model, given: Mapping) -> dict[str, np.ndarray]:
    """Fields by name, each of 1 or N examples; those of the null with "negative_" before."""
    fields = {}
    for name in model.experiment.conditioner.fields:
        for before in ("", NEGATIVE):
            value = given.get(before + NAMES.get(name, name))
            if value is not None and NAMES.get(name) != "prompts":
                fields[before + name] = _array(name, value)
    if "boxes" in given or "box_labels" in given:
        fields["boxes_tokens"] = layout_tokens(model.experiment.conditioner, given, classes_of_boxes(model))
    if "prompts" in given or NEGATIVE + "prompts" in given:
        fields |= _texts(model, given)
    for name in PICTURES & fields.keys():
        if fields[name].ndim == 4 and fields[name].shape[3] != model.experiment.facts.channels:
            raise UserError(f"{name}: expected pictures of {model.experiment.facts.channels} channels, got {list(fields[name].shape)}")
    if "low_res_noise" in model.experiment.conditioner.fields and "low_res" in fields and "low_res_noise" not in fields:
        seeds = given.get("noise_seeds", range(len(fields["low_res"])))
        keys = jax.vmap(lambda key: key_for(key, "low_res"))(image_keys(seeds))
        fields["low_res_noise"] = np.asarray(normal_for(keys, fields["low_res"].shape[1:]))
    return fields


def _check_sizes(conditioner, fields: Mapping, factor: int) -> None:
    """Raises UserError: pictures for images of several sizes; factor: image pixels a latent, on a side."""
    sizes = {}
    for part in getattr(conditioner, "parts", (conditioner,)):
        for name in DRAWN.intersection(part.fields, fields):
            step = 1 if name == "low_res" else 2**part.halvings if name == "map" else factor
            sizes[name] = "x".join(str(side // step * factor) for side in fields[name].shape[2:0:-1])
    if len(set(sizes.values())) > 1:
        raise UserError(", ".join(f"{name} for {size}" for name, size in sorted(sizes.items())) + ": the pictures of a call are for images "
                        "of one size")


def _array(name: str, value) -> np.ndarray:
    """On the host; uint8 pictures become [-1, 1]."""
    value = np.asarray(value)
    return from_uint8(value) if name in PICTURES and value.dtype == np.uint8 else value


def _texts(model, given: Mapping) -> dict[str, np.ndarray]:
    """The fields of the prompts and of the negative ones, of as many windows; what a prompt lost is told on stderr."""
    sides = {before: _texts_of(before + "prompts", given[before + "prompts"]) for before in ("", NEGATIVE)
             if before + "prompts" in given}
    together = [text for texts in sides.values() for text in texts]
    fields, start = {}, 0
    how = given.get("long_prompts", "one")
    ids, weights = ids_of(model, lambda tokenizer: encode_prompts(tokenizer, together, "one" if how == REFUSED else how))
    for before, texts in sides.items():
        rows = slice(start, start + len(texts))
        fields |= {before + name: found[rows] for name, found in ids.items()} | {before + "token_weights": weights[0][rows]}
        start += len(texts)
    for text, lost in zip(together, weights[1]):
        if lost and how == REFUSED:
            raise UserError(f"prompt {text[:40]!r}: too long for the model's text encoder, this would be lost: {lost!r}; shorten it, or "
                            "take --long_prompts=many, which reads it too, or --long_prompts=one, which leaves it out")
        if lost:
            say(f"prompt {text[:40]!r}: too long for the model's text encoder, this was left out: {lost!r}; long_prompts=many reads it too")
    return fields


def _texts_of(name: str, prompts) -> Sequence[str]:
    if isinstance(prompts, str) or not all(isinstance(text, str) for text in prompts) or not len(prompts):
        raise UserError(f"{name}={prompts!r:.60}: expected a list of texts, as {name}=['a red cube']")
    return list(prompts)


def _sizes(model, given: Mapping) -> dict[str, np.ndarray]:
    """{"sizes": [1 or N, count]} of what SIZES say, in the published order, and the null's where it is told another rating."""
    count = _sizes_count(model.experiment.conditioner)
    if count not in SIZES:
        return {}  # another model's numbers are said as they are, as `sizes`
    side = model.experiment.facts.resolution
    target = given.get("target_size", given.get("size", (side, side)))
    pairs = [_pairs("original_size", given.get("original_size", target)), _pairs("crop", given.get("crop", (0, 0)))]
    if count == 6:
        return {"sizes": _side_by_side([*pairs, _pairs("target_size", target)])}
    ratings = {name: np.asarray(given.get(name, default), np.float32).reshape(-1, 1) for name, default in AESTHETIC.items()}
    return {"sizes": _side_by_side([*pairs, ratings["aesthetic"]]),
            "negative_sizes": _side_by_side([*pairs, ratings["negative_aesthetic"]])}


def _pairs(name: str, value) -> np.ndarray:
    """(width, height), or one for each image, as [N, 2] of (height, width)."""
    pairs = np.asarray(value, np.float32)
    if pairs.shape[-1:] != (2,) or pairs.ndim > 2:
        raise UserError(f"{name}={value!r:.60}: expected (width, height), or for a crop (left, top), of all images or of each")
    return pairs.reshape(-1, 2)[:, ::-1]


def _side_by_side(columns: list[np.ndarray]) -> np.ndarray:
    count = max(map(len, columns))
    return np.concatenate([np.broadcast_to(c, (count, c.shape[1])) for c in columns], axis=1)


def _untold(conditioner, fields: Mapping, said: set, checked: bool = True):
    """Checks the fields of each part that is told, and says which is not: for a part of rate above 0, True where no field of it was

    said. A tuple for a conditioner of parts.
    """
    parts = getattr(conditioner, "parts", None)
    if parts is not None:
        return tuple(_untold(part, fields, said, checked) for part in parts)
    own = (*conditioner.fields, *getattr(conditioner, "optional", ()))
    if conditioner.drop and not said.intersection(own):
        return True
    missing = list(dict.fromkeys(NAMES.get(name, name) for name in conditioner.fields if name not in fields))
    if missing:
        flags = ", ".join(FLAGS[name] for name in missing if name in FLAGS)
        raise UserError(f"{', '.join(missing)}: this model must be told {'it' if len(missing) == 1 else 'them'}; give "
                        f"{', '.join(f'{name}=' for name in missing)} to model.condition" + (f", or {flags} to sample.py" if flags else ""))
    if checked:
        conditioner.check({name: fields[name] for name in own if name in fields})
    return False


def _of_one_number(fields: Mapping, number: int | None) -> dict:
    """Arrays of 1 or N examples as arrays of N."""
    sizes = {name: len(value) if value.ndim else 0 for name, value in fields.items()}
    count = max([*sizes.values(), number or 1])
    wrong = [f"{NAMES.get(name, name)} of {size}" for name, size in sizes.items() if size not in (1, count)]
    if wrong:
        raise UserError(f"{', '.join(wrong)}, and {count} examples: expected one for each, or one for all, as a list")
    return {name: value if len(value) == count else np.broadcast_to(value, (count, *value.shape[1:])) for name, value in fields.items()}


@functools.partial(jax.jit, static_argnums=(0, 1, 6, 7))
def _conditions(conditioner, first_stage, params, first_params, fields: Mapping, negative: Mapping, count: int, how: tuple) -> Guided:
    """how: (what of the given is untold, what of the null, the fields that were said of it), see `_untold`. Both are made together,
    so that images are encoded once."""
    untold, unsaid, said = how
    encode, variables = functools.partial(first_stage.encode, first_params), {"params": params}

    def made(fields, untold):
        return conditioner.apply(variables, count, fields, encode, untold, method=_made)

    given, null = made(fields, untold), made(negative, unsaid) if said or conditioner.drop else None
    if not isinstance(untold, tuple):
        return Guided(given, null)
    weighed = [part.drop or not said.isdisjoint(part.fields) for part in conditioner.parts]
    each = [Guided(one, null[i] if of_null else None) for i, (one, of_null) in enumerate(zip(given, weighed))]
    return Guided(joined(given), joined(null) if null else None, tuple(each) if sum(map(bool, weighed)) > 1 else None)


def _made(conditioner, count: int, fields: Mapping, encode, untold):
    """The Condition; of a conditioner of parts a list of theirs."""
    if isinstance(untold, tuple):
        made = [_made(part, count, fields, encode, of_part) for part, of_part in zip(conditioner.parts, untold)]
        return [joined(part) if isinstance(part, list) else part for part in made]
    return conditioner.null(count, fields, encode) if untold else conditioner(fields, None, encode)


def _blank(conditioner, model, size) -> dict[str, np.ndarray]:
    """Fields [1, ...] of zeros for those parts that tell an image and may be left out: what says their size, as their null needs it."""
    parts = getattr(conditioner, "parts", None)
    if parts is not None:
        return {name: value for part in parts for name, value in _blank(part, model, size).items()}
    if not conditioner.drop or "image" not in conditioner.tells:
        return {}
    h, w, c = latent_shape(model.experiment, size if isinstance(size, tuple) else None)
    f = model.experiment.autoencoder.factor
    return {name: np.asarray(x) for name, x in conditioner.example(1, (f * h, f * w, model.experiment.facts.channels), (h, w, c)).items()}
