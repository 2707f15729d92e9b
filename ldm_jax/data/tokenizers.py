"""Tokenizers of text, by name: of bytes, and of local vocabulary files. Nothing is ever fetched, and no code of a folder is run."""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

from ldm_jax.core.errors import UserError
from ldm_jax.data.byte_tokenizer import ByteTokenizer
from ldm_jax.data.trained_tokenizer import word_pieces

MARKS = {"clip": ("<|startoftext|>", "<|endoftext|>", "<|endoftext|>"), "bert": ("[CLS]", "[SEP]", "[PAD]")}  # begin, end, pad
FILES = {"clip": "vocab.json with merges.txt, or tokenizer.json", "bert": "vocab.txt, or tokenizer.json"}
LARGEST = 64 * 2**20  # bytes of a vocabulary file


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """bos, eos, pad: ids that begin a text, end it and fill the window; length: of a window, with bos and eos;
    vocabulary: number of ids.
    """

    kind: str
    bos: int
    eos: int
    pad: int
    length: int
    vocabulary: int
    backend: Any = dataclasses.field(repr=False, compare=False)

    def ids(self, text: str) -> list[int]:
        """The ids of a text of any length, without bos and eos."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; letter case and some spaces are not in them."""
        text = self.backend.decode([int(i) for i in ids], skip_special_tokens=True)
        return text.replace("</w>", " ").strip()

    def words(self) -> list[str]:
        """The vocabulary in the order of its ids."""
        known = self.backend.get_vocab()
        return sorted(known, key=known.get)

    @functools.cached_property
    def digest(self) -> str:
        """Of all that decides the ids of a text but the window: the words with their ids, and the merges."""
        model = json.loads(self.backend.to_str())["model"]
        told = [self.kind, self.bos, self.eos, sorted(self.backend.get_vocab().items()), model.get("merges")]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def load_tokenizer(folder: str | pathlib.Path, kind: str, length: int = 77) -> Tokenizer:
    """The tokenizer in a folder: "clip" (Stable Diffusion) or "bert" (LDM text-to-image, lower case).

    Reads vocab.json with merges.txt (clip), vocab.txt (bert), or tokenizer.json; and pad_token of special_tokens_map.json or
    tokenizer_config.json, where Stable Diffusion 2 and SDXL's second say "!". It only fills windows: a "!" in a text is the
    token that these models were trained with, and not padding, as diffusers has it (its issue 4153).

    Raises:
      UserError: an unknown kind, no folder, missing or damaged files, a vocabulary without its marks.
    """
    if kind not in MARKS:
        raise UserError(f"tokenizer kind {kind!r}: expected one of {', '.join(MARKS)}")
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise UserError(f"tokenizer {str(folder)!r}: no such folder; give one that holds {FILES[kind]}")
    told = _marks(folder, kind)
    backend = (_clip if kind == "clip" else _bert)(folder, told)
    backend.no_padding()  # a tokenizer.json may hold both, from its last use
    backend.no_truncation()
    known = backend.get_vocab()
    missing = [mark for mark in told if mark not in known]
    if missing:
        raise UserError(f"tokenizer {str(folder)!r}: its vocabulary lacks {', '.join(dict.fromkeys(missing))}; is it of kind {kind!r}?")
    return _of(backend, told, kind, length)


def _of(backend, marks: tuple[str, str, str], kind: str, length: int) -> Tokenizer:
    known = backend.get_vocab()
    bos, eos, pad = (known[mark] for mark in marks)
    return Tokenizer(kind, bos, eos, pad, length, max(known.values()) + 1, backend)


def bytes_tokenizer(length: int = 77) -> ByteTokenizer:
    """UTF-8 bytes; bos 256, eos 257, pad 258."""
    return ByteTokenizer(length)


def folder_tokenizer(folder: str, kind: Literal["", "clip", "bert"] = "", length: int = 77) -> Tokenizer:
    """The tokenizer of a folder; kind "" is found by its files.

    Raises:
      UserError: as of `load_tokenizer`.
    """
    if not folder:
        raise UserError(f"folder is empty: name one that holds {FILES['clip']} (CLIP), or {FILES['bert']} (BERT)")
    return load_tokenizer(folder, kind or kind_of(folder), length)


def kind_of(folder: str | pathlib.Path) -> str:
    """Which of MARKS the files of a folder are of; "clip" where nothing says."""
    folder = pathlib.Path(folder)
    if (folder / "vocab.txt").exists():
        return "bert"
    if not (folder / "vocab.json").exists() and (folder / "tokenizer.json").exists():
        model = _json(folder / "tokenizer.json").get("model")
        return "bert" if isinstance(model, dict) and model.get("type") == "WordPiece" else "clip"
    return "clip"


