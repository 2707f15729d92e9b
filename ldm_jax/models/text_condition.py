"""Conditioners of text: token ids in, tokens (and a vector) out.

Ids come as windows [B, n, L], each with its own beginning and end; the windows are encoded apart and stand one after the
other on the token axis. The null is the encoding of the empty text from ids that the conditioner knows, or zeros.
Where the fields hold what a frozen encoder said of the texts (text_states.py), that is taken.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.core.choose import fill
from ldm_jax.core.errors import UserError
from ldm_jax.core.types import Condition
from ldm_jax.models.bert_text import BertSpec, BertTextEncoder
from ldm_jax.models.prompt_weights import weighted
from ldm_jax.models.text_encoder import LAST_ID, ClipSpec, ClipTextEncoder
from ldm_jax.models.text_states import kept_states, number_of_windows, silenced, windows


class TextConditioner(nn.Module):
    """What the conditioners of text share. A subclass says `specs`, its encoders by the field of their ids, and `join`.

    Optional field "token_weights" [B, n L]: how much each token counts, see prompt_weights.py. `trained`: whether gradients reach
    the encoders; the published CLIP encoders were frozen. `untold`: what an example is told when it is told nothing, the
    empty text or zeros.
    """

    optional: ClassVar[tuple[str, ...]] = ("token_weights",)

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(self.specs)

    @property
    def tells(self) -> tuple[str, ...]:
        return ("tokens",)

    def __call__(self, fields: dict, drop=None, encode=None) -> Condition:
        """fields: ids int [B, n, L] or [B, L]; drop bool [B], True where an example is told nothing, or None."""
        weights, encoded = fields.get("token_weights"), []
        if weights is not None and drop is not None:
            weights = jnp.where(drop[:, None], 1.0, weights)
        for name, spec in self.specs.items():
            tokens, pooled = self._read(name, spec, fields, drop if self.untold == "empty" else None)
            encoded.append((tokens if weights is None else weighted(tokens, weights, spec.length), pooled))
        condition = self.join(encoded)
        if drop is not None and self.untold == "zeros":
            condition = jax.tree.map(lambda x: jnp.where(drop.reshape(-1, *[1] * (x.ndim - 1)), jnp.zeros_like(x), x), condition)
        return condition if self.trained else jax.lax.stop_gradient(condition)

    def _read(self, name: str, spec, fields: dict, drop) -> tuple[jax.Array, jax.Array]:
        """(tokens [B, n L, D], pooled [B, P]) of one encoder; of the empty text where drop [B] is True."""
        kept = kept_states(fields, name, self.trained)
        if kept is not None:
            number = kept[0].shape[1] // spec.length
            return kept if drop is None else silenced(kept, self._nothing(name, spec, 1, number), drop)
        ids = windows(fields[name])
        return self.encoded(name, ids if drop is None else jnp.where(drop[:, None, None], jnp.asarray(spec.empty(), ids.dtype), ids))

    def _nothing(self, name: str, spec, count: int, number: int) -> tuple[jax.Array, jax.Array]:
        """As `_read`, of `number` windows of the empty text, `count` times."""
        tokens, pooled = self.encoded(name, jnp.asarray(spec.empty(), jnp.int32)[None, None])
        return jnp.tile(tokens, (count, number, 1)), jnp.tile(pooled, (count, 1))

    def null(self, count: int, fields: dict | None = None, encode=None) -> Condition:
        """What `count` examples are told when told nothing; with as many windows as `fields` have."""
        number = number_of_windows(fields, self.fields[0], self.specs[self.fields[0]].length)
        condition = self.join([self._nothing(name, spec, count, number) for name, spec in self.specs.items()])
        condition = jax.tree.map(jnp.zeros_like, condition) if self.untold == "zeros" else condition
        return condition if self.trained else jax.lax.stop_gradient(condition)

    def example(self, count: int, image: tuple, latent: tuple) -> dict:
        """The empty text, `count` times; image and latent: shapes that text does not need."""
        return {name: jnp.tile(jnp.asarray(spec.empty(), jnp.int32), (count, 1, 1)) for name, spec in self.specs.items()}

    def check(self, fields: dict) -> None:
        """Checks ids and weights on the host.

        Raises:
          UserError: missing ids, ids that are not whole numbers, of another length or out of range, a text without its end,
            windows or weights whose numbers do not agree.
        """
        shapes = {}
        for name, spec in self.specs.items():
            if name not in fields:
                raise UserError(f"{name}: this conditioner needs token ids; this data or this request has no text")
            shapes[name] = _checked(name, np.asarray(fields[name]), spec).shape
        if len({shape[:2] for shape in shapes.values()}) > 1:
            raise UserError(f"{', '.join(shapes)}: expected as many texts and windows of each, got "
                            + ", ".join(str(list(shape)) for shape in shapes.values()))
        if fields.get("token_weights") is not None:
            batch, number, length = next(iter(shapes.values()))
            weights = np.asarray(fields["token_weights"])
            if weights.shape != (batch, number * length) or not np.isfinite(weights).all():
                raise UserError(f"token_weights: expected finite numbers {[batch, number * length]}, one for each token, "
                                f"got {list(weights.shape)}")


class ClipText(TextConditioner):
    """One CLIP text encoder (Stable Diffusion 1 and 2; the SDXL refiner with vector="pooled").

    Fields:
      width to final_norm: of ClipSpec.
      vector: whether the pooled vector is told beside the tokens.
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    projection: int = 0
    vocabulary: int = LAST_ID + 1
    length: int = 77
    bos: int = LAST_ID - 1
    eos: int = LAST_ID
    pad: int = LAST_ID
    skip: int = 0
    final_norm: bool = True
    vector: Literal["none", "pooled"] = "none"
    untold: Literal["empty", "zeros"] = "empty"
    drop: float = 0.1
    trained: bool = False
    dtype: str = "float32"

    def __post_init__(self):
        _check_rate(self.drop)
        self.specs  # noqa: B018  (checks the numbers)
        super().__post_init__()

    def setup(self):
        self.encoder = ClipTextEncoder(self.specs["tokens"], self.dtype)

    @property
    def specs(self) -> dict[str, ClipSpec]:
        return {"tokens": ClipSpec(**{f.name: getattr(self, f.name) for f in dataclasses.fields(ClipSpec)})}

    @property
    def tells(self) -> tuple[str, ...]:
        return ("tokens", "vector") if self.vector == "pooled" else ("tokens",)

    @property
    def vector_width(self) -> int:
        return (self.projection or self.width) * (self.vector == "pooled")

    def encoders(self) -> dict[str, ClipTextEncoder]:
        """The encoders by the name of their parameters."""
        return {"encoder": ClipTextEncoder(self.specs["tokens"], self.dtype, parent=None)}

    def skipping(self, layers: int) -> "ClipText":
        """The same conditioner, its tokens taken `layers` layers earlier (clip-skip)."""
        return self.clone(parent=None, skip=self.skip + layers)

    def encoded(self, name, ids):
        return _encoded(self.encoder, ids)

    def join(self, encoded) -> Condition:
        tokens, pooled = encoded[0]
        return Condition(tokens=tokens, vector=pooled if self.vector == "pooled" else None)


