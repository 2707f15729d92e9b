"""Stage 1: an autoencoder with a KL or VQ bottleneck, trained by reconstruction, perception and a critic. arXiv 2112.10752, 2012.09841.

The loss is the LDM code's divided by the number of image elements, H W C, so that its published weights keep their meaning:
mean |image - reconstruction| + perceptual * LPIPS + kl * KL / (H W C)      (KL in nats summed over the latent), or
mean |image - reconstruction| + perceptual * LPIPS + codebook * (codebook and commitment terms, means over the latent).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import key_for
from ldm_jax.core.trees import norm, select
from ldm_jax.models.autoencoder import LAST_KERNEL
from ldm_jax.models.bottleneck import VectorQuantiser, perplexity, revive, usage_start, usage_update
from ldm_jax.models.discriminator import PatchDiscriminator
from ldm_jax.models.perceptual import Lpips
from ldm_jax.train.state import new_state
from ldm_jax.train.steps import Balance, Descent, Players, Stage, adversarial, weighted_sum


def hinge(real: jax.Array, fake: jax.Array) -> jax.Array:
    """(mean max(0, 1 - real) + mean max(0, 1 + fake)) / 2 over all logits []. arXiv 1705.02894."""
    return 0.5 * (jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake)))


def vanilla(real: jax.Array, fake: jax.Array) -> jax.Array:
    """(mean softplus(-real) + mean softplus(fake)) / 2 over all logits []. arXiv 1406.2661."""
    return 0.5 * (jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake)))


CRITIC_LOSSES = {"hinge": hinge, "vanilla": vanilla}


@dataclasses.dataclass(frozen=True)
class Loss:
    """Weights of the reconstruction loss. `codebook` is read with a VQ bottleneck, `kl` with a KL one."""

    pixel: str = "l1"
    perceptual: float = 0.0
    kl: float = 1e-6
    codebook: float = 1.0

    def __post_init__(self):
        if self.pixel not in ("l1", "l2"):
            raise UserError(f"pixel={self.pixel!r}: expected one of l1, l2")
        if min(self.perceptual, self.kl, self.codebook) < 0:
            raise UserError("weights of a loss are not negative")


@dataclasses.dataclass(frozen=True)
class Revival:
    """Codes that the moving average says are used less than `threshold` times as often as the average code are moved onto latents
    of the batch, every `every` steps. threshold 0: never."""

    decay: float = 0.99
    threshold: float = 0.0
    every: int = 100

    def __post_init__(self):
        if not 0 <= self.decay < 1 or self.threshold < 0 or self.every < 1:
            raise UserError(f"decay={self.decay}, threshold={self.threshold}, every={self.every}: expected a decay from 0 to below 1, "
                            "a threshold of 0 or above, and a number of steps from 1")


@dataclasses.dataclass(frozen=True)
class Critic:
    """A patch discriminator, its loss, its optimizer and its weight in the autoencoder's loss."""

    network: PatchDiscriminator
    loss: str
    balance: Balance
    descent: Descent


def patch(descent: Descent, width: int = 64, layers: int = 3, loss: str = "hinge", weight: float = 0.5, start: int = 0) -> Critic:
    """The PatchGAN critic; `weight` is multiplied by the adaptive factor, and is 0 before step `start`."""
    if loss not in CRITIC_LOSSES:
        raise UserError(f"loss={loss!r}: expected one of {', '.join(CRITIC_LOSSES)}")
    if weight < 0 or start < 0:
        raise UserError(f"weight={weight}, start={start}: expected numbers of 0 and above")
    return Critic(PatchDiscriminator(width=width, layers=layers), loss, Balance(weight, start), descent)


def none() -> None:
    """No critic."""


CRITICS = {"patch": patch, "none": none}


