"""Stage 2: a denoiser of the first stage's latents. arXiv 2112.10752, equation 2.

One step: encode the images (frozen first stage), draw a time and a noise for each example, add it, predict, compare.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ldm_jax.core.keys import key_for, normal_for, uniform_for
from ldm_jax.core.trees import map_with_path
from ldm_jax.diffusion.loss import Objective, denoising_loss, descended, draw
from ldm_jax.diffusion.times import Stratified
from ldm_jax.models.condition import dropped, first_condition, frozen_paths
from ldm_jax.train.state import new_state
from ldm_jax.train.steps import Descent, Stage, remembering, size, weighted_sum

TIME_BINS = 10


@dataclasses.dataclass(frozen=True)
class DiffusionStage:
    """The parts of stage 2; `build` makes the Stage of them.

    first_stage: an object with latent(params, batch, keys) and encode(params, image) -> unit-variance latent and decode(params,
      latent) -> image; see models.first_stage.
    draw(params, frozen, batch, key) -> images [B, H, W, C] in [-1, 1]: the preview's samples.
    """

    objective: Objective
    network: Any
    conditioner: Any
    first_stage: Any
    latent_shape: tuple[int, int, int]
    descent: Descent
    draw: Callable

    def build(self) -> Stage:
        return Stage(self.init, remembering(self.loss, self._descent()), self.evaluate, self.preview)

    def _descent(self) -> Descent:
        """The descent, without those parts of the conditioner that are not trained: they have no gradient, and no decay and no state of
        the optimizer either."""
        frozen = frozen_paths(self.conditioner)
        if not frozen:
            return self.descent
        trained = optax.masked(self.descent.transform, lambda params: map_with_path(lambda path, _: not path.startswith(frozen), params))
        return self.descent._replace(transform=trained)

    def init(self, key: jax.Array):
        memory = self.objective.times.start(self.objective.schedule)
        return new_state(self.init_params(key), self._descent().transform, self.descent.average, {"times": memory} if memory else {})

    def init_params(self, key: jax.Array) -> dict:
        module = self.first_stage.module
        side = self.latent_shape[0] * module.factor
        condition, told = first_condition(self.conditioner, (side, side, module.channels), self.latent_shape, key_for(key, "conditioner"))
        noisy = jnp.zeros((1, *self.latent_shape))
        network = self.network.init(key_for(key, "network"), noisy, jnp.zeros((1,)), condition)["params"]
        scale = self.objective.log_variance.init(self.objective.schedule)
        return {"network": network, "conditioner": told} | ({"log_variance": scale} if scale else {})

    def loss(self, params, extra, frozen, batch, key, step):
        """What is descended [], a mean over the batch, with its parts, and what the times remember after it."""
        rows = jnp.arange(size(batch))
        latent = self.latent(frozen, batch, key_for(key, "posterior", step=step, example=rows))
        drop = dropped(self.conditioner, lambda name: uniform_for(key_for(key, name, step=step, example=rows)))
        condition = self.condition(params, frozen, batch, drop)
        memory = extra.get("times")
        times, noise = draw(self.objective, key_for(key, "corruption", step=step), rows, latent.shape[1:], memory)
        network = self.network_for(key_for(key, "dropout", step=step))
        losses = denoising_loss(self.objective, network, params, latent, condition, times, noise)
        value, share, memory = descended(self.objective, losses, params.get("log_variance"), memory)
        told = {"loss/unweighted": jnp.mean(share * losses.unweighted), "latent_std": jnp.std(latent)}
        told |= self.objective.log_variance.told(params.get("log_variance")) | self.objective.times.told(memory)
        return jnp.mean(value), (told, {"times": memory} if extra else extra)

    def latent(self, frozen, batch, keys) -> jax.Array:
        """Unit-variance latents [B, h, w, c]; no gradient reaches the first stage."""
        return jax.lax.stop_gradient(self.first_stage.latent(frozen["first_stage"], batch, keys))

    def condition(self, params, frozen, batch, drop):
        """The batch's Condition; a first stage that it needs is not trained by it."""
        def encode(image):
            return jax.lax.stop_gradient(self.first_stage.encode(frozen["first_stage"], image))

        return self.conditioner.apply({"params": params["conditioner"]}, batch, drop, encode)

    def network_for(self, dropout_key=None) -> Callable:
        """The U-Net as the diffusion side calls it; dropout only with a key."""
        def network(params, noisy, time, condition):
            rngs = {} if dropout_key is None else {"dropout": dropout_key}
            return self.network.apply({"params": params["network"]}, noisy, time, condition, train=dropout_key is not None, rngs=rngs)

        return network

    def evaluate(self, params, frozen, batch, key):
        """Held-out loss with dropout and condition drop off, at fixed times spread over all levels; also a mean for each time bin.

        Record i is looked at in bin i mod 10, at a time and with a noise that depend on i alone: runs with other seeds and batch
        sizes pair. Both losses are without a log-variance, offset noise and shares: they are the same numbers under every choice of times.
        """
        rows = batch["index"]
        latent = self.latent(frozen, batch, None)
        condition = self.condition(params, frozen, batch, None)
        bins = rows % TIME_BINS
        times = Stratified(TIME_BINS)(key_for(key, "held_out_time", example=rows), rows, self.objective.schedule)
        noise = normal_for(key_for(key, "held_out_noise", example=rows), latent.shape[1:])
        losses = denoising_loss(self.objective, self.network_for(), params, latent, condition, times, noise)
        weight, plain = batch["weight"], losses.unweighted
        told = {"loss": weighted_sum(losses.weighted, weight), "loss_unweighted": weighted_sum(plain, weight)}
        for i in range(TIME_BINS):
            told[f"time_{i}"] = weighted_sum(plain, weight * (bins == i))
        return told

    def preview(self, params, frozen, batch, key):
        """Samples [B, H, W, C] in [-1, 1] with the conditions of the batch and fixed seeds."""
        return {"sample": jnp.clip(self.draw(params, frozen, batch, key), -1, 1)}
