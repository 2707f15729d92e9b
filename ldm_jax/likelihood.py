"""How likely a trained model finds its held-out images: the variational bound, the probability flow, the autoencoder's ELBO.

All are negative log-likelihoods. A diffusion model's are of the latent that its first stage draws for the image, in the latent's
units (in pixels: of the uint8 image), told the image's own condition and not guided.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax import data_choices
from ldm_jax.config_tree import from_json
from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import base_key, check_seed, key_for
from ldm_jax.data.batches import in_order
from ldm_jax.diffusion.likelihood import Bound, measure
from ldm_jax.diffusion.ode_likelihood import ProbabilityFlow, log_density
from ldm_jax.diffusion.prediction import denoiser
from ldm_jax.evals.tables import EVALS
from ldm_jax.models.bottleneck import KL
from ldm_jax.pipeline import Model, NetworkCall
from ldm_jax.tokenized import by_field
from ldm_jax.train.loop import fetch
from ldm_jax.train.sharding import local_rows, place

FIELDS = ("image", "label", "index", "weight")
LIKELIHOODS = {"l1": ("Laplace exp(-|d|) / 2", lambda d: jnp.abs(d) + math.log(2)),
               "l2": ("Gaussian exp(-d^2) / sqrt(pi)", lambda d: jnp.square(d) + 0.5 * math.log(math.pi))}


@dataclasses.dataclass(frozen=True)
class Likely:
    """What is asked for.

    times: transitions looked at for each image, even; 0 for every one. variance: of the reverse steps, "small" or "large".
    images: the first of the test split; 0 for all. ode_images: how many of them also by the probability-flow equation, with
    `ode_steps` of RK4 and `ode_probes` of Hutchinson's trace (0: the exact trace). seed: of all draws.
    """

    times: int = 32
    variance: str = "large"
    images: int = 0
    ode_images: int = 0
    ode_steps: int = 32
    ode_probes: int = 8
    seed: int = 0
    batch_size: int = 100

    def __post_init__(self):
        if self.times < 0 or self.times % 2:
            raise UserError(f"--likelihood_times={self.times}: expected an even number of times from 2, or 0 for every time")
        for name, least in (("images", 0), ("ode_images", 0), ("ode_steps", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise UserError(f"--{name}={getattr(self, name)}: expected a whole number from {least}")
        if self.ode_probes < 0 or self.ode_probes == 1:
            raise UserError(f"--ode_probes={self.ode_probes}: expected at least 2, so that the error is known, or 0 for the exact trace")
        check_seed(self.seed, "--seed")


@dataclasses.dataclass(frozen=True)
class Part:
    """Some rows of the page: nats(batch on the devices) -> {name: [B]}, over how many dimensions each, and of how many images."""

    nats: Callable[[Mapping[str, jax.Array]], Mapping[str, jax.Array]]
    dimensions: Mapping[str, int]
    images: int


def likelihood(model: Model, request: Likely, progress=None) -> dict:
    """{name: row of `evals.likelihood`} and "settings", which say of what the numbers are.

    A diffusion model: the terms of the variational bound, its sum, and, with `ode_images`, the probability flow's -ln p. Beside
    them, or alone for a first stage, the KL autoencoder's beta-weighted negative ELBO of the image, at one draw of the latent:
    -ln p(image | latent) under the likelihood whose logarithm is the trained pixel loss summed over the image (see LIKELIHOODS,
    d in units of [-1, 1]), plus beta times the KL, beta the trained weight `loss.kl`. Perception and critic are in no likelihood.

    Args:
      progress: called with the number of images done, of `total`.

    Raises:
      UserError: a VQ first stage alone, which has no KL; a schedule without a discrete bound, if no other number is asked for.
    """
    config = from_json(model.manifest.config)
    source = data_choices.open_source(config, "test")
    parts, settings = _parts(model, request, config, len(source))
    fields = data_choices.fields_of(config, model.experiment.conditioner, model.experiment.autoencoder.factor, by_field(model))
    done, result = 0, {}
    for part in parts:
        batch = model.round_up(min(request.batch_size, part.images))
        read = in_order(source, data_choices.transforms(config), batch=batch, count=part.images, rows=local_rows(model.mesh, batch),
                        resolution=config["data"]["resolution"], fields=fields)
        batches = _told(_placed(read, model), done, batch, part.images, progress)
        found = EVALS["likelihood"](lambda b, part=part: {name: fetch(x) for name, x in part.nats(b).items()}, batches, part.dimensions)
        done += found.pop("images")
        result |= found
    return result | {"settings": {"split": "test of " + source.name, "images": _count(request, len(source)), **settings,
                                  "seed": request.seed, "step": model.manifest.step, "model": model.digest[:12]}}


def total(model: Model, request: Likely) -> int:
    """How many images will be read, those of each part counted."""
    config = from_json(model.manifest.config)
    return sum(part.images for part in _parts(model, request, config, len(data_choices.open_source(config, "test")))[0])


def _count(request: Likely, records: int) -> int:
    return min(request.images or records, records)


def _placed(batches: Iterator[Mapping], model: Model) -> Iterator[dict]:
    """Each batch on the devices, and its weights whole on the host."""
    for batch in batches:
        read = FIELDS + getattr(model.experiment.conditioner, "fields", ())
        placed = place({name: batch[name] for name in dict.fromkeys(read) if name in batch}, model.mesh)
        yield placed | {"weight": fetch(placed["weight"])}


def _told(batches: Iterator[dict], done: int, batch: int, images: int, progress) -> Iterator[dict]:
    """The same batches; says how many images are behind them when the next one is asked for."""
    for i, one in enumerate(batches):
        yield one
        if progress:
            progress(done + min((i + 1) * batch, images))


def _parts(model: Model, request: Likely, config: Mapping, records: int) -> tuple[list[Part], dict]:
    """What is measured, and the settings to tell. Raises UserError where nothing can be."""
    count = _count(request, records)
    if model.experiment.task == "classifier":
        raise UserError("--measure=likelihood: a classifier has none; name a diffusion model or a first stage")
    if model.experiment.task == "diffusion":
        parts, settings = _of_diffusion(model, request, count)
        config = model.manifest.first_stage and from_json(model.manifest.first_stage.config)
    elif request.ode_images:
        raise UserError("--ode_images: a first stage has no probability flow; name a diffusion model")
    else:
        parts, settings = [], {}
    bottleneck = getattr(model.experiment.autoencoder, "bottleneck", None)
    if isinstance(bottleneck, KL):
        loss = config["loss"]
        rows = ("autoencoder_reconstruction", "autoencoder_beta_kl", "autoencoder_negative_elbo")
        nats = functools.partial(_elbo_of, model, loss["pixel"], loss["kl"], request.seed)
        parts.append(Part(nats, dict.fromkeys(rows, _image_size(model)), count))
        settings |= {"autoencoder": f"{LIKELIHOODS[loss['pixel']][0]} of d in [-1, 1], beta {loss['kl']:g}, one draw of the latent"}
    elif not parts:
        raise UserError("--measure=likelihood: a VQ first stage has no KL, so no ELBO; --measure=quality measures its reconstruction")
    elif bottleneck is not None:
        settings |= {"autoencoder": "VQ, which has no KL and no ELBO"}
    return parts, settings


def _image_size(model: Model) -> int:
    facts = model.experiment.facts
    return facts.resolution**2 * facts.channels


def _of_diffusion(model: Model, request: Likely, count: int) -> tuple[list[Part], dict]:
    """The bound, where the schedule has one, and the probability flow, where it is asked for."""
    objective, pixels, parts = model.experiment.objective, model.manifest.first_stage is None, []
    kind, size = "image" if pixels else "latent", math.prod(model.experiment.latent_shape)
    settings = {"of": f"the uint8 image, {size} dimensions" if pixels else f"the latent in its units, {size} dimensions"}
    try:
        bound = Bound(objective.schedule, objective.time_input, request.variance, "pixels" if pixels else "gaussian", request.times)
        rows = [f"{kind}_{row}" for row in ("prior", "transitions", "reconstruction", "bound")]
        parts.append(Part(functools.partial(_bound_of, model, bound, rows, request.seed), dict.fromkeys(rows, size), count))
        settings |= {"times": f"{request.times or 'all'} of {objective.schedule.steps - 1} transitions, 2 of the reconstruction",
                     "variance": request.variance,
                     "decoder": f"{'discretised ' if pixels else ''}Gaussian of variance {bound.decoder_variance:.4g}"}
    except UserError as error:
        if not request.ode_images:
            raise UserError(f"{error}, with --ode_images=16") from None
        settings |= {"bound": "none for this schedule"}
    if request.ode_images:
        flow = ProbabilityFlow(objective.schedule, objective.time_input, request.ode_steps, probes=request.ode_probes)
        nats = functools.partial(_flow_of, model, flow, f"{kind}_probability_flow", request.seed)
        parts.append(Part(nats, {f"{kind}_probability_flow": size}, min(request.ode_images, count)))
        trace = f"{request.ode_probes} Hutchinson probes" if request.ode_probes else "exact trace"
        settings |= {"probability flow": f"{parts[-1].images} images, {request.ode_steps} steps of rk4, {trace}"}
    return parts, settings


@functools.partial(jax.jit, static_argnums=(0, 1))
def _inputs(first_stage, conditioner, params, first_params, batch, seed_key) -> tuple[jax.Array, Any, jax.Array]:
    """(clean, condition, keys [B]) of a batch, as in training but with no condition dropped; record i's draws come from i alone."""
    keys = key_for(seed_key, "likelihood", example=batch["index"])
    clean = first_stage.encode(first_params, batch["image"], _named(keys, "posterior"))
    encode = functools.partial(first_stage.encode, first_params)
    return clean, conditioner.apply({"params": params["conditioner"]}, batch, None, encode), keys