class TwoClipText(TextConditioner):
    """Two CLIP text encoders (SDXL): tokens joined on their features, the second's pooled vector.

    Fields: `first`, `second`: sections of ClipSpec. The second's ids are the field "tokens_2": its padding is another.
    """

    first: Any
    second: Any
    untold: Literal["empty", "zeros"] = "empty"
    drop: float = 0.1
    trained: bool = False
    dtype: str = "float32"

    def __post_init__(self):
        _check_rate(self.drop)
        for name in ("first", "second"):
            value = getattr(self, name)
            if not isinstance(value, ClipSpec):
                object.__setattr__(self, name, fill(ClipSpec, value, name))
        if self.first.length != self.second.length:
            raise UserError(f"first.length={self.first.length}, second.length={self.second.length}: expected the same window, "
                            "because their tokens are joined one by one")
        super().__post_init__()

    def setup(self):
        self.encoder_1, self.encoder_2 = (ClipTextEncoder(spec, self.dtype) for spec in (self.first, self.second))

    @property
    def specs(self) -> dict[str, ClipSpec]:
        return {"tokens": self.first, "tokens_2": self.second}

    @property
    def tells(self) -> tuple[str, ...]:
        return ("tokens", "vector")

    @property
    def vector_width(self) -> int:
        return self.second.projection or self.second.width

    def encoders(self) -> dict[str, ClipTextEncoder]:
        """The encoders by the name of their parameters."""
        return {f"encoder_{i}": ClipTextEncoder(spec, self.dtype, parent=None) for i, spec in ((1, self.first), (2, self.second))}

    def skipping(self, layers: int) -> "TwoClipText":
        """The same conditioner, its tokens taken `layers` layers earlier (clip-skip)."""
        first, second = (dataclasses.replace(spec, skip=spec.skip + layers) for spec in (self.first, self.second))
        return self.clone(parent=None, first=first, second=second)

    def encoded(self, name, ids):
        return _encoded(self.encoder_1 if name == "tokens" else self.encoder_2, ids)

    def join(self, encoded) -> Condition:
        (tokens_1, _), (tokens_2, pooled) = encoded
        return Condition(tokens=jnp.concatenate([tokens_1, tokens_2], axis=-1), vector=pooled)


