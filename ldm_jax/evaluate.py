"""A trained model against its held-out data: which evaluation fits, on what, with which settings."""

import json
import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from etils import epath

from ldm_jax import data_choices, likelihood, shapes_tasks
from ldm_jax.asked import prepare, told_to_guide
from ldm_jax.checkpoint.digests import write_atomically
from ldm_jax.config_tree import from_json
from ldm_jax.core.errors import UserError
from ldm_jax.data.batches import in_order
from ldm_jax.evals.report import report
from ldm_jax.evals.shapes_summary import shapes_page
from ldm_jax.evals.sweep import page
from ldm_jax.evals.tables import EVALS
from ldm_jax.likelihood import Likely
from ldm_jax.output import Request
from ldm_jax.pipeline import Model
from ldm_jax.train.diffusion_stage import TIME_BINS
from ldm_jax.train.loop import evaluate as loop_evaluate
from ldm_jax.train.loop import fetch
from ldm_jax.train.sharding import local_rows, place

NUMBER = 1000  # samples of the digits, where nobody says how many


def evaluate(model: Model, request: Request | Likely | None = None, progress=None) -> dict:
    """The measures of a model, JSON-able: reconstruction of the test split for a first stage, accuracy on it by time for a classifier,
    samples against the digits for a diffusion model on the digits, and what samples obey for one on the shapes; or, asked by a `Likely`,
    the likelihood of the test split.

    Args:
      request: for a diffusion model, the samples to make; or the likelihood to measure.

    Raises:
      UserError: a diffusion model of data that no evaluation here knows, or a likelihood that the model has not.
    """
    if isinstance(request, Likely):
        return likelihood.likelihood(model, request, progress)
    config = from_json(model.manifest.config)
    if model.experiment.task == "autoencoder":
        return reconstruction(model, config)
    if model.experiment.task == "classifier":
        return classification(model, config, progress)
    request = request or Request(number=default_number(model), batch_size=100)
    if shapes_tasks.is_shapes(model):
        result = shapes_tasks.evaluate(model, request, progress)
        return result | {"settings": _settings(model, request) | result["settings"]}
    check_digits(config)
    return digits(model, config, request, progress)


def default_number(model: Model) -> int:
    """How many samples are measured where nobody says it."""
    return shapes_tasks.default_number(model) if shapes_tasks.is_shapes(model) else NUMBER


def total(model: Model, request: Request | Likely) -> int:
    """How many images `evaluate` makes or reads, for its progress."""
    if isinstance(request, Likely):
        return likelihood.total(model, request)
    if model.experiment.task == "classifier":
        return TIME_BINS * len(data_choices.open_source(from_json(model.manifest.config), "test"))
    return request.number


def check_out(out: str) -> None:
    """Raises UserError, before the long work, if the numbers could not be written to `out`."""
    if out and (epath.Path(out).is_dir() or not epath.Path(out).parent.is_dir()):
        raise UserError(f"--out={out}: expected a file in a folder that exists, as --out=evaluation.json")


def told(result: Mapping, title: str, out: str = "") -> str:
    """The measures as a table to print; with `out`, also written there as JSON, by process 0."""
    if out and jax.process_index() == 0:
        write_atomically(out, json.dumps(result, indent=1) + "\n")
    if "verdicts" in result:
        return shapes_page(result, title)
    return page(result, title) if "rows" in result else report(result, title)


