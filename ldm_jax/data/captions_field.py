"""Field maker `captions`: the caption of a record as token ids."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ldm_jax.core.choose import choose
from ldm_jax.core.errors import UserError
from ldm_jax.data.prompts import encode_prompts
from ldm_jax.data.tokenizers import TOKENIZERS


@dataclasses.dataclass(frozen=True)
class Captions:
    """Gives `field` int32 [L]: bos, the caption's ids, eos, padding. A caption longer than the window loses its end.

    Fields: what fixes the ids, for the fingerprint. opened: the tokenizer, with the window and the padding of the model.
    """

    field: str
    tokenizer: str
    digest: str
    length: int
    pad: int
    opened: dataclasses.InitVar[Any]
    version: ClassVar[int] = 1

    def __post_init__(self, opened):
        object.__setattr__(self, "_opened", opened)

    def describe(self) -> dict:
        """What fixes the ids."""
        return {"maker": type(self).__name__, "version": self.version} | dataclasses.asdict(self)

    @property
    def gives(self) -> tuple[str, ...]:
        return (self.field,)

    def __call__(self, record: Mapping, rng=None) -> dict[str, np.ndarray]:
        """Raises UserError: a record without a caption, or with one that is no text."""
        caption = record.get("caption")
        if not isinstance(caption, str):
            raise UserError("caption: this record has none; the conditioner reads text, so that each needs one (for a folder of images, "
                            "config.data.source.captions names the file)")
        return {self.field: encode_prompts(self._opened, [caption], weighted=False)[0][0, 0]}


def captions(tokenizer: Mapping, spec: Any = None, opened: Any = None, field: str = "tokens") -> Captions:
    """The maker of the ids that a text encoder reads.

    Args:
      tokenizer: a section of TOKENIZERS.
      spec: of the encoder that reads them, with bos, eos, pad, vocabulary and length.
      opened: the tokenizer, where it is open already, as a run keeps it.
      field: of a batch, "tokens_2" for a second encoder.

    Raises:
      UserError: a bad section, or another vocabulary than the encoder's.
    """
    if spec is None:
        raise UserError(f"the conditioner reads no text of the name {field}; config.conditioner.name='bert_text' does, or 'clip_text'")
    made = fitted(choose(TOKENIZERS, tokenizer, "tokenizer", length=spec.length) if opened is None else opened, spec)
    return Captions(field, made.kind, made.digest, made.length, made.pad, made)


def fitted(tokenizer, spec, where=""):
    """The tokenizer with the window and the padding of an encoder's spec: two encoders may share a vocabulary and fill up otherwise.

    Raises:
      UserError: other marks, or more ids than the encoder has.
    """
    found, wanted = ((x.bos, x.eos, x.vocabulary) for x in (tokenizer, spec))
    strange = tokenizer.kind == "bytes" and spec.pad != tokenizer.pad  # a letter cannot be the padding
    if found[:2] != wanted[:2] or found[2] > wanted[2] or strange:
        mend = f"bos={found[0]}, eos={found[1]}, pad={tokenizer.pad}, vocabulary={found[2]}"
        raise UserError(f"tokenizer {(str(where) or tokenizer.kind)!r}: begin, end and size of its vocabulary are {found}, the text "
                        f"encoder's {wanted} (pad {spec.pad}); is it this model's? A config writes {mend} into its conditioner")
    return dataclasses.replace(tokenizer, pad=spec.pad, length=spec.length)


def first_captions(source, number: int) -> list[str]:
    """The captions of the first `number` records of a source, or of all that it has.

    Raises:
      UserError: a record without one.
    """
    read = getattr(source, "caption", None) or (lambda i: source[i].get("caption"))
    found = [read(i) for i in range(min(number, len(source)))]
    if not all(isinstance(caption, str) for caption in found):
        raise UserError(f"{source.name} has no captions; text needs them (for a folder of images, config.data.source.captions names the "
                        "file)")
    return found
