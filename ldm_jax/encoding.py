"""`cli.encode`: what a run's frozen networks make of every record of its data, written as a cache."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np

from ldm_jax import cached_data, launch, states
from ldm_jax.checkpoint.digests import whole_folder
from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import base_key
from ldm_jax.data.cache import SPLITS, PartWriter, text_of, write_manifest
from ldm_jax.data.cached import Reading, each_shown, in_groups
from ldm_jax.data.transforms import to_float
from ldm_jax.models.bottleneck import MOMENTS
from ldm_jax.models.text_states import all_states, states_of
from ldm_jax.train import sharding
from ldm_jax.train.loop import fetch
from ldm_jax.workdir import refuse_remote


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a cache is to hold: the images too, latents and states in "float32" or "bfloat16"; batch: images encoded at a time, 0 as many
    as config.data.batch."""

    images: bool = False
    dtype: str = "float32"
    batch: int = 0


def encode(config: Mapping, out: str, wanted: Wanted = Wanted(), progress: Callable | None = None) -> str:
    """Writes the cache of a config's data to the folder `out`, whole or not at all, and says what it holds.

    Args:
      progress: (total, unit) -> a context manager that gives a function of how many are done.

    Raises:
      UserError: all that is wrong with the config, as for training; a folder that holds something; no number of variants.
    """
    refuse_remote(out, "--out")
    if jax.process_count() > 1:
        raise UserError("a cache is written by one process; run it on one host")
    config = dict(config) | {"data": dict(config["data"]) | {"cache": ""}} if isinstance(config.get("data"), Mapping) else config
    with whole_folder(pathlib.Path(out)) as folder:
        job = launch.prepare(config)
        cached_data.check_task(config, job.first)
        made_of = cached_data.made_of(config, (job.source, job.held_out), job.first)
        encoder = _Encoder(job, wanted)
        digest = cached_data.encoders_digest(encoder.conditioner, encoder.params) if encoder.texts else None
        total = len(job.source) * made_of["variants"] + len(job.held_out)
        parts, done = {}, 0
        with progress(total, "records") if progress else contextlib.nullcontext(lambda number: None) as tell:
            for split, source in zip(SPLITS, (job.source, job.held_out)):
                seed, variants = (config["seed"], made_of["variants"]) if split == "train" else (None, 1)
                threads = config["run"]["reader_threads"]
                rows = each_shown(source, Reading(job.transforms, config["data"]["resolution"], seed, variants, threads))
                for number, written in encoder.write(rows, folder, split):
                    parts |= written
                    tell(done + number)
                done += len(source) * variants
        keeps = {"image": wanted.images, "text": encoder.texts, "dtype": wanted.dtype}
        write_manifest(folder, made_of | {"encoders": digest}, keeps, parts)
    return _told(out, parts, made_of, keeps)


def _told(out: str, parts: Mapping, made_of: Mapping, keeps: Mapping) -> str:
    shards = [shard for part in parts.values() for shard in part]
    size = sum(shard["bytes"] for shard in shards)
    train, test = (sum(shard["records"] for shard in parts[split]) for split in SPLITS)
    held = " and ".join(["latents", *["images"] * keeps["image"], *["states of texts"] * bool(keeps["text"])])
    variants = made_of["variants"]
    use = f"--config.data.cache={out}" + (f" --config.data.variants={variants}" if made_of["seed"] is not None else "")
    return (f"{out}: {held} of {train // variants} records" + (f" in {variants} variants" if variants > 1 else "")
            + f" and of {test} held out, {size / 2**20:.1f} MiB in {len(shards)} files. To train from it: {use}")


