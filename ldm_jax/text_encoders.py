"""Text encoders of others, from local folders into the conditioner of a new run (config.text_encoders).

A folder is one component of transformers or diffusers, with config.json and weights: CLIPTextModel, CLIPTextModelWithProjection,
CLIPModel (its text half) or LDMBertModel. A conditioner with trained=False leaves the parameters as they were read.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.core.trees import count, paths
from ldm_jax.interop import mapped
from ldm_jax.interop.conditioner_names import flattened
from ldm_jax.interop.diffusers_texts import read_bert, read_clip
from ldm_jax.interop.folder_reader import INDEX, read_folder
from ldm_jax.interop.places import check, prefixed
from ldm_jax.interop.text_names import bert_places, clip_text_places
from ldm_jax.models.bert_text import BertTextEncoder
from ldm_jax.published import Leaf, Qualified
from ldm_jax.tokenized import TEXTS
from ldm_jax.train.report import say

IMAGES = ("vision_model.*", "visual_projection.*", "logit_scale")  # of a CLIPModel
COMPARED = ("width", "layers", "heads", "head_width", "activation", "vocabulary", "length")  # the rest is what the conditioner makes of it


def encoders_of(conditioner) -> Iterator[tuple[str, object]]:
    """(path of its parameters below "conditioner/", encoder) of each text encoder, in their order."""
    for ours, part in flattened(conditioner):
        if set(getattr(part, "specs", {})) & set(TEXTS):
            yield from ((f"{ours}{name}", encoder) for name, encoder in part.encoders().items())


def open_encoders(named: str, conditioner, lora=None) -> dict[str, Leaf]:
    """{path of a parameter of the model: its array, read when it is used} of the folders that a config names; {} for "".

    Args:
      named: a folder, or one for each text encoder of the conditioner, by commas.
      lora: what is trained in the place of parameters, or None.

    Raises:
      UserError: another number of folders, no text encoder in one, one of another architecture, damaged files.
    """
    if named and lora:
        raise UserError(f"{named}: a LoRA is trained on a base that brings its own text encoders; write ''")
    folders = [folder.strip() for folder in named.split(",")] if named else []
    encoders = list(encoders_of(conditioner)) if folders else []
    if len(folders) != len(encoders):
        what = "the conditioner reads no text" if not encoders else f"{len(folders)} folders for {len(encoders)} text encoders"
        raise UserError(f"{named}: {what}; expected a folder for each, by commas, or '' for new parameters")
    found = {}
    for folder, (path, encoder) in zip(folders, encoders):
        found |= {f"conditioner/{path}/{name}": leaf for name, leaf in _leaves(folder, encoder).items()}
    if found:
        say(f"text encoders from {named}: {len(found)} arrays, {count(found):,} parameters")
    return found


def _leaves(folder: str, encoder) -> dict[str, Leaf]:
    component = read_folder(folder).components.get("")
    if component is None:
        raise UserError(f"{folder}: a whole pipeline ({INDEX}); name the folder of its text encoder, as {folder}/text_encoder")
    bert = isinstance(encoder, BertTextEncoder)
    both = component.config.get("architectures") == ["CLIPModel"] and not bert
    try:
        told = read_bert(component.config) if bert else read_clip(_text_half(component.config) if both else component.config, {})
    except UserError as error:
        raise UserError(f"{folder}: {error}; config.conditioner reads by {'bert_text' if bert else 'clip_text'}") from None
    _compare(told, dataclasses.asdict(encoder.spec), folder)
    places = bert_places(encoder, "ldmbert") if bert else clip_text_places(encoder, "hf")
    ignorable = IMAGES if both else ()
    ignorable += ("to_logits.*",) if bert and not encoder.spec.logits else ()
    ignorable += ("text_projection.*",) if not bert and not encoder.spec.projection else ()
    shapes = dict(paths(jax.eval_shape(lambda: encoder.init(jax.random.key(0), np.zeros((1, 3), np.int32)))["params"]))
    check(places, {path: leaf.shape for path, leaf in shapes.items()}, mapped.shapes(component.tensors), folder, ignorable)
    tensors = Qualified({"text": component.tensors}, folder)
    return {place.ours: Leaf(place, tensors, shapes[place.ours].shape, shapes[place.ours].dtype)
            for place in prefixed(places, theirs="text/")}


def _text_half(config: Mapping) -> dict:
    """Of a CLIPModel."""
    return {**config.get("text_config", {}), "projection_dim": config.get("projection_dim", 512),
            "architectures": ["CLIPTextModelWithProjection"]}


def _compare(told: Mapping, spec: Mapping, where: str) -> None:
    keys = [key for key in COMPARED if key in told and told[key] != spec[key]]
    keys += ["projection"] * (spec.get("projection", 0) not in (0, told.get("projection", 0)))
    if keys:
        raise UserError(f"{where}: another encoder than the conditioner's, which has {_said(spec, keys)}; to take it write "
                        f"{_said(told, keys)} into config.conditioner")


def _said(values: Mapping, keys: list[str]) -> str:
    return ", ".join(f"{key}={values[key]!r}" for key in keys)