def _named(keys: jax.Array, purpose: str) -> jax.Array:
    return jax.vmap(lambda key: key_for(key, purpose))(keys)


def _of(model: Model, batch: Mapping, seed: int):
    """(denoise, clean, condition, keys)."""
    experiment = model.experiment
    inputs = _inputs(model.first_stage, experiment.conditioner, model.params, model.first_params, batch, base_key(seed))
    return denoiser(NetworkCall(experiment.network), experiment.objective.prediction), *inputs


def _bound_of(model: Model, bound: Bound, rows: list[str], seed: int, batch: Mapping) -> dict:
    denoise, clean, condition, keys = _of(model, batch, seed)
    found = measure(bound, denoise, model.params, clean, condition, keys)
    return dict(zip(rows, (found.prior, found.steps, found.reconstruction, found.total))) | {rows[3] + "_variance": found.variance}


def _flow_of(model: Model, flow: ProbabilityFlow, row: str, seed: int, batch: Mapping) -> dict:
    """Pixels are spread evenly over their intervals of 2 / 255 first: the mean of -ln p then bounds -ln P of the uint8 image
    (arXiv 1511.01844, section 3.1), ln 127.5 a dimension added."""
    denoise, clean, condition, keys = _of(model, batch, seed)
    offset = 0.0
    if model.manifest.first_stage is None:
        clean, offset = _spread(clean, keys), math.prod(clean.shape[1:]) * math.log(127.5)
    found = log_density(flow, denoise, model.params, clean, condition, keys)
    known = {row + "_variance": jnp.square(found.standard_error)} if flow.probes else {}
    return {row: offset - found.log_density} | known