class _Encoder:
    """The frozen networks of a job, over batches of one size."""

    def __init__(self, job: launch.Prepared, wanted: Wanted):
        self.job, self.wanted, self.conditioner = job, wanted, job.experiment.conditioner
        ways = job.mesh.shape["data"] * job.mesh.shape["fsdp"]
        self.batch = -(-(wanted.batch or job.experiment.batch) // ways) * ways
        stage = job.first.stage
        self.moments = jax.jit(lambda params, batch: stage.moments(params, batch["image"]))
        self.texts = cached_data.kept_texts(self.conditioner, job.fields, (job.source, job.held_out))
        self.params = None
        if self.texts:
            self.params = states.conditioner_params(job, launch.stage_of(job), base_key(job.experiment.seed))
            self.states = jax.jit(self._states)

    def _states(self, params, ids):
        """The states of each text whose encoder is frozen, of ids by their field."""
        parts = getattr(self.conditioner, "parts", None)
        told = {}
        for i, part in enumerate(parts or (self.conditioner,)):
            own = [name for name in getattr(part, "specs", {}) if name in ids]
            if own:
                tree = params["conditioner"][f"parts_{i}"] if parts else params["conditioner"]
                told |= part.clone(parent=None).apply({"params": tree}, {name: ids[name] for name in own}, method=all_states)
        return told

    def write(self, rows: Iterator, folder: pathlib.Path, split: str) -> Iterator[tuple[int, dict]]:
        """Writes the records of a split; after each batch, (how many are done, {part: its shards so far})."""
        narrow = self.wanted.dtype == "bfloat16"
        latents = PartWriter(folder, split, MOMENTS if narrow else ())
        texts = PartWriter(folder, text_of(split), self._names() if narrow else ())
        done, waiting = 0, []
        for group in in_groups(rows, self.batch):
            made = self._apply(self.moments, self.job.first.params, {"image": np.stack([to_float(shown["image"]) for _, shown in group])})
            for i, (place, shown) in enumerate(group):
                kept = {key: value for key, value in shown.items() if key != "image" or self.wanted.images}
                latents.write(kept | {name: array[i] for name, array in made.items()}, place)
            if self.texts:
                waiting += [(place, self._ids(shown)) for place, shown in group if place[1] == 0]
            while len(waiting) >= self.batch:
                waiting = self._write_texts(texts, waiting)
            done += len(group)
            yield done, {split: latents.shards}
        while waiting:
            waiting = self._write_texts(texts, waiting)
        latents.close()
        texts.close()
        yield done, {split: latents.shards} | ({text_of(split): texts.shards} if self.texts else {})

    def _ids(self, shown: Mapping) -> dict[str, np.ndarray]:
        made = {}
        for maker in self.job.fields.values():
            if set(maker.gives) & set(self.texts):
                made |= maker(shown, np.random.default_rng(0))
        return {name: made[name] for name in self.texts}

    def _write_texts(self, writer: PartWriter, waiting: list) -> list:
        """Writes the states of the first batch that waits; the rest."""
        now = waiting[:self.batch]
        made = self._apply(self.states, self.params, {name: np.stack([ids[name] for _, ids in now]) for name in self.texts})
        for i, (place, _) in enumerate(now):
            writer.write({name: array[i] for name, array in made.items()}, place)
        return waiting[self.batch:]

    def _names(self) -> tuple[str, ...]:
        return tuple(field for name in self.texts for field in states_of(name))

    def _apply(self, function, params, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A jitted function over rows, filled up to the batch by the last of them: its arrays for these rows, on the host."""
        number = len(next(iter(arrays.values())))
        whole = {name: np.concatenate([rows, np.repeat(rows[-1:], self.batch - number, axis=0)]) for name, rows in arrays.items()}
        made = function(params, sharding.place(whole, self.job.mesh))
        return {name: fetch(array)[:number] for name, array in made.items()}


def with_variants(config: Mapping, number: int | None) -> Mapping:
    """The config with that number in the place of config.data.variants; None leaves it."""
    if number is None or not isinstance(config.get("data"), Mapping):
        return config
    return dict(config) | {"data": dict(config["data"]) | {"variants": number}}