@dataclasses.dataclass(frozen=True)
class AutoencoderStage:
    """The parts of stage 1; `build` makes the Stage of them."""

    autoencoder: Any
    loss: Loss
    critic: Critic | None
    descent: Descent
    revival: Revival

    @property
    def quantised(self) -> bool:
        return isinstance(self.autoencoder.bottleneck, VectorQuantiser)

    def build(self) -> Stage:
        balance = self.critic.balance if self.critic else Balance()
        if not self.quantised:  # with a KL bottleneck the LDM code sums over H W C, which its limit on the weight is meant for
            balance = balance._replace(limit=balance.limit / (self.autoencoder.resolution**2 * self.autoencoder.channels))
        players = Players(self.forward, self.reconstruction_loss, self.critic_loss if self.critic else None,
                          self.discriminator_step if self.critic else None, self.last_layer, last_kernel, self.after)
        return Stage(self.init, adversarial(players, self.descent, balance), self.evaluate, self.preview)

    def init(self, key: jax.Array):
        image = jnp.zeros((1, self.autoencoder.resolution, self.autoencoder.resolution, self.autoencoder.channels))
        params = self.autoencoder.init(key_for(key, "autoencoder"), image, None, method="reconstruct")["params"]
        extra = {}
        if self.critic:
            variables = self.critic.network.init(key_for(key, "critic"), image, train=True)
            extra["critic"] = {"params": variables["params"], "batch_stats": variables["batch_stats"],
                               "optimizer": self.critic.descent.transform.init(variables["params"])}
        if self.quantised:
            extra["code_use"] = usage_start(self.autoencoder.bottleneck.codes)
        return new_state(params, self.descent.transform, self.descent.average, extra)

    def forward(self, params, batch, key, step):
        image = batch["image"]
        keys = key_for(key, "posterior", step=step, example=jnp.arange(image.shape[0]))
        rngs = {"dropout": key_for(key, "dropout", step=step)}
        out = self.autoencoder.apply({"params": params}, image, keys, train=True, rngs=rngs, method="reconstruct")
        return (out.image, self.penalty(out, image)), out

    def penalty(self, out, image: jax.Array) -> jax.Array:
        """The bottleneck's weighted loss [], mean over the batch."""
        if self.quantised:
            return self.loss.codebook * jnp.mean(out.bottleneck.codebook + out.bottleneck.commitment)
        return self.loss.kl * jnp.mean(out.bottleneck.kl) / (image.shape[1] * image.shape[2] * image.shape[3])

    def reconstruction_loss(self, image, frozen, batch):
        """Pixel and perceptual error [], means over the batch; LPIPS has its parameters in frozen["perceptual"]."""
        error = image - batch["image"]
        pixel = jnp.mean(jnp.abs(error) if self.loss.pixel == "l1" else jnp.square(error))
        if not self.loss.perceptual:
            return pixel, {"loss/pixel": pixel}
        perceptual = jnp.mean(Lpips().apply({"params": frozen["perceptual"]}, image, batch["image"]))
        return pixel + self.loss.perceptual * perceptual, {"loss/pixel": pixel, "loss/perceptual": perceptual}

    def logits(self, critic: dict, params, image):
        variables = {"params": params, "batch_stats": critic["batch_stats"]}
        out, updated = self.critic.network.apply(variables, image, train=True, mutable=["batch_stats"])
        return out, updated["batch_stats"]

    def critic_loss(self, image, extra):
        """-mean logits of the reconstruction []."""
        return -jnp.mean(self.logits(extra["critic"], extra["critic"]["params"], image)[0])

    def discriminator_step(self, extra, real, fake, active):
        """One update of the discriminator; before the critic's start (active 0) only its batch statistics move."""
        critic = extra["critic"]

        def loss(params):
            real_logits, stats = self.logits(critic, params, real)
            fake_logits, stats = self.logits(critic | {"batch_stats": stats}, params, fake)
            value = CRITIC_LOSSES[self.critic.loss](real_logits, fake_logits)
            return value, (value, stats, jnp.mean(real_logits), jnp.mean(fake_logits))

        (_, (value, stats, real_mean, fake_mean)), grads = jax.value_and_grad(loss, has_aux=True)(critic["params"])
        updates, state = self.critic.descent.transform.update(grads, critic["optimizer"], critic["params"])
        learned = {"params": optax.apply_updates(critic["params"], updates), "optimizer": state}
        critic = select(active > 0, learned, {name: critic[name] for name in learned}) | {"batch_stats": stats}
        told = {"critic/loss": value, "critic/real": real_mean, "critic/fake": fake_mean, "critic/gradient_norm": norm(grads)}
        return extra | {"critic": critic}, told

    def last_layer(self, params, kernel, out):
        module, layer, name = LAST_KERNEL
        params = params | {module: params[module] | {layer: params[module][layer] | {name: kernel}}}
        return self.autoencoder.apply({"params": params}, out.features, method="last_layer")

    def after(self, params, extra, out, key, step):
        """Codebook use, its perplexity, and the revival of dead codes; or the KL."""
        if not self.quantised:
            return params, extra, {"kl": jnp.mean(out.bottleneck.kl)}
        use = usage_update(extra["code_use"], out.bottleneck.indices, self.revival.decay)
        told = {"codebook/perplexity": perplexity(use), "codebook/loss": jnp.mean(out.bottleneck.codebook),
                "codebook/commitment": jnp.mean(out.bottleneck.commitment)}
        if self.revival.threshold:
            codebook = params["bottleneck"]["codebook"]
            due = (step + 1) % self.revival.every == 0
            threshold = jnp.where(due, self.revival.threshold, 0.0)
            codebook, use, revived = revive(codebook, use, out.bottleneck.latent, key_for(key, "revival", step=step), threshold)
            params = params | {"bottleneck": params["bottleneck"] | {"codebook": codebook}}
            told["codebook/revived"] = revived.astype(jnp.float32)
        return params, extra | {"code_use": use}, told

    def evaluate(self, params, frozen, batch, key):
        """Held-out reconstruction without a posterior draw: {name: (sum, weight)}."""
        out = self.autoencoder.apply({"params": params}, batch["image"], None, method="reconstruct")
        error = out.image - batch["image"]
        weight = batch["weight"]
        told = {"l1": weighted_sum(jnp.mean(jnp.abs(error), (1, 2, 3)), weight)}
        levels = jnp.round((jnp.clip(out.image, -1, 1) - batch["image"]) * 127.5)
        told["psnr"] = weighted_sum(10 * jnp.log10(255.0**2 / jnp.maximum(jnp.mean(jnp.square(levels), (1, 2, 3)), 1e-10)), weight)
        if self.quantised:
            told["commitment"] = weighted_sum(out.bottleneck.commitment, weight)
        else:
            told["kl"] = weighted_sum(out.bottleneck.kl, weight)
        return told

    def preview(self, params, frozen, batch, key):
        """Inputs and their reconstructions [B, H, W, C] in [-1, 1]."""
        out = self.autoencoder.apply({"params": params}, batch["image"], None, method="reconstruct")
        return {"input": batch["image"], "reconstruction": jnp.clip(out.image, -1, 1)}


def last_kernel(params):
    module, layer, name = LAST_KERNEL
    return params[module][layer][name]
