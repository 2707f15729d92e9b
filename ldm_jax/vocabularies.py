"""The tokenizers of a run: opened as config.data.fields says, kept in the run's folder, found there and in bundles again.

A run with text has folders `tokenizer` and, with two encoders, `tokenizer_2`: the vocabulary files, and kept.json with their kind and
the digest of what they say. A tokenizer of bytes needs no folder: the config names it.
"""

import json
import pathlib
import shutil
from collections.abc import Mapping

from ldm_jax.checkpoint.digests import whole_folder
from ldm_jax.core.choose import choose
from ldm_jax.core.errors import UserError
from ldm_jax.data.byte_tokenizer import ByteTokenizer
from ldm_jax.data.captions_field import first_captions
from ldm_jax.data.tokenizers import MARKS, TOKENIZERS, Tokenizer, load_tokenizer
from ldm_jax.train.report import say

FOLDERS = {"tokens": "tokenizer", "tokens_2": "tokenizer_2"}  # by the field of the ids
FILES = ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.json", "special_tokens_map.json", "tokenizer_config.json")
KEPT = "kept.json"
LOOKED_AT = 256  # captions, for a window that is too short


def sections_of(config: Mapping) -> dict[str, Mapping]:
    """{field: its tokenizer's section}, of a config's makers of captions."""
    fields = config["data"].get("fields", {})
    fields = fields if isinstance(fields, Mapping) else {}
    found = {field: section["tokenizer"] for field, section in fields.items()
             if isinstance(section, Mapping) and section.get("name") == "captions" and "tokenizer" in section}
    return {field: found[field] for field in FOLDERS if field in found}


def open_tokenizers(config: Mapping, source=None, run=None) -> dict[str, Tokenizer | ByteTokenizer]:
    """The tokenizers of a config by field; of a run that has begun, the ones that it keeps.

    Args:
      source: the training split, whose captions a trained one is made of.
      run: the folder of a run that has begun, or None.

    Raises:
      UserError: a bad section, a folder without a tokenizer; a run that has lost its own.
    """
    opened = {}
    for field, section in sections_of(config).items():
        where = f"config.data.fields.{field}.tokenizer"
        name = section.get("name") if isinstance(section, Mapping) else None
        if run is not None and name in ("folder", "trained"):
            folder = pathlib.Path(run) / FOLDERS[field]
            if not (folder / KEPT).is_file():
                raise UserError(f"{where}: {folder} is gone, where this run keeps its tokenizer: put it back, or start another workdir")
            opened[field] = open_kept(folder)
        else:
            captions = None if source is None else lambda number: first_captions(source, number)
            opened[field] = choose(TOKENIZERS, section, where, captions=captions, length=77)
    return opened


def keep(config: Mapping, opened: Mapping, run) -> None:
    """Writes the tokenizers of a new run into its folder, each whole or not at all; what an earlier start left there is replaced."""
    sections = sections_of(config)
    copied = {field: _files(section["folder"]) for field, section in sections.items() if section["name"] == "folder"}  # before any goes
    for field, section in sections.items():
        tokenizer, folder = opened[field], pathlib.Path(run) / FOLDERS[field]
        if field in copied and pathlib.Path(section["folder"]).resolve() == folder.resolve() and (folder / KEPT).is_file():
            continue  # it keeps itself
        if (folder / KEPT).is_file():
            shutil.rmtree(folder)
        if section["name"] == "bytes":
            continue
        with whole_folder(folder) as partial:
            if section["name"] == "trained":
                (partial / "vocab.txt").write_text("\n".join(tokenizer.words()) + "\n", "utf-8")
            else:
                for name, body in copied[field].items():
                    (partial / name).write_bytes(body)
            (partial / KEPT).write_text(json.dumps({"kind": tokenizer.kind, "digest": tokenizer.digest}) + "\n", "utf-8")


def _files(folder) -> dict[str, bytes]:
    """The vocabulary files of a folder, by name."""
    return {name: (pathlib.Path(folder) / name).read_bytes() for name in FILES if (pathlib.Path(folder) / name).is_file()}


def open_kept(folder) -> Tokenizer:
    """The tokenizer that a run or a bundle keeps in a folder.

    Raises:
      UserError: files that are damaged, missing, or no more what they were.
    """
    folder = pathlib.Path(folder)
    try:
        told = json.loads((folder / KEPT).read_text("utf-8"))
        kind, digest = told["kind"], told["digest"]
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(f"{folder}/{KEPT} is damaged: copy the folder again") from None
    if kind not in MARKS:
        raise UserError(f"{folder}/{KEPT}: kind={kind!r}: expected one of {', '.join(MARKS)}")
    tokenizer = load_tokenizer(folder, kind)
    if tokenizer.digest != digest:
        raise UserError(f"the tokenizer in {folder} has changed since it was kept (digest {tokenizer.digest}, was {digest}): put the old "
                        "files back")
    return tokenizer


def kept_in(config: Mapping, folder) -> tuple:
    """What a run or a bundle keeps: a folder for each text encoder, or the tokenizer itself where it needs none; () for what came
    without."""
    sections, found = sections_of(config), []
    for field, name in FOLDERS.items():
        if isinstance(sections.get(field), Mapping) and sections[field].get("name") == "bytes":
            found.append(ByteTokenizer())
        elif (pathlib.Path(str(folder)) / name).is_dir():
            found.append(pathlib.Path(str(folder)) / name)
    return tuple(found)


def say_cut(makers: Mapping, opened: Mapping, source) -> None:
    """Says, once, how many captions are longer than the window of each text encoder, of the first ones."""
    texts = first_captions(source, LOOKED_AT) if opened and hasattr(source, "caption") else ()
    for field, tokenizer in opened.items() if texts else ():
        lengths = [len(tokenizer.ids(text)) + 2 for text in texts]
        window = makers[field].length
        cut = sum(length > window for length in lengths)
        if cut:
            say(f"{field}: {cut} of the first {len(texts)} captions are longer than the window of {window} ids and lose their end; "
                f"length={max(lengths)} in the conditioner would hold the longest of them")
