"""Stage 3: a classifier of noisy latents, to guide samples by its gradient. arXiv 2105.05233, section 4.

One step: encode the images (frozen first stage), draw a time and a noise for each example, add it, classify, compare.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import key_for, normal_for
from ldm_jax.diffusion.loss import Objective, draw
from ldm_jax.diffusion.prediction import corrupt
from ldm_jax.diffusion.times import Stratified
from ldm_jax.train.diffusion_stage import TIME_BINS
from ldm_jax.train.state import new_state
from ldm_jax.train.steps import Descent, Stage, single, size, weighted_sum

CELL = 8  # pixels of one probability in the preview


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """-sum_k q_k log p_k in nats, q being 1 - smoothing on the label and smoothing / K on each of the K classes (arXiv 1512.00567,
    equation 10).

    Raises:
      UserError: a smoothing outside 0 to below 1.
    """

    smoothing: float = 0.0

    def __post_init__(self):
        if not 0.0 <= self.smoothing < 1.0:
            raise UserError(f"smoothing={self.smoothing}: expected a share from 0 to below 1")

    def __call__(self, logits, label):
        """[B, K] and int [B] in 0 .. K - 1 -> [B] float32."""
        log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
        own = jnp.take_along_axis(log_p, label[:, None], axis=1)[:, 0]
        return -(1 - self.smoothing) * own - self.smoothing * jnp.mean(log_p, axis=1)


@dataclasses.dataclass(frozen=True)
class ClassifierStage:
    """The parts of stage 3; `build` makes the Stage of them.

    objective: its schedule, time input and times as of a diffusion model; no prediction and no weight; loss a CrossEntropy.
    first_stage: an object with latent(params, batch, keys) -> unit-variance latent.
    """

    objective: Objective
    network: Any
    first_stage: Any
    latent_shape: tuple[int, int, int]
    descent: Descent

    def build(self) -> Stage:
        return Stage(self.init, single(self.loss, self.descent), self.evaluate, self.preview)

    def init(self, key: jax.Array):
        noisy = jnp.zeros((1, *self.latent_shape))
        params = self.network.init(key_for(key, "network"), noisy, jnp.zeros((1,)))["params"]
        return new_state({"network": params}, self.descent.transform, self.descent.average)

    def loss(self, params, frozen, batch, key, step):
        """The cross-entropy [] at random times, mean over the batch, with the share that is classified right."""
        rows = jnp.arange(size(batch))
        latent = self.latent(frozen, batch, key_for(key, "posterior", step=step, example=rows))
        times, noise = draw(self.objective, key_for(key, "corruption", step=step), rows, latent.shape[1:])
        logits = self.logits(params, latent, times, noise, key_for(key, "dropout", step=step))
        told = {"accuracy": jnp.mean(right(logits, batch["label"])), "latent_std": jnp.std(latent)}
        return jnp.mean(self.objective.loss(logits, batch["label"])), told

    def latent(self, frozen, batch, keys) -> jax.Array:
        """Unit-variance latents [B, h, w, c]; no gradient reaches the first stage."""
        return jax.lax.stop_gradient(self.first_stage.latent(frozen["first_stage"], batch, keys))

    def logits(self, params, latent, times, noise, dropout_key=None) -> jax.Array:
        """Logits [B, K] of the latents [B, h, w, c] at times [B] with noise [B, h, w, c]; dropout only with a key."""
        schedule = self.objective.schedule
        noisy = corrupt(latent.astype(jnp.float32), noise, schedule.level(times))
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        return self.network.apply({"params": params["network"]}, noisy, self.objective.time_input(schedule, times),
                                  train=dropout_key is not None, rngs=rngs)

    def evaluate(self, params, frozen, batch, key):
        """Held-out cross-entropy and accuracy at fixed times spread over all levels; also the accuracy in each time bin.

        Record i is looked at in bin i mod 10, at a time and with a noise that depend on i alone, as in DiffusionStage.evaluate.
        """
        rows, weight = batch["index"], batch["weight"]
        bins = rows % TIME_BINS
        logits = self._at_bins(params, self.latent(frozen, batch, None), rows, key)
        hit = right(logits, batch["label"])
        told = {"loss": weighted_sum(self.objective.loss(logits, batch["label"]), weight), "accuracy": weighted_sum(hit, weight)}
        for i in range(TIME_BINS):
            told[f"time_{i}"] = weighted_sum(hit, weight * (bins == i))
        return told

    def _at_bins(self, params, latent, rows, key) -> jax.Array:
        """Logits [B, K], row i in time bin rows[i] mod TIME_BINS with draws by rows[i]."""
        times = Stratified(TIME_BINS)(key_for(key, "held_out_time", example=rows), rows, self.objective.schedule)
        return self.logits(params, latent, times, normal_for(key_for(key, "held_out_noise", example=rows), latent.shape[1:]))

    def preview(self, params, frozen, batch, key):
        """A strip [B, CELL, 10 CELL, 1] in [-1, 1] for each image: the probability of its label in each time bin, the clean end
        to the left, white for 1."""
        latent = jnp.repeat(self.latent(frozen, batch, None), TIME_BINS, axis=0)
        label = jnp.repeat(batch["label"], TIME_BINS)
        rows = (batch["index"][:, None] * TIME_BINS + jnp.arange(TIME_BINS)).reshape(-1)
        chance = jnp.exp(-CrossEntropy()(self._at_bins(params, latent, rows, key), label)).reshape(-1, TIME_BINS)
        strip = jnp.repeat(jnp.repeat(chance[:, None, :], CELL, axis=1), CELL, axis=2)
        return {"confidence": 2 * strip[..., None] - 1}


def right(logits, label) -> jax.Array:
    """1 where the likeliest class is the label, else 0: [B] float32."""
    return (jnp.argmax(logits, axis=-1) == label).astype(jnp.float32)
