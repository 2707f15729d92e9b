"""One training run on any number of hosts: open its workdir, its data and its state, hand them to the loop."""

import dataclasses
import functools
import json
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from ldm_jax import cached_data, choices, data_choices, sampling, vocabularies
from ldm_jax import experiment as ex
from ldm_jax.adapted import RECORD, Base
from ldm_jax.checkpoint.digests import write_atomically
from ldm_jax.checkpoint.manifest import Manifest, relative_path
from ldm_jax.checkpoint.store import Store
from ldm_jax.config_tree import Problems
from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import base_key, key_for
from ldm_jax.core.trees import content_digest, count
from ldm_jax.data.batches import fingerprint, in_order, stream
from ldm_jax.diffusion.sample import image_keys
from ldm_jax.donor import load_base, open_donor
from ldm_jax.embedding_choices import with_embedders
from ldm_jax.loading import LoadedFirstStage, load_first_stage
from ldm_jax.models.units import measure_units
from ldm_jax.parted import partials_of_pairs
from ldm_jax.states import open_state
from ldm_jax.text_encoders import open_encoders
from ldm_jax.train import loop, sharding
from ldm_jax.train.lora_stage import BASE
from ldm_jax.train.report import Report, say
from ldm_jax.train.state import State, to_items
from ldm_jax.train.steps import size
from ldm_jax.workdir import CONFIG, begun, lost_hosts_told, open_workdir, passed_by_all, same_everywhere


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A config with all that it names opened: data, first stage, choices, mesh."""

    config: Mapping
    experiment: ex.Experiment
    mesh: Mesh
    source: Any
    held_out: Any
    transforms: tuple
    first: LoadedFirstStage | None
    perceptual: Any
    base: Base | None = None
    fields: Mapping = dataclasses.field(default_factory=dict)
    tokenizers: Mapping = dataclasses.field(default_factory=dict)
    texts: Mapping = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def fingerprint(self) -> dict:
        """All that fixes what is trained on, as it was when the run was opened."""
        given = fingerprint(self.source, seed=self.experiment.seed, batch=self.experiment.batch, transforms=self.transforms,
                            fields=self.fields, variants=cached_data.setting(self.config, "variants"))
        digest = content_digest(self.perceptual) if self.perceptual else None
        return given | {"held_out": self.held_out.fingerprint(), "perceptual": digest}


def prepare(config: Mapping, fresh: bool = True, run=None) -> Prepared:
    """Opens and checks everything before anything is compiled or written.

    A run that is not fresh needs no config.init_from any more, but for the base of a LoRA. run: the folder of one that has begun, which
    keeps its tokenizers.

    Raises:
      UserError: all errors of the config, the data and the first stage, one line each.
    """
    ex.check_keys(config)
    problems = Problems()
    source = held_out = first = mesh = perceptual = donor = base = None
    with problems.noted():
        source, held_out = data_choices.open_source(config, "train"), data_choices.open_source(config, "test")
        data_choices.check_image(config, source)
        data_choices.check_image(config, held_out)
    with problems.noted():
        mesh = sharding.make_mesh(choices.layout_of(config))
        sharding.check_batch(config["data"]["batch"], mesh)
    if config["task"] in choices.ON_LATENTS and config["first_stage"] != "pixels":
        with problems.noted("config.first_stage"):
            if not config["first_stage"]:
                raise UserError('it must name a first stage: a run of stage 1, a step of it, a bundle, or "pixels"')
            first = load_first_stage(config["first_stage"], sharding.make_mesh())
    if config["init_from"] and (fresh or choices.adapts(config)):
        with problems.noted("config.init_from"):
            donor = open_donor(config)
    if config["task"] == "autoencoder" and config["loss"].get("perceptual") and config["loss"].get("perceptual_weights"):
        from ldm_jax.models.perceptual import load_lpips

        with problems.noted("config.loss.perceptual_weights"):
            perceptual = load_lpips(config["loss"]["perceptual_weights"])
    facts = choices.facts_of(config, source) if source is not None else choices.Facts(3, config["data"]["resolution"], 2)
    experiment, fields, tokenizers, texts = None, {}, {}, {}
    with problems.noted():
        experiment = ex.build(config, facts, first and first.stage)
    if experiment is not None and experiment.conditioner is not None:
        with problems.noted("config.conditioner" if experiment.task == "diffusion" else ""):
            tokenizers = vocabularies.open_tokenizers(config, source, run) if source is not None else {}
            fields = data_choices.fields_of(config, experiment.conditioner, experiment.factor, tokenizers)
            data_choices.check_fields(experiment.conditioner, facts, fields)
            for part in (source, held_out) if fields and source is not None else ():
                data_choices.check_image(config, part, fields, experiment.conditioner)
    if experiment is not None and experiment.task == "diffusion":
        with problems.noted("config.text_encoders"):
            texts = open_encoders(config["text_encoders"], experiment.conditioner, experiment.lora) if run is None else {}
        with problems.noted("config.sampling"):  # again, for what only the network can tell
            sampling.way_of(sampling.parts_of(experiment), experiment.sampling)
    problems.check()
    if cached_data.setting(config, "cache"):
        with problems.noted("config.data.cache"):
            source, held_out = cached_data.in_place(config, (source, held_out), first, experiment, fields)
        problems.check()
    if experiment.lora:
        with problems.noted("config.init_from"):
            base = load_base(donor, experiment, first, mesh)
        problems.check()
    return Prepared(config, experiment, mesh, source, held_out, data_choices.transforms(config), first, perceptual, base, fields,
                    tokenizers, texts)


def stage_of(job: Prepared):
    draw = functools.partial(preview_samples, job.experiment) if job.experiment.task == "diffusion" else None
    return job.experiment.stage(draw)


def preview_samples(experiment: ex.Experiment, params, frozen, batch, key):
    """Samples with the batch's conditions; image i has seed i, as `sample.py --seed=0` would give it."""
    way = sampling.way_of(sampling.parts_of(experiment), experiment.sampling)
    number, of_conditioner = size(batch), {"params": params["conditioner"]}
    encode = functools.partial(experiment.first_stage.encode, frozen["first_stage"])
    made = functools.partial(experiment.conditioner.apply, of_conditioner)
    if way.needs_parts:
        told = partials_of_pairs(made(number, batch, encode, method="pairs"), way.choice)
    else:
        told = way.told(made(batch, None, encode), made(number, batch, encode, method="null"))
    latent = sampling.generate(experiment, way, params, sampling.Inputs(told), image_keys(range(number)))
    return experiment.first_stage.decode(frozen["first_stage"], latent)


