"""The tokenizer that needs no files: a text is its UTF-8 bytes."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from ldm_jax.core.errors import UserError

BOS, EOS, PAD, VOCABULARY = 256, 257, 258, 259


@dataclasses.dataclass(frozen=True)
class ByteTokenizer:
    """Ids 0..255 are bytes; then the marks that begin a text, end it and fill the window. length: of a window, with bos and eos."""

    length: int = 77
    bos: int = BOS
    eos: int = EOS
    pad: int = PAD
    kind: ClassVar[str] = "bytes"
    vocabulary: ClassVar[int] = VOCABULARY
    digest: ClassVar[str] = "utf-8"

    def ids(self, text: str) -> list[int]:
        """The bytes of a text of any length, without bos and eos. Raises UserError: a text that has no UTF-8 (half a surrogate pair)."""
        try:
            return list(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise UserError(f"prompt {ascii(text)[:60]}: no text at character {error.start}; write it as UTF-8") from None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; a character of which bytes are missing is shown as one that is unknown."""
        return bytes(int(i) for i in ids if i < BOS).decode("utf-8", "replace")