class BertText(TextConditioner):
    """LDM's text encoder, trained with the U-Net (text-to-image; layouts, as ids of boxes).

    Fields:
      width to logits: of BertSpec. untold: as everywhere, the empty text.
      reads: the field of the ids, "tokens"; "boxes_tokens" for layouts.
    """

    width: int = 1280
    layers: int = 32
    heads: int = 8
    head_width: int = 64
    vocabulary: int = 30522
    length: int = 77
    bos: int = 101
    eos: int = 102
    pad: int = 0
    logits: bool = True
    reads: str = "tokens"
    untold: Literal["empty", "zeros"] = "empty"
    drop: float = 0.1
    trained: bool = True
    dtype: str = "float32"

    def __post_init__(self):
        _check_rate(self.drop)
        self.specs  # noqa: B018  (checks the numbers)
        super().__post_init__()

    def setup(self):
        self.encoder = BertTextEncoder(self.specs[self.reads], self.dtype)

    @property
    def specs(self) -> dict[str, BertSpec]:
        return {self.reads: BertSpec(**{f.name: getattr(self, f.name) for f in dataclasses.fields(BertSpec)})}

    def encoders(self) -> dict[str, BertTextEncoder]:
        """The encoders by the name of their parameters."""
        return {"encoder": BertTextEncoder(self.specs[self.reads], self.dtype, parent=None)}

    def encoded(self, name, ids):
        tokens = self.encoder(ids.reshape(-1, ids.shape[-1]))
        return tokens.reshape(ids.shape[0], -1, tokens.shape[-1]), jnp.zeros((ids.shape[0], 0))

    def join(self, encoded) -> Condition:
        return Condition(tokens=encoded[0][0])


def _encoded(encoder: ClipTextEncoder, ids) -> tuple[jax.Array, jax.Array]:
    """(tokens [B, n L, D], pooled [B, P] of the first window) of ids [B, n, L]."""
    text = encoder(ids.reshape(-1, ids.shape[-1]))
    tokens = text.tokens.reshape(ids.shape[0], -1, text.tokens.shape[-1])
    return tokens, text.pooled.reshape(*ids.shape[:2], -1)[:, 0]


def _checked(name: str, ids: np.ndarray, spec) -> np.ndarray:
    ids = ids[:, None] if ids.ndim == 2 else ids
    if ids.ndim != 3 or ids.dtype.kind not in "iu" or ids.shape[1] < 1 or ids.shape[2] != spec.length:
        raise UserError(f"{name}: expected token ids, whole numbers [B, n, {spec.length}], got {ids.dtype} {list(ids.shape)}")
    wrong = ids[(ids < 0) | (ids >= spec.vocabulary)]
    if wrong.size:
        raise UserError(f"{name}: id {wrong[0]}: expected 0 to {spec.vocabulary - 1}; is this the model's tokenizer?")
    if spec.eos >= 0 and not (ids == spec.eos).any(axis=2).all():
        raise UserError(f"{name}: a window without its end, id {spec.eos}; is this the model's tokenizer?")
    return ids


def _check_rate(drop: float) -> None:
    if not 0.0 <= drop <= 1.0:
        raise UserError(f"drop={drop}: expected a rate from 0 to 1")
