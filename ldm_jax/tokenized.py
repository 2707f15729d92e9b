"""The tokenizers that a model's text encoders were trained with: opened, compared with them, and used."""

import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.data.byte_tokenizer import ByteTokenizer
from ldm_jax.data.captions_field import fitted
from ldm_jax.data.tokenizers import Tokenizer, load_tokenizer
from ldm_jax.models.bert_text import BertSpec
from ldm_jax.vocabularies import KEPT, open_kept

TEXTS = ("tokens", "tokens_2")


def specs_of(conditioner) -> dict:
    """The text encoders' specs by the field of their ids, in the order of the tokenizers."""
    parts = getattr(conditioner, "parts", (conditioner,))
    return {name: spec for part in parts for name, spec in getattr(part, "specs", {}).items() if name in TEXTS}


def skipping(conditioner, layers: int):
    """The conditioner with the tokens of its CLIP encoders taken `layers` layers earlier than the model has them (clip-skip).

    Raises:
      UserError: no CLIP text encoder, or more layers than one has.
    """
    if not isinstance(layers, int) or isinstance(layers, bool) or layers < 0:
        raise UserError(f"clip_skip={layers!r}: expected a number of layers, 0 or above")
    parts = getattr(conditioner, "parts", (conditioner,))
    if not any(hasattr(part, "skipping") for part in parts):
        raise UserError(f"clip_skip={layers}: this model has no CLIP text encoder")
    try:
        earlier = tuple(part.skipping(layers) if hasattr(part, "skipping") else part for part in parts)
    except UserError as error:
        raise UserError(f"clip_skip={layers}: {error}") from None
    return conditioner.clone(parent=None, parts=earlier) if hasattr(conditioner, "parts") else earlier[0]


def open_tokenizers(conditioner, folders: Sequence) -> tuple[Tokenizer, ...]:
    """One tokenizer a text encoder, from as many folders, or from one for all of them; in a folder's place may stand a ByteTokenizer.

    Raises:
      UserError: a model without text, another number of folders, a folder without a tokenizer, or one of another model.
    """
    specs = specs_of(conditioner)
    if not specs:
        raise UserError("tokenizer: this model reads no text")
    if len(folders) not in (1, len(specs)):
        raise UserError(f"tokenizer: {len(folders)} folders for {len(specs)} text encoders; expected one for each, or one for all")
    folders = list(folders) * (len(specs) if len(folders) == 1 else 1)
    return tuple(_fitting(folder, spec) for folder, spec in zip(folders, specs.values()))


def _fitting(folder, spec) -> Tokenizer | ByteTokenizer:
    if isinstance(folder, ByteTokenizer):
        return fitted(folder, spec)
    if (pathlib.Path(folder) / KEPT).is_file():
        return fitted(open_kept(folder), spec, folder)
    return fitted(load_tokenizer(folder, "bert" if isinstance(spec, BertSpec) else "clip", spec.length), spec, folder)


def by_field(model) -> dict:
    """The tokenizers of a model by the field of their ids; {} where it came without."""
    return dict(zip(specs_of(model.experiment.conditioner), model.tokenizers))


def ids_of(model, encode: Callable) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, list[str]]]:
    """({field: ids} of encode(tokenizer) -> (ids, weights, lost) with each tokenizer of the model, the first one's (weights, lost)).

    Raises:
      UserError: the model came without a tokenizer.
    """
    specs = specs_of(model.experiment.conditioner)
    if len(model.tokenizers) != len(specs):
        raise UserError("prompts: this model came without its tokenizer; name a folder with its vocabulary, as "
                        "model.with_tokenizer(FOLDER) or --tokenizer=FOLDER")
    found = {name: encode(tokenizer) for name, tokenizer in zip(specs, model.tokenizers)}
    return {name: ids for name, (ids, _, _) in found.items()}, next((weights, lost) for _, weights, lost in found.values())