@jax.jit
def _spread(clean: jax.Array, keys: jax.Array) -> jax.Array:
    """Pixels x / 127.5 - 1, each moved evenly by up to 1 / 255 to both sides."""
    uniform = jax.vmap(lambda key: jax.random.uniform(key, clean.shape[1:], minval=-1, maxval=1))(_named(keys, "pixel"))
    return clean + uniform / 255


def _elbo_of(model: Model, pixel: str, beta: float, seed: int, batch: Mapping) -> dict:
    reconstruction, kl = _elbo(model.experiment.autoencoder, pixel, model.first_params, batch, base_key(seed))
    return {"autoencoder_reconstruction": reconstruction, "autoencoder_beta_kl": beta * kl,
            "autoencoder_negative_elbo": reconstruction + beta * kl}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _elbo(autoencoder, pixel: str, params, batch, seed_key) -> tuple[jax.Array, jax.Array]:
    """(-ln p(image | latent), KL), nats [B], at the latent that the diffusion side sees too."""
    keys = _named(key_for(seed_key, "likelihood", example=batch["index"]), "posterior")
    out = autoencoder.apply({"params": params}, batch["image"], keys, method="reconstruct")
    return jnp.sum(LIKELIHOODS[pixel][1](batch["image"] - out.image), axis=(1, 2, 3)), out.bottleneck.kl
