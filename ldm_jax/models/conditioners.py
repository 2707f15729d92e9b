"""The conditioners by name."""

from ldm_jax.models.condition import ClassConditioner, Unconditional
from ldm_jax.models.given_tokens import Tokens
from ldm_jax.models.text_condition import BertText, ClipText, TwoClipText

CONDITIONERS = {"none": Unconditional, "class": ClassConditioner, "clip_text": ClipText, "two_clip_text": TwoClipText,
                "bert_text": BertText, "tokens": Tokens}