def parse_scales(text: str, guide: str = "", guidance: str = "") -> tuple[float, ...]:
    """"0,1,2.5" or "" -> a tuple of floats.

    Raises:
      UserError: something else, a guide without scales, or a weight beside the scales that are to take its place (of a section, it does).
    """
    try:
        scales = tuple(float(part) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        scales = (math.nan,)
    if not all(math.isfinite(scale) for scale in scales):
        raise UserError(f"--scales={text!r}: expected numbers, as 0,1,2,4")
    if guide and not scales:
        raise UserError(f"--guide={guide} needs --scales, the weights to compare, as --scales=0,1,2,4")
    if scales and guidance and not guidance.strip().startswith("{"):
        raise UserError(f"--guidance={guidance} beside --scales: the scales are the weights; give one of the two, or a section without one")
    return scales


def reconstruction(model: Model, config: Mapping) -> dict:
    """PSNR, SSIM, L1, and KL or codebook use, on the whole test split, without a posterior draw."""
    source, autoencoder = data_choices.open_source(config, "test"), model.experiment.autoencoder
    apply = jax.jit(lambda params, image: autoencoder.apply({"params": params}, image, None, method="reconstruct"))

    def reconstruct(batch):
        out = apply(model.params, place({"image": batch["image"]}, model.mesh)["image"])
        told = {name: fetch(getattr(out.bottleneck, name)) for name in ("kl", "indices") if getattr(out.bottleneck, name) is not None}
        return fetch(out.image), told

    batch = model.round_up(min(model.experiment.batch, len(source)))
    options = {"batch": batch, "rows": local_rows(model.mesh, batch), "resolution": config["data"]["resolution"]}
    batches = (_everyone(b, model.mesh) for b in in_order(source, data_choices.transforms(config), **options))
    codes = getattr(autoencoder.bottleneck, "codes", 0)
    result = EVALS["reconstruction"](reconstruct, batches, dimensions=int(np.prod(model.experiment.latent_shape)), codes=codes)
    result |= shapes_tasks.of_first_stage(model) if shapes_tasks.is_shapes(model) else {}
    return result | {"settings": {"split": "test of " + source.name, "step": model.manifest.step, "factor": autoencoder.factor,
                                  "latent_channels": autoencoder.latent_channels, "model": model.digest[:12]}}


def classification(model: Model, config: Mapping, progress=None) -> dict:
    """Accuracy and cross-entropy on the whole test split, every record once in each time bin; bin 0 has the cleanest tenth of times."""
    source, stage = data_choices.open_source(config, "test"), model.experiment.stage()
    batch = model.round_up(min(model.experiment.batch, len(source)))
    options = {"batch": batch, "rows": local_rows(model.mesh, batch), "resolution": config["data"]["resolution"]}

    def batches():
        for i in range(TIME_BINS):
            for rows in in_order(source, data_choices.transforms(config), **options):
                yield place(dict(rows) | {"index": rows["index"] * TIME_BINS + i}, model.mesh)
            if progress:
                progress((i + 1) * len(source))

    found = loop_evaluate(jax.jit(stage.evaluate), model.params, {"first_stage": model.first_params}, batches())
    means = {name.removeprefix("held_out/"): value for name, value in found.items()}
    bins = {f"accuracy_time_{i}": means[f"time_{i}"] for i in range(TIME_BINS)}
    return {"accuracy": means["accuracy"], "loss": means["loss"]} | bins | {
        "n": {"records": len(source), "times_each": TIME_BINS},
        "settings": {"split": "test of " + source.name, "step": model.manifest.step, "model": model.digest[:12]}}


def _everyone(batch: Mapping, mesh) -> dict:
    """A batch of this process's rows, whole."""
    return {name: fetch(array) for name, array in place({k: batch[k] for k in ("image", "weight")}, mesh).items()}


def digits(model: Model, config: Mapping, request: Request, progress=None) -> dict:
    """One set of samples against the real digits: as many of each class, or, of a model without labels, told nothing."""
    train, held_out = data_choices.open_source(config, "train"), data_choices.open_source(config, "test")
    known = "label" in model.experiment.conditioner.fields
    labels = np.arange(request.number) % train.classes if known else None
    images = model.sample(model.condition(labels), seeds=request.seeds, batch_size=request.batch_size, progress=progress,
                          **request.sampling)
    return EVALS["digits"](images, labels, (train.images, train.labels), (held_out.images, held_out.labels),
                           settings=_settings(model, request))


def _settings(model: Model, request: Request) -> dict:
    sampling = model.sampling(**request.sampling)
    return {"seeds": f"{request.seeds[0]}..{request.seeds[-1]}", "guidance": sampling["guidance"], "steps": sampling["steps"],
            "sampler": _named(sampling["sampler"]), "grid": _named(sampling["grid"]), "step": model.manifest.step,
            "model": model.digest[:12]}


def sweep(model: Model, request: Request, scales: Sequence[float], guide: Model | None = None, progress=None) -> dict:
    """The share of the asked digit at each scale of a guide, or at each guidance weight where there is none; as many of each class,
    the same seeds at every scale. Of the shapes: what samples obey at each.

    Raises:
      UserError: before anything is made, a model of other data than the digits, one that nothing tells a class, or as `Model.sample`.
    """
    model.need_diffusion("--scales")
    config = from_json(model.manifest.config)
    if shapes_tasks.is_shapes(model):
        result = shapes_tasks.sweep(model, request, scales, guide, progress)
        return result | {"settings": _settings(model, request) | result["settings"] | {"guidance": "by row"}}
    check_digits(config)
    if guide is None and not model.experiment.conditioner.fields:
        raise UserError("--scales: this model has no classes to be asked for; name a classifier of its latents by --guide")
    train, held_out = data_choices.open_source(config, "train"), data_choices.open_source(config, "test")
    labels, done = [i % train.classes for i in range(request.number)], iter(range(len(scales)))
    condition = model.condition(labels if model.experiment.conditioner.fields else None)

    def asked(scale):
        given = request.sampling.get("guidance")
        told = {"guidance": given | {"weight": scale} if isinstance(given, Mapping) else scale}
        return request.sampling | told | ({} if guide is None else {"guide": guide, "guide_condition": told_to_guide(guide, labels)})

    def sample(scale):
        before = next(done) * request.number
        told = progress and (lambda number: progress(before + number))
        return model.sample(condition, seeds=request.seeds, batch_size=request.batch_size, progress=told, **asked(scale))

    for scale in scales:
        prepare(model, condition, request.number, asked(scale))
    settings = _settings(model, request) | {"guidance": "by row"}
    settings |= {} if guide is None else {"guide": f"{guide.experiment.task} {guide.digest[:12]}"}
    return EVALS["sweep"](sample, scales, labels, (train.images, train.labels), (held_out.images, held_out.labels), settings=settings)


def check_digits(config: Mapping) -> None:
    """Raises UserError: a diffusion model of data that no evaluation here knows."""
    name = config["data"]["source"]["name"]
    if name != "digits":
        raise UserError(f"samples of {name!r} have no evaluation yet; the digits and the shapes have one, and every first stage has. "
                        "--measure=likelihood measures any data's")


def _named(section) -> str:
    if isinstance(section, str):
        return section
    return section["name"] + "".join(f" {k}={v}" for k, v in section.items() if k != "name")