def trained_tokenizer(vocabulary: int = 256, records: int = 5000, captions: Callable[[int], Sequence[str]] | None = None,
                      length: int = 77) -> Tokenizer:
    """One made of the captions of the first `records` records of the training split (see trained_tokenizer.py), of kind "bert".

    Args:
      vocabulary: how many ids at most. captions: from a number to as many captions, or all there are.

    Raises:
      UserError: no captions are given, as where only the run that made it has it; numbers out of range.
    """
    if captions is None:
        raise UserError("a trained tokenizer is kept with the run that made it, in its folder tokenizer: load it from there")
    if records < 1:
        raise UserError(f"records={records}: expected 1 or more")
    return _of(_bert_backend(word_pieces(captions(records), vocabulary)), MARKS["bert"], "bert", length)


TOKENIZERS = {"bytes": bytes_tokenizer, "folder": folder_tokenizer, "trained": trained_tokenizer}


def _clip(folder: pathlib.Path, marks: tuple[str, str, str]):
    from transformers import CLIPTokenizer

    if not (folder / "vocab.json").exists() or not (folder / "merges.txt").exists():
        return _whole(folder, "clip")
    vocabulary = _json(folder / "vocab.json")
    ids = list(vocabulary.values())
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids) or sorted(ids) != list(range(len(ids))) or not ids:
        raise UserError(f"tokenizer {str(folder / 'vocab.json')!r}: expected every id from 0 up once")
    merges = []
    for number, line in enumerate(_text(folder / "merges.txt").split("\n"), 1):
        if line and not (number == 1 and line.startswith("#version")):
            pair = line.rstrip("\r").split(" ")
            if len(pair) != 2 or not set(pair) | {"".join(pair)} <= vocabulary.keys():
                raise UserError(f"tokenizer {str(folder / 'merges.txt')!r} line {number}: expected two tokens of vocab.json that make "
                                "a third")
            merges.append((pair[0], pair[1]))
    if marks[0] not in vocabulary or marks[1] not in vocabulary:
        raise UserError(f"tokenizer {str(folder)!r}: its vocabulary lacks {marks[0]} or {marks[1]}; is it of kind 'clip'?")
    return CLIPTokenizer(vocab=vocabulary, merges=merges).backend_tokenizer


def _bert(folder: pathlib.Path, marks: tuple[str, str, str]):
    if not (folder / "vocab.txt").exists():
        return _whole(folder, "bert")
    words = [line.rstrip("\r") for line in _text(folder / "vocab.txt").removesuffix("\n").split("\n")]
    if len(set(words)) != len(words):
        raise UserError(f"tokenizer {str(folder / 'vocab.txt')!r}: a word stands on two lines")
    if not {"[CLS]", "[SEP]", "[PAD]", "[UNK]"} <= set(words):
        raise UserError(f"tokenizer {str(folder)!r}: its vocabulary lacks [CLS], [SEP], [PAD] or [UNK]; is it of kind 'bert'?")
    return _bert_backend(words)


def _bert_backend(words: Sequence[str]):
    from transformers import BertTokenizer

    return BertTokenizer(vocab={word: i for i, word in enumerate(words)}, do_lower_case=True).backend_tokenizer


def _whole(folder: pathlib.Path, kind: str):
    """From tokenizer.json, which holds everything."""
    from tokenizers import Tokenizer as Backend

    path = folder / "tokenizer.json"
    if not path.exists():
        there = sorted(file.name for file in folder.iterdir())[:8]
        raise UserError(f"tokenizer {str(folder)!r}: expected {FILES[kind]}; found {', '.join(there) or 'nothing'}")
    whole = _json(path)
    try:
        if kind == "clip":  # a "!" that fills windows stands there as a mark
            whole["added_tokens"] = [token for token in whole["added_tokens"] if token["content"] in MARKS["clip"]]
        return Backend.from_str(json.dumps(whole))
    except Exception as error:  # the library raises bare Exceptions
        raise UserError(f"tokenizer {str(path)!r}: cannot be read ({type(error).__name__} {str(error)[:80]!r})") from None


def _marks(folder: pathlib.Path, kind: str) -> tuple[str, str, str]:
    bos, eos, pad = MARKS[kind]
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).exists():
            told = _json(folder / name).get("pad_token")
            told = told.get("content") if isinstance(told, dict) else told
            if isinstance(told, str) and told:
                return bos, eos, told
    return bos, eos, pad


def _json(path: pathlib.Path) -> dict:
    try:
        value = json.loads(_text(path))
    except ValueError as error:
        raise UserError(f"tokenizer {str(path)!r}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"tokenizer {str(path)!r}: expected a JSON object")
    return value


def _text(path: pathlib.Path) -> str:
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"tokenizer {str(path)!r}: larger than {LARGEST // 2**20} MB; that is no vocabulary")
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"tokenizer {str(path)!r}: not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise UserError(f"tokenizer {str(path)!r}: {error.strerror}") from None
