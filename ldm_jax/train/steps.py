"""Builders of a training step: a `single` loss, one that is `remembering`, and `adversarial` (a reconstruction against a critic)."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ldm_jax.core.trees import norm, select
from ldm_jax.train.optim import Average
from ldm_jax.train.state import State


class Stage(NamedTuple):
    """One training objective as pure functions; the loop knows nothing else of it.

    init(key) -> State.
    step(state, frozen, batch, key) -> (State, metrics): metrics are float32 [] over the global batch.
    evaluate(params, frozen, batch, key) -> {name: (sum [], weight [])}, to be added over batches; draws are by batch["index"].
    preview(params, frozen, batch, key) -> {name: images [B, H, W, C] in [-1, 1]}.
    """

    init: Callable
    step: Callable
    evaluate: Callable
    preview: Callable


def size(batch: Mapping) -> int:
    """How many examples a batch holds: the first axis of each of its fields."""
    return next(iter(batch.values())).shape[0]


class Descent(NamedTuple):
    """How parameters follow their gradients: an optax transformation, its learning rate by update, and their moving average."""

    transform: optax.GradientTransformation
    rate: Callable
    average: Average


def _descend(state: State, grads, descent: Descent) -> tuple[Any, Any, dict[str, jax.Array]]:
    """(updated parameters, optimizer state, metrics) of one step of the optimizer."""
    updates, optimizer_state = descent.transform.update(grads, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    told = {"gradient_norm": norm(grads), "update_norm": norm(updates), "parameter_norm": norm(params),
            "learning_rate": descent.rate(state.step // descent.average.accumulate).astype(jnp.float32)}
    return params, optimizer_state, told


def _guarded(state: State, proposed: State, metrics: dict) -> tuple[State, dict]:
    """The proposed state, or, once any metric was not finite (the norms see every gradient), the old one for ever, with the latch set."""
    bad = state.bad | ~jnp.all(jnp.isfinite(jnp.stack([metrics[name] for name in sorted(metrics)])))
    kept = select(bad, state, proposed)
    return State(kept.step, kept.params, kept.ema, kept.optimizer, kept.extra, bad), metrics | {"bad": bad.astype(jnp.float32)}


def single(loss: Callable, descent: Descent) -> Callable:
    """A step that descends one loss.

    Args:
      loss: (params, frozen, batch, key, step) -> (loss [], metrics).
    """

    def forgetful(params, extra, frozen, batch, key, step):
        value, metrics = loss(params, frozen, batch, key, step)
        return value, (metrics, extra)

    return remembering(forgetful, descent)


def remembering(loss: Callable, descent: Descent) -> Callable:
    """A step that descends one loss which reads and renews the state's other variables.

    Args:
      loss: (params, extra, frozen, batch, key, step) -> (loss [], (metrics, extra)); extra of one structure, as State.extra.
    """

    def step(state: State, frozen, batch, key):
        descend = jax.value_and_grad(loss, has_aux=True)
        (value, (metrics, extra)), grads = descend(state.params, state.extra, frozen, batch, key, state.step)
        params, optimizer_state, told = _descend(state, grads, descent)
        ema = descent.average.update(state.ema, params, state.step)
        proposed = State(state.step + 1, params, ema, optimizer_state, extra, state.bad)
        return _guarded(state, proposed, {"loss": value} | metrics | told)

    return step


class Players(NamedTuple):
    """The functions of an adversarial step.

    forward(params, batch, key, step) -> ((image, penalty []), aux): the reconstruction and the bottleneck's weighted penalty.
    reconstruction_loss(image, frozen, batch) -> (loss [], metrics).
    critic_loss(image, extra) -> loss []: the generator's side, or None for training without a critic.
    discriminator_step(extra, real, fake, active []) -> (extra, metrics): one update of the discriminator, if active is above 0.
    last_layer(params, kernel, aux) -> image: the last convolution alone, as a function of its kernel.
    last_kernel(params) -> kernel.
    after(params, extra, aux, key, step) -> (params, extra, metrics): what follows the update (revival of dead codes).
    """

    forward: Callable
    reconstruction_loss: Callable
    critic_loss: Callable | None
    discriminator_step: Callable | None
    last_layer: Callable
    last_kernel: Callable
    after: Callable


class Balance(NamedTuple):
    """The critic's weight: `weight` times the adaptive factor, 0 before step `start`. arXiv 2012.09841, equation 7."""

    weight: float = 0.5
    start: int = 0
    epsilon: float = 1e-4
    limit: float = 1e4


def adaptive_weight(params, aux, players: Players, reconstruction, critic, balance: Balance) -> jax.Array:
    """|d reconstruction / d W| / (|d critic / d W| + epsilon), clipped to [0, limit]; W is the last layer's kernel.

    Both cotangents at the image [B, H, W, C] are pulled back through the last convolution only.
    """
    _, pull = jax.vjp(lambda kernel: players.last_layer(params, kernel, aux), players.last_kernel(params))
    ratio = norm(pull(reconstruction)) / (norm(pull(critic)) + balance.epsilon)
    return jax.lax.stop_gradient(jnp.clip(ratio, 0.0, balance.limit))


def adversarial(players: Players, descent: Descent, balance: Balance) -> Callable:
    """A step of an autoencoder, with or without a critic.

    The two losses give two cotangents at the image; they are combined there with the adaptive weight, and one backward pass
    follows. The discriminator then learns from the same reconstruction (the LDM code draws a second one from the updated
    autoencoder, at the price of another forward pass).
    """

    def step(state: State, frozen, batch, key):
        def forward(params):
            return players.forward(params, batch, key, state.step)

        (image, penalty), pull, aux = jax.vjp(forward, state.params, has_aux=True)
        (value, metrics), cotangent = jax.value_and_grad(players.reconstruction_loss, has_aux=True)(image, frozen, batch)
        metrics = {"loss": value + penalty} | metrics
        extra = state.extra
        if players.critic_loss is not None:
            critic, critic_cotangent = jax.value_and_grad(players.critic_loss)(image, extra)
            active = (state.step >= balance.start).astype(jnp.float32)
            adaptive = adaptive_weight(state.params, aux, players, cotangent, critic_cotangent, balance)
            cotangent = cotangent + active * balance.weight * adaptive * critic_cotangent
            metrics |= {"critic/generator": critic, "critic/weight": active * balance.weight * adaptive}
            extra, told = players.discriminator_step(extra, batch["image"], jax.lax.stop_gradient(image), active)
            metrics |= told
        (grads,) = pull((cotangent, jnp.ones_like(penalty)))
        params, optimizer_state, norms = _descend(state, grads, descent)
        params, extra, told = players.after(params, extra, aux, key, state.step)
        ema = descent.average.update(state.ema, params, state.step)
        proposed = State(state.step + 1, params, ema, optimizer_state, extra, state.bad)
        return _guarded(state, proposed, metrics | told | norms)

    return step


def weighted_sum(values: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(sum of weight * value, sum of weight) over the batch axis: one summand of an evaluation. values, weight [B]."""
    return jnp.sum(values * weight), jnp.sum(weight)


def finish_evaluation(total: dict[str, Any]) -> dict[str, float]:
    """Means from added (sum, weight) pairs; a pair of no weight (an empty time bin) is left out."""
    return {name: float(value) / float(weight) for name, (value, weight) in total.items() if float(weight) > 0}