def frozen_of(job: Prepared) -> dict:
    """The trees that are passed to every step and never trained, on every device."""
    frozen = {}
    if job.experiment.task in choices.ON_LATENTS:
        frozen["first_stage"] = job.first.params if job.first else {}
    if job.base:
        frozen[BASE] = job.base.params
    if job.perceptual:
        everywhere = sharding.replicated(job.mesh)
        frozen["perceptual"] = jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, everywhere, lambda i: x[i]), job.perceptual)
    return frozen


@lost_hosts_told()
def train(config: Mapping, workdir: str) -> State:
    """Trains to config.run.steps, from the newest valid step of the workdir if there is one.

    Raises:
      UserError: a bad config, data, first stage or workdir; what is in the workdir is left as it is.
      MachineError: hosts that differ, or one that is gone.
    """
    if not workdir:
        raise UserError("--workdir is missing; for example --workdir=runs/demo/autoencoder")
    same_everywhere({"config": config})
    with passed_by_all():
        resumed = begun(workdir)
        job = prepare(config, fresh=not (epath.Path(workdir) / "checkpoints").is_dir(), run=workdir if resumed else None)
        config = with_embedders(config, job.fields)
        if job.first:  # from here on the config names it as seen from the workdir, so that both may move together
            config = dict(config) | {"first_stage": relative_path(job.first.folder, workdir)}
        if job.base:
            config = dict(config) | {"init_from": relative_path(job.base.folder, workdir)}
        config = cached_data.seen_from(config, workdir)
        job = dataclasses.replace(job, config=config)
        folder = open_workdir(workdir, config)
        if job.tokenizers and not resumed:
            vocabularies.say_cut(job.fields, job.tokenizers, job.source)
            if jax.process_index() == 0:
                vocabularies.keep(config, job.tokenizers, folder)
    same_everywhere({"data": job.fingerprint, "first_stage": job.first and job.first.digest, "base": job.base and job.base.digest})
    run, experiment = config["run"], job.experiment
    stage, key = stage_of(job), base_key(experiment.seed)
    best = tuple(run["best"]) if run["best"][0] else None
    with Store(folder / "checkpoints", keep_last=run["keep_last"], keep_every=run["keep_every"], best=best) as store:
        state, seconds = open_state(job, store, stage, key)
        with passed_by_all():
            cached_data.check_texts(job.source, experiment.conditioner, (job.base or state).params)
        first = int(state.step)
        same_everywhere({"step": first})
        if jax.process_index() == 0:
            write_atomically(folder / CONFIG, json.dumps(config, indent=1) + "\n")
        report = Report(folder, first, experiment.plan.steps, experiment.batch)
        say(f"{config['task']}: {count(state.params):,} parameters, batch {experiment.batch} on {job.mesh.devices.size} "
            f"{jax.devices()[0].platform} devices, steps {first} to {experiment.plan.steps}, in {folder}")
        saver = Saver(job, store, folder, seconds)
        try:
            state = loop.run(stage, state, frozen_of(job), loop_job(job, report, saver, key, first))
        finally:
            store.wait()
            report.close()
    return state


