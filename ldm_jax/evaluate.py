"""A trained model against its held-out data: which evaluation fits, on what, with which settings."""

import json
from collections.abc import Mapping

import jax
import numpy as np
from etils import epath

from ldm_jax import choices
from ldm_jax.checkpoint.digests import write_atomically
from ldm_jax.config_tree import from_json
from ldm_jax.core.errors import UserError
from ldm_jax.data.batches import in_order
from ldm_jax.evals.report import report
from ldm_jax.evals.tables import EVALS
from ldm_jax.output import Request
from ldm_jax.pipeline import Model
from ldm_jax.train.loop import fetch
from ldm_jax.train.sharding import local_rows, place


def evaluate(model: Model, request: Request | None = None, progress=None) -> dict:
    """The measures of a model, JSON-able: reconstruction of the test split for a first stage, samples against the digits for a
    diffusion model on the digits.

    Args:
      request: for a diffusion model, the samples to make; class after class in turn.

    Raises:
      UserError: a diffusion model of data that no evaluation here knows.
    """
    config = from_json(model.manifest.config)
    if model.experiment.task == "autoencoder":
        return reconstruction(model, config)
    name = config["data"]["source"]["name"]
    if name != "digits":
        raise UserError(f"samples of {name!r} have no evaluation yet; the digits have one, and every first stage has")
    return digits(model, config, request or Request(number=1000, batch_size=100), progress)


def check_out(out: str) -> None:
    """Raises UserError, before the long work, if the numbers could not be written to `out`."""
    if out and (epath.Path(out).is_dir() or not epath.Path(out).parent.is_dir()):
        raise UserError(f"--out={out}: expected a file in a folder that exists, as --out=evaluation.json")


def told(result: Mapping, title: str, out: str = "") -> str:
    """The measures as a table to print; with `out`, also written there as JSON, by process 0."""
    if out and jax.process_index() == 0:
        write_atomically(out, json.dumps(result, indent=1) + "\n")
    return report(result, title)


def reconstruction(model: Model, config: Mapping) -> dict:
    """PSNR, SSIM, L1, and KL or codebook use, on the whole test split, without a posterior draw."""
    source, autoencoder = choices.open_source(config, "test"), model.experiment.autoencoder
    apply = jax.jit(lambda params, image: autoencoder.apply({"params": params}, image, None, method="reconstruct"))

    def reconstruct(batch):
        out = apply(model.params, place({"image": batch["image"]}, model.mesh)["image"])
        told = {name: fetch(getattr(out.bottleneck, name)) for name in ("kl", "indices") if getattr(out.bottleneck, name) is not None}
        return fetch(out.image), told

    batch = model.round_up(min(model.experiment.batch, len(source)))
    options = {"batch": batch, "rows": local_rows(model.mesh, batch), "resolution": config["data"]["resolution"]}
    batches = (_everyone(b, model.mesh) for b in in_order(source, choices.transforms(config), **options))
    codes = getattr(autoencoder.bottleneck, "codes", 0)
    result = EVALS["reconstruction"](reconstruct, batches, dimensions=int(np.prod(model.experiment.latent_shape)), codes=codes)
    return result | {"settings": {"split": "test of " + source.name, "step": model.manifest.step, "factor": autoencoder.factor,
                                  "latent_channels": autoencoder.latent_channels, "model": model.digest[:12]}}


def _everyone(batch: Mapping, mesh) -> dict:
    """A batch of this process's rows, whole."""
    return {name: fetch(array) for name, array in place({k: batch[k] for k in ("image", "weight")}, mesh).items()}


def digits(model: Model, config: Mapping, request: Request, progress=None) -> dict:
    """One set of samples against the real digits: as many of each class, or, of a model without labels, told nothing."""
    train, held_out = choices.open_source(config, "train"), choices.open_source(config, "test")
    known = "label" in model.experiment.conditioner.fields
    labels = np.arange(request.number) % train.classes if known else None
    sampling = model.sampling(**request.sampling)
    images = model.sample(model.condition(labels), seeds=request.seeds, batch_size=request.batch_size, progress=progress,
                          **request.sampling)
    settings = {"seeds": f"{request.seeds[0]}..{request.seeds[-1]}", "guidance": sampling["guidance"], "steps": sampling["steps"],
                "sampler": _named(sampling["sampler"]), "grid": _named(sampling["grid"]), "step": model.manifest.step,
                "model": model.digest[:12]}
    return EVALS["digits"](images, labels, (train.images, train.labels), (held_out.images, held_out.labels), settings=settings)


def _named(section) -> str:
    if isinstance(section, str):
        return section
    return section["name"] + "".join(f" {k}={v}" for k, v in section.items() if k != "name")
