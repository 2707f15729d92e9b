"""The Python API: `load` a trained model, then encode, decode and sample with it."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ldm_jax import choices
from ldm_jax import experiment as ex
from ldm_jax.adapted import open_model, with_lora
from ldm_jax.adapted import parse_lora as parse_lora
from ldm_jax.asked import ASKED, Job, given_of, prepare, spread
from ldm_jax.checkpoint.manifest import Manifest
from ldm_jax.config_tree import from_json
from ldm_jax.core.choose import nearest
from ldm_jax.core.errors import UserError
from ldm_jax.core.shapes import expect
from ldm_jax.core.trees import content_digest, count
from ldm_jax.core.types import Condition
from ldm_jax.diffusion.guidance import Guided
from ldm_jax.diffusion.inversion import inversion_table, start_inversion
from ldm_jax.diffusion.sample import advance, image_keys
from ldm_jax.loading import Reading, load_first_stage, trained_on
from ldm_jax.models.first_stage import FirstStage
from ldm_jax.ops.images import from_uint8, to_uint8
from ldm_jax.precision import check_dtype, in_dtype, narrowed
from ldm_jax.sampling import KEYS, generate, parts_of
from ldm_jax.sampling import NetworkCall as NetworkCall
from ldm_jax.tiles import PART, Share, decoded, encoded
from ldm_jax.tokenized import open_tokenizers
from ldm_jax.told import told
from ldm_jax.train.loop import fetch
from ldm_jax.train.sharding import batch_sharding, make_mesh

WEIGHTS = ("ema", "raw")

@dataclasses.dataclass(frozen=True)
class Model:
    """A trained model with its parameters on the devices of `mesh`.

    params: of the diffusion model {"network", "conditioner"}, of the classifier {"network"}, or of the autoencoder.
    first_params: of the first stage. digest: content digest of `params` and, beside them, of the first stage's.
    tokenizers: one a text encoder, where it has any; see `with_tokenizer`. loras: what `with_lora` added, a record each.
    """

    experiment: ex.Experiment
    first_stage: FirstStage
    params: Any = dataclasses.field(repr=False)
    first_params: Any = dataclasses.field(repr=False)
    manifest: Manifest = dataclasses.field(repr=False)
    digest: str
    mesh: Mesh = dataclasses.field(repr=False)
    tokenizers: tuple = dataclasses.field(default=(), repr=False)
    loras: tuple[dict, ...] = ()

    def describe(self) -> str:
        """One paragraph: task, sizes, latent, training record."""
        facts, manifest = self.experiment.facts, self.manifest
        side, _, channels = self.experiment.latent_shape
        lines = [f"{manifest.task}: images {facts.resolution}x{facts.resolution}x{facts.channels}, latents {side}x{side}x{channels}, "
                 f"{count(self.params):,} parameters, step {manifest.step}, digest {self.digest[:12]}"]
        if facts.classes:
            lines.append(f"{facts.classes} classes")
        return "; ".join(lines)

    def condition(self, labels: Sequence[int] | None = None, **given) -> Guided:
        """What samples are told, and what guidance steps away from.

        What is dropped in training may be left out: the samples are then told nothing of it (unconditional; of an image that is left
        out, `size` says the size where it is not the trained one). "negative_" before a name (negative_prompts, negative_labels, ...)
        is told in the null's place.

        Args (those that this model reads; each of N examples, or of one for all):
          labels: classes. map: of classes, [N, H, W]. boxes_tokens, embeddings: as they are.
          boxes, box_labels: [n, 4] and [n] of one layout, or a list of N; left, top, right, bottom in 0 .. 1 of the whole image. crop: the
            box of it that is shown.
          prompts: texts; (word:1.2) and [word] weigh. long_prompts: "one" window, where a text may lose its end, or "many",
            or "refused", where it may not.
            clip_skip: how many layers earlier than the model has them the text encoder's states are taken.
          image, mask: what is inpainted, images as in `encode`; mask [N, H, W], from 0.5 on made anew.
          depth: [N, H, W], any unit, near is large. low_res: small images, of the latents' size; noise_level: whole numbers, how much
            they are noised first, with noise_seeds (0, 1, ...).
          original_size, crop, target_size: (width, height), (left, top) and (width, height); by default `size`, uncropped, and by
            default of that the trained size. aesthetic: a rating (6; the null's is 2.5).

        Raises:
          UserError: what is out of range, missing, or not for this model, by its name.
        """
        self.need_diffusion("a condition")
        return told(self, {"labels": labels} | given)

    def with_tokenizer(self, *folders) -> "Model":
        """The same model with its tokenizers, from local folders: one a text encoder, or one for all. Raises UserError: they do not fit."""
        self.need_diffusion("a tokenizer")
        return dataclasses.replace(self, tokenizers=open_tokenizers(self.experiment.conditioner, folders))

    def null(self, number: int) -> Condition:
        """The condition of `number` samples that are told nothing. Raises UserError: what this model must always be told."""
        self.need_diffusion("a condition")
        return told(self, {}, number).given

    def sampling(self, **changes) -> dict:
        """The model's own way to sample, with what is not None changed: sampler, grid, threshold (a name or a section each), steps,
        guidance (a number or a section).

        Raises:
          UserError: any other name; what belongs to a sampler or a grid stands in its section.
        """
        self.need_diffusion("sampling")
        for name in changes.keys() - set(KEYS):
            raise UserError(f"{name}={changes[name]!r}: sampling takes {nearest(name, KEYS + ASKED)}; a key of a sampler or a grid "
                            'stands in its section, as sampler={"name": "ddim", "eta": 1.0}')
        return dict(self.experiment.sampling) | {name: value for name, value in changes.items() if value is not None}

    def sample(self, condition: Condition | Guided | None = None, *, seeds: Sequence[int], batch_size: int = 16,
               progress: Callable[[int], None] | None = None, rounding: str = "round", **asked) -> np.ndarray:
        """Images uint8 [N, H, W, C]; image i depends on seeds[i] and on its condition alone, not on its batch.

        Args:
          condition: as of `condition`, of N examples, or of one for all; None is the null.
          seeds: N whole numbers from 0 to 2^32 - 1.
          batch_size: images at a time, over all devices.
          progress: called with the number of images done after each batch.
          rounding: "round", or "truncate" as the LDM scripts do.
          **asked: sampler, grid, steps, guidance, threshold (see `sampling`), and what `Asked` lists: negative, guide,
            guide_condition, init, strength, mask, noise, every, callback, size, tile, decode_batch, window, refiner,
            refiner_condition, handover.

        Raises:
          UserError: an unknown name, a number out of range, conditions that are not N.
          NumbersWentBad: an image that is not finite.
        """
        return np.concatenate(list(self.batches(condition, seeds=seeds, batch_size=batch_size, progress=progress, rounding=rounding,
                                                **asked)))

    def batches(self, condition: Condition | Guided | None = None, *, seeds: Sequence[int], batch_size: int = 16,
                progress: Callable[[int], None] | None = None, rounding: str = "round", **asked) -> Iterator[np.ndarray]:
        """The images of `sample`, a batch at a time: uint8 [<= batch_size, H, W, C], in the seeds' order.

        Checks at once, makes them as they are asked for.
        """
        seeds = list(seeds)
        if not seeds or batch_size < 1:
            raise UserError(f"{len(seeds)} seeds, batch_size={batch_size}: expected at least one image, and one at a time")
        return self._made(prepare(self, condition, len(seeds), asked), seeds, batch_size, progress, rounding)

    def _made(self, job: Job, seeds, batch_size, progress, rounding) -> Iterator[np.ndarray]:
        size = self.round_up(min(batch_size, len(seeds)))
        for low in range(0, len(seeds), size):
            high = min(low + size, len(seeds))
            places = np.minimum(np.arange(low, low + size), len(seeds) - 1)
            inputs = jax.tree.map(lambda leaf: self._split(leaf[places]), job.inputs)  # noqa: B023 (used at once)
            keys = self._split_keys(image_keys([seeds[i] for i in places]))
            latent = generate(self.experiment, job.way, job.params, inputs, keys, job.watch(low, high - low))
            images = to_uint8(decoded(self.first_stage, self.first_params, latent, self._share(job.share), self._split)[:high - low],
                              rounding)
            yield job.finished(images, places[:high - low])
            if progress:
                progress(high)

    def invert(self, images: np.ndarray, condition: Condition | Guided | None = None, *, steps: int | None = None, grid=None) -> np.ndarray:
        """The noise [N, h, w, c] that a deterministic sampler would make these images of.

        `sample(..., noise=it, guidance=1)` gives them back, to the order of its steps. images as in `encode`; steps and grid as in
        `sampling`.
        """
        section = self.sampling(steps=steps, grid=grid)
        latents = self.encode(images)
        objective, told = self.experiment.objective, self.spread(condition, len(latents))
        table = inversion_table(objective.schedule, section["steps"], section["grid"], time_input=objective.time_input)
        denoise, done = parts_of(self.experiment).denoise(), []
        for places in np.array_split(np.arange(len(latents)), -(-len(latents) // PART)):
            rows = np.resize(places, self.round_up(len(places)))
            part, keys = (jax.tree.map(lambda leaf: self._split(leaf[rows]), (latents, told)),  # noqa: B023 (used at once)
                          self._split_keys(image_keys(rows)))
            state = advance(denoise, self.params, table, start_inversion(table, part[0], keys), part[1])
            done.append(fetch(state.x)[:len(places)])
        return np.concatenate(done)

    def encode(self, images: np.ndarray, *, tile: int | None = None, batch_size: int = PART) -> np.ndarray:
        """uint8 [N, H, W, C], or float in [-1, 1] -> unit-variance latents [N, h, w, c] (KL: the mean; VQ: before quantisation).

        tile, batch_size: as in `decode`; a tile is counted in latents.
        """
        images = np.asarray(images)
        images = from_uint8(images) if images.dtype == np.uint8 else images.astype(np.float32)
        if not np.isfinite(images).all() or np.abs(images).max(initial=0) > 1.001:
            raise UserError("images: expected uint8, or float in [-1, 1]")
        return encoded(self.first_stage, self.first_params, images, Share(tile, batch_size))

    def decode(self, latents: np.ndarray, rounding: str = "round", *, tile: int | None = None, batch_size: int = PART) -> np.ndarray:
        """Unit-variance latents [N, h, w, c] -> images uint8 [N, H, W, C].

        Args:
          tile: the side, in latents, of overlapping tiles that are decoded one by one and blended, for images that do not fit whole;
            group norms and attention see a tile alone, so that pixels differ by a little. None decodes whole.
          batch_size: images at a time; 1 takes the least memory.
        """
        expect("latents", np.asarray(latents), "N h w c", c=self.experiment.latent_shape[2])
        return to_uint8(decoded(self.first_stage, self.first_params, np.asarray(latents, np.float32), Share(tile, batch_size)), rounding)

    def spread(self, condition: Condition | Guided | None, number: int) -> Condition:
        """What is given to `number` images, on the host, from one for each, or one for all; None is the null."""
        return spread(given_of(self.null(1) if condition is None else condition), number, "condition")

    def _split(self, array) -> jax.Array:
        array = np.asarray(fetch(array) if isinstance(array, jax.Array) else array)
        return jax.make_array_from_callback(array.shape, batch_sharding(self.mesh), lambda index: array[index])

    def _split_keys(self, keys: jax.Array) -> jax.Array:
        return jax.random.wrap_key_data(self._split(jax.random.key_data(keys)), impl="threefry2x32")

    def _share(self, share: Share) -> Share:
        return share if share.images is None else dataclasses.replace(share, images=self.round_up(share.images))

    def round_up(self, number: int) -> int:
        """The next batch size that all devices can share."""
        ways = self.mesh.devices.size
        return -(-max(number, 1) // ways) * ways

    def in_dtype(self, dtype: str) -> "Model":
        """This model computing in "bfloat16" or "float32", in the place of the one given; see `load`. After its LoRAs."""
        check_dtype(dtype)
        return in_dtype(self, dtype)

    def with_lora(self, path, scale: float = 1.0) -> "Model":
        """This model with `scale` times a LoRA added to its parameters: of a run that trained one, or a file of kohya's or diffusers'.

        Several are added one after the other.

        Raises:
          UserError: no LoRA there, or one that does not fit this model: what differs is named.
        """
        return with_lora(self, path, scale)

    def need_diffusion(self, what: str) -> None:
        """Raises UserError unless the model can sample."""
        if self.experiment.task != "diffusion":
            kind = {"autoencoder": "a first stage", "classifier": "a classifier of noisy latents"}[self.experiment.task]
            mend = {"autoencoder": "Train a diffusion model on it with --config.first_stage",
                    "classifier": "Let it guide a diffusion model of the same first stage, with --guide"}[self.experiment.task]
            raise UserError(f"{what}: this is {kind} ({self.manifest.task}); it can encode and decode. {mend}")


def load(path, weights: str = "ema", mesh: Mesh | None = None, dtype: str | None = None, *, kind: str = "", variant: str = "") -> Model:
    """A model from a run folder, one step of it, a bundle, a folder of diffusers, or a CompVis file; both stages, by the manifest.

    Args:
      weights: "ema", the moving average where the run or the file kept one, or "raw".
      mesh: where to compute; by default all devices.
      dtype: what to compute in, "bfloat16" (kernels are then kept in it too, in half the memory) or "float32"; None is the model's own.
      kind: of the zoo (docs/published.md), for a file whose tensors fit several; variant: of a folder's weights, as "fp16".

    Raises:
      UserError: nothing there, damaged, of another architecture, or with a first stage that has changed since.
    """
    if weights not in WEIGHTS:
        raise UserError(f"weights={weights!r}: expected one of {', '.join(WEIGHTS)}")
    check_dtype(dtype)
    mesh = make_mesh() if mesh is None else mesh
    opened = open_model(path, Reading(kind, variant), weights)
    if opened.manifest.task == "embedding":
        raise UserError(f"{path}: this is an embedder of images and texts, and makes neither; open it with ldm.load_clip, or give it to "
                        "sample.py as --embedder; how well it matches pairs is in its run's metrics.jsonl")
    manifest = dataclasses.replace(opened.manifest, weights=opened.which(weights))
    config = from_json(manifest.config)
    facts = choices.Facts(**config.pop("facts"))
    if manifest.task == "autoencoder":
        first = load_first_stage(opened, mesh, weights)
        return in_dtype(Model(ex.build(config, facts), first.stage, first.params, first.params, manifest, first.digest, mesh), dtype)
    first = trained_on(opened, mesh)
    experiment = ex.build(config, facts, first and first.stage)
    abstract = ex.parameter_shapes(experiment)
    lean = dtype == "bfloat16" and opened.found.kind == "bundle"  # read array by array, so that the wide ones are never there together
    params = opened.params(weights, abstract, mesh, functools.partial(narrowed, dtype=dtype) if lean else None)
    held = opened.trees["model"] if lean else jax.device_get(params)
    digest = content_digest({"model": held} | ({"first_stage": jax.device_get(first.params)} if first else {}))
    model = in_dtype(Model(experiment, experiment.first_stage, params, first.params if first else {}, manifest, digest, mesh), dtype)
    return model.with_tokenizer(*opened.tokenizers) if opened.tokenizers else model

