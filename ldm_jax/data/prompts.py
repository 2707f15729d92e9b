"""Prompts: weights in brackets, and texts as windows of token ids.

The brackets are those of the web UI of Automatic1111: `(word)` counts 1.1 times, `((word))` 1.21 times, `(word:1.3)` 1.3 times,
`[word]` 1 / 1.1 times; a backslash before a bracket makes it a letter.
"""

import re
from collections.abc import Sequence

import numpy as np

from ldm_jax.core.errors import UserError

STRESS = 1.1
PIECE = re.compile(r"\\[()\[\]\\]|\\|[(\[\])]|:\s*([+-]?[.\d]+)\s*\)|[^\\()\[\]:]+|:")
WINDOWS = ("one", "many")


def spans(prompt: str) -> list[tuple[str, float]]:
    """[(text, weight)] of a prompt with brackets, neighbours of one weight joined; a bracket never closed holds to the end.

    Raises:
      UserError: a weight that is not a number, or too large.
    """
    texts, weights, opened = [], [], {"(": [], "[": []}

    def stress(start: int, factor: float) -> None:
        weights[start:] = [weight * factor for weight in weights[start:]]

    for piece in PIECE.finditer(prompt):
        text, told = piece.group(0), piece.group(1)
        if text in opened:
            opened[text].append(len(texts))
        elif told is not None and opened["("]:
            stress(opened["("].pop(), _number(told, prompt))
        elif text == ")" and opened["("]:
            stress(opened["("].pop(), STRESS)
        elif text == "]" and opened["["]:
            stress(opened["["].pop(), 1 / STRESS)
        else:
            texts.append(text[1:] if text[0] == "\\" and len(text) > 1 else text)
            weights.append(1.0)
    for bracket, factor in (("(", STRESS), ("[", 1 / STRESS)):
        for start in opened[bracket]:
            stress(start, factor)
    joined: list[tuple[str, float]] = []
    for text, weight in zip(texts, weights):
        if not abs(weight) < 1e6:
            raise UserError(f"prompt {_short(prompt)}: a weight of {weight:g} for {text.strip()!r}; expected numbers around 1")
        if joined and joined[-1][1] == weight:
            joined[-1] = (joined[-1][0] + text, weight)
        else:
            joined.append((text, weight))
    return joined


def encode_prompts(tokenizer, prompts: Sequence[str], windows: str = "one",
                   weighted: bool = True) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Texts as windows of ids with their weights.

    Args:
      tokenizer: with ids(text), decode(ids), bos, eos, pad, length (see tokenizers.py).
      windows: "one", where a text longer than the window loses its end; "many", where it goes on in further windows. All
        texts get the same number of windows; those beyond a text's end are empty.
      weighted: whether brackets are weights. Off, every text is taken letter by letter (captions).

    Returns:
      (ids int32 [B, n, L], weights float32 [B, n L], the text that each prompt lost, "" for none).

    Raises:
      UserError: no prompts, a prompt that is not text, a bad weight, an unknown `windows`.
    """
    if windows not in WINDOWS:
        raise UserError(f"windows={windows!r}: expected one of {', '.join(WINDOWS)}")
    if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise UserError(f"prompts: expected a list of texts, got {_short(str(prompts)) if prompts else 'none'}")
    room, texts, lost = tokenizer.length - 2, [], []
    for prompt in prompts:
        parts = spans(prompt) if weighted else [(prompt, 1.0)]
        ids = [(token, weight) for text, weight in parts for token in tokenizer.ids(text)]
        lost.append(tokenizer.decode([token for token, _ in ids[room:]]) if windows == "one" else "")
        texts.append([ids[i: i + room] for i in range(0, len(ids) if windows == "many" else 1, room)] or [[]])
    number = max(map(len, texts))
    ids = np.full((len(texts), number, tokenizer.length), tokenizer.pad, np.int32)
    weights = np.ones(ids.shape, np.float32)
    ids[:, :, 0], ids[:, :, 1] = tokenizer.bos, tokenizer.eos
    for row, text in enumerate(texts):
        for k, window in enumerate(text):
            end = len(window) + 1
            ids[row, k, 1:end] = [token for token, _ in window]
            ids[row, k, end] = tokenizer.eos
            weights[row, k, 1:end] = [weight for _, weight in window]
    return ids, weights.reshape(len(texts), -1), lost


def _number(told: str, prompt: str) -> float:
    try:
        return float(told)
    except ValueError:
        raise UserError(f"prompt {_short(prompt)}: weight {told!r} is not a number; write (word:1.2), or \\( for a bracket") from None


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
