"""A stage of its own: one space for images and their captions, by contrast. arXiv 2103.00020, figure 3.

One step: embed the images and the captions of a batch, and tell, of each image, which caption is its own, and of each caption
which image. What an example is compared with are the other examples of the global batch: this loss, like CLIP's, depends on them.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import key_for
from ldm_jax.models.embedder import Pairs
from ldm_jax.train.state import new_state
from ldm_jax.train.steps import Descent, Stage, single, weighted_sum

CELL = 8  # pixels of one cosine in the preview
NEVER = -1e9  # a logit of what is no candidate


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """Symmetric cross-entropy of the cosines times a learned scale (InfoNCE both ways), in nats.

    limit: the scale is kept at or below it; CLIP's is 100.

    Raises:
      UserError: a limit below 1.
    """

    limit: float = 100.0

    def __post_init__(self):
        if not 1 <= self.limit < math.inf:
            raise UserError(f"limit={self.limit}: expected a number from 1; CLIP's is 100")

    def scale(self, log_scale) -> jax.Array:
        """What cosines are multiplied by, float32 []."""
        return jnp.exp(jnp.minimum(log_scale, math.log(self.limit)))

    def logits(self, pairs: Pairs) -> jax.Array:
        """float32 [B, B]: image i and text j."""
        return self.scale(pairs.log_scale) * jnp.matmul(pairs.images, pairs.texts.T, precision=jax.lax.Precision.HIGHEST)

    def __call__(self, logits) -> tuple[jax.Array, jax.Array]:
        """Logits [B, B] -> (losses [B], hits [B]): the mean of both ways, and the share of them where nothing is likelier than an
        example's own."""
        own = jnp.diagonal(logits)
        losses = sum(jax.nn.logsumexp(logits, axis=axis) - own for axis in (0, 1)) / 2
        hits = sum((own >= jnp.max(logits, axis=axis)).astype(jnp.float32) for axis in (0, 1)) / 2
        return losses, hits


@dataclasses.dataclass(frozen=True)
class EmbeddingStage:
    """The parts of the stage; `build` makes the Stage of them. network: an Embedder."""

    network: Any
    loss: Contrastive
    descent: Descent

    def build(self) -> Stage:
        return Stage(self.init, single(self.descended, self.descent), self.evaluate, self.preview)

    def init(self, key: jax.Array):
        side, length = self.network.image.side, self.network.text.length
        example = jnp.zeros((1, side, side, 3)), jnp.zeros((1, length), jnp.int32)
        params = self.network.init(key_for(key, "network"), *example)["params"]
        return new_state({"network": params}, self.descent.transform, self.descent.average)

    def pairs(self, params, batch) -> Pairs:
        """The embeddings of a batch's images [B, H, W, 3] and tokens [B, 1, L] or [B, L]."""
        return self.network.apply({"params": params["network"]}, batch["image"], batch["tokens"])

    def descended(self, params, frozen, batch, key, step):
        """The mean loss [], with the share that finds its own among the batch, and the scale."""
        pairs = self.pairs(params, batch)
        losses, hits = self.loss(self.loss.logits(pairs))
        return jnp.mean(losses), {"found": jnp.mean(hits), "scale": self.loss.scale(pairs.log_scale)}

    def evaluate(self, params, frozen, batch, key):
        """Held-out loss and share found, each among the records of its batch; records that fill the last batch are no candidates."""
        weight = batch["weight"]
        there = (weight > 0)[:, None] & (weight > 0)[None, :] | jnp.eye(len(weight), dtype=bool)
        losses, hits = self.loss(jnp.where(there, self.loss.logits(self.pairs(params, batch)), NEVER))
        return {"loss": weighted_sum(losses, weight), "found": weighted_sum(hits, weight)}

    def preview(self, params, frozen, batch, key):
        """A strip [B, CELL, B CELL, 1] in [-1, 1] for each image: its cosine with the caption of each, white for 1."""
        pairs = self.pairs(params, batch)
        cosines = jnp.clip(pairs.images @ pairs.texts.T, -1, 1)
        strip = jnp.repeat(jnp.repeat(cosines[:, None, :], CELL, axis=1), CELL, axis=2)
        return {"cosine": strip[..., None]}