def loop_job(job: Prepared, report: Report, saver: "Saver", key, first: int) -> loop.Run:
    config, experiment = job.config, job.experiment
    rows = sharding.local_rows(job.mesh, experiment.batch)
    options = {"batch": experiment.batch, "rows": rows, "resolution": config["data"]["resolution"],
               "fields": job.fields, "threads": config["run"]["reader_threads"]}
    variants = cached_data.setting(config, "variants")
    batches = stream(job.source, job.transforms, seed=experiment.seed, start=first, variants=variants, **options)

    def held_out():
        return (sharding.place(batch, job.mesh) for batch in in_order(job.held_out, job.transforms, **options))

    return loop.Run(plan=experiment.plan, batches=(sharding.place(batch, job.mesh) for batch in batches), held_out=held_out,
                    preview_batch=preview_batch(job), save=saver, wait=saver.store.wait, report=report, key=key, seed=experiment.seed)


def preview_batch(job: Prepared) -> dict | None:
    """The first held-out images, as many as config.run.preview_images rounded up to the mesh, as one global batch."""
    ways = job.mesh.shape["data"] * job.mesh.shape["fsdp"]
    wanted = min(job.config["run"]["preview_images"], len(job.held_out))
    if not wanted or not job.experiment.plan.preview_every:
        return None
    size = -(-wanted // ways) * ways
    rows = sharding.local_rows(job.mesh, size)
    batch = next(in_order(job.held_out, job.transforms, batch=size, rows=rows, resolution=job.config["data"]["resolution"],
                          fields=job.fields))
    return sharding.place(batch, job.mesh)


class Saver:
    """Saves a state with the records that explain it."""

    def __init__(self, job: Prepared, store: Store, folder: epath.Path, seconds: float):
        self.job, self.store, self.folder = job, store, folder
        self.before, self.began = seconds, time.monotonic()
        self.encode = jax.jit(self._drawn)

    def __call__(self, state: State, step: int, metrics: Mapping[str, float]) -> None:
        job, experiment = self.job, self.job.experiment
        reference = job.first.reference(self.folder) if job.first else None
        manifest = Manifest(task=experiment.task, config=job.config | {"facts": dataclasses.asdict(experiment.facts)},
                            parameter_count=count(state.params), step=step, first_stage=reference, latent_units=self.units(state))
        progress = {"step": step, "images": step * experiment.batch, "seconds": round(self.before + time.monotonic() - self.began, 1)}
        records = {"data": {"next": step, "fingerprint": job.fingerprint}, "progress": progress, "manifest": manifest.to_json()}
        if job.base:
            records[RECORD] = job.base.record(job.config["init_from"])
        self.store.save(step, to_items(state), records, metrics)

    def _drawn(self, params, image, number):
        """Raw latents as the diffusion side is given them: posterior draws for KL, with keys that are the same at every save."""
        keys = key_for(base_key(self.job.experiment.seed), "units", step=number, example=jnp.arange(image.shape[0]))
        return self.job.experiment.autoencoder.apply({"params": params}, image, keys, method="encode")

    def units(self, state: State) -> dict | None:
        """The latent units of a first stage, over the first images of the training split, with the weights that inference uses."""
        job = self.job
        if job.experiment.task != "autoencoder":
            return None
        params = state.params if state.ema is None else state.ema
        number = min(job.config["latent_units"]["images"], len(job.source))
        options = {"batch": job.experiment.batch, "rows": sharding.local_rows(job.mesh, job.experiment.batch)}
        batches = in_order(job.source, job.transforms, count=number, resolution=job.config["data"]["resolution"], **options)
        placed = (sharding.place(batch, job.mesh) for batch in batches)
        pairs = ((loop.fetch(self.encode(params, batch["image"], n)), loop.fetch(batch["weight"])) for n, batch in enumerate(placed))
        try:
            return measure_units(pairs, job.experiment.autoencoder.bottleneck.common_unit).to_json()
        except UserError as error:
            say(f"{error}; step {int(state.step)} is saved without latent units, and no diffusion model can be trained on it")
            return None
