"""What a call of `Model.sample` asks for beside the model's own way: made, checked against the model, and spread over its images."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.core.types import Condition
from ldm_jax.diffusion.guidance import Guided
from ldm_jax.diffusion.guiding import ByClassifier, FromGuide
from ldm_jax.ops.images import to_uint8
from ldm_jax.parted import partials_of
from ldm_jax.partners import check_guide, refined, refiner_told
from ldm_jax.sampling import Inputs, Watch, Way, parts_of, way_of
from ldm_jax.sizes import latent_shape, window_of
from ldm_jax.tiles import Share
from ldm_jax.train.loop import fetch


@dataclasses.dataclass(frozen=True)
class Asked:
    """The wishes beside the sampling section; all are for N images, one for each or one for all.

    Fields:
      negative: a Condition (or what `Model.condition` gives) in the null's place, to be steered away from.
      guide: a second Model of the same first stage and schedule: a weaker one of task "diffusion" for autoguidance, or one of
        task "classifier". A guidance that is a number is then its weight.
      guide_condition: what the guide is told: its own Condition (autoguidance), or the labels (classifier).
      init: images as in `Model.encode`, to start from.
      strength: in (0, 1], the share of the steps that is run from init; 1, the default with a mask, makes all anew.
      mask: [H, W] or [N, H, W], bool or 0 .. 1: from 0.5 on an image is made anew, below it stays as init, to the pixel.
      paste: (images, mask), as init and mask: the images' pixels are put over the samples where the mask stays, and nothing else is done
        with them. For models that are told the masked image, whose decoder blurs what was known; a mask with init does it too.
      noise: [N, h, w, c] to start from instead of the seeds' draws; as of `Model.invert`.
      every, callback: callback(Glimpse) after each `every` network evaluations of a batch.
      size: (width, height) of the images in pixels; None is that of the condition's image, and else the trained one. init and mask
        have it too.
      tile, decode_batch: images are decoded (and init encoded) by tiles of this side in latents, and so many at a time; see
        `Model.decode`. None is whole, and all of a batch.
      window: the side in latents, or (side, overlap), or a `windows.Window`: each evaluation is made on windows that overlap and are
        blended, for sizes that are larger than trained. None is whole.
      refiner: a second Model of the same first stage and schedule, for the last rows of the same table.
      refiner_condition: what the refiner is told, its own Condition.
      handover: the share of the way, in the schedule's time, that is done when the refiner takes over.
    """

    negative: Condition | None = None
    guide: Any = None
    guide_condition: Any = None
    init: Any = None
    strength: float | None = None
    mask: Any = None
    paste: Any = None
    noise: Any = None
    every: int = 1
    callback: Callable | None = None
    size: tuple[int, int] | None = None
    tile: int | None = None
    decode_batch: int | None = None
    window: Any = None
    refiner: Any = None
    refiner_condition: Any = None
    handover: float | None = None


ASKED = tuple(field.name for field in dataclasses.fields(Asked))


@dataclasses.dataclass(frozen=True)
class Glimpse:
    """A batch under way: `row` of `rows` evaluations are done; the noisy latents [b, h, w, c] of images first, first + 1, ..."""

    row: int
    rows: int
    first: int
    latents: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """A call made ready: `inputs` of all N images on the host, and what stays of init: images [1 or N, H, W, C], made anew there."""

    way: Way
    params: Any
    inputs: Inputs
    asked: Asked
    kept: tuple[np.ndarray, np.ndarray] | None
    share: Share

    def watch(self, first: int, count: int) -> Watch | None:
        """What is called while a batch of `count` images from `first` is made; None where nothing is."""
        callback = self.asked.callback
        if callback is None:
            return None
        return Watch(self.asked.every, lambda row, rows, latents: callback(Glimpse(row, rows, first, fetch(latents)[:count])))

    def finished(self, images: np.ndarray, places: np.ndarray) -> np.ndarray:
        """The images uint8 [b, H, W, C] of these places, with what was known pasted in."""
        if self.kept is None:
            return images
        init, anew = (np.broadcast_to(x, (int(places.max()) + 1, *x.shape[1:]))[places] if len(x) == 1 else x[places] for x in self.kept)
        return np.where(anew[..., None], images, init)


def prepare(model, condition: Condition | Guided | None, number: int, given: Mapping) -> Job:
    """Checks everything before anything is compiled.

    Args:
      model: a pipeline.Model of task "diffusion".
      given: sampling keys and fields of Asked, by name.

    Raises:
      UserError: an unknown name, wishes that do not go together, or that this model or this guide cannot fulfil.
    """
    asked = Asked(**{name: value for name, value in given.items() if name in ASKED})
    changes = {name: value for name, value in given.items() if name not in ASKED}
    section = model.sampling(**changes)
    way = way_for(model, asked, section, changes)
    _check_alone(asked, way)
    way, share = refined(model, asked, way, section), Share(asked.tile, asked.decode_batch)
    shape = latent_shape(model.experiment, asked.size, getattr(getattr(condition, "given", condition), "image", None),
                         asked.refiner.experiment.network.factor if way.refiner else 1)
    clean, keep, kept = _start(model, asked, number, shape)
    kept = kept if asked.paste is None else _pasted(model, asked, number, shape)
    noise = None if asked.noise is None else np.asarray(asked.noise, np.float32)
    if noise is not None and noise.shape[1:] != shape:
        raise UserError(f"noise: expected [N, {', '.join(map(str, shape))}], got {list(noise.shape)}")
    null = model.spread(_null(model, condition, asked), number) if way.needs_null else None
    given = partials_of(model, condition, way.choice) if way.needs_parts else condition
    told = way.told(model.spread(given, number), null, _guide_told(asked, way, number))
    inputs = Inputs(told, *(None if x is None else spread(x, number, what) for x, what in
                            ((clean, "init"), (keep, "mask"), (noise, "noise"))), refiner_told(asked, way, number), shape)
    params = {"model": model.params, "guide": asked.guide.params} if way.needs_guide else model.params
    params = {"base": params, "refiner": asked.refiner.params} if way.refiner else params
    return Job(way, params, inputs, asked, kept, share)


def way_for(model, asked: Asked, section: Mapping, changes: Mapping) -> Way:
    """The way of a section, with the guide that was asked for.

    Raises:
      UserError: as `way_of`; a guide that does not fit the model, that nothing reads, or whose weight was not told.
    """
    guidance = section["guidance"]
    if asked.guide is not None:
        check_guide(model, asked.guide)
        if changes.get("guidance") is None:
            raise UserError("guide: say how strongly it guides, as guidance=2.0 or a section")
        guidance = by_guide(asked.guide, guidance)
    parts = parts_of(model.experiment, asked.guide and asked.guide.experiment, window_of(asked.window, model, asked.guide))
    way = way_of(parts, {**section, "guidance": guidance}, 1.0 if asked.strength is None else asked.strength)
    reads = {ByClassifier: "classifier", FromGuide: "diffusion"}.get(type(way.choice))
    if asked.guide is not None and asked.guide.experiment.task != reads:
        raise UserError(f"guide: a model of task {asked.guide.experiment.task}, and guidance '{guidance.get('name')}' reads "
                        f"{'none' if reads is None else 'one of task ' + reads}")
    return way


def by_guide(guide, guidance) -> Mapping:
    """The section of a guidance by this guide, from its weight or a section."""
    if isinstance(guidance, Mapping):
        return guidance
    return {"name": "classifier" if guide.experiment.task == "classifier" else "autoguidance", "weight": guidance}


def told_to_guide(guide, labels):
    """What a guide is told of the labels [N] that were asked for, or None: the labels, or a weaker model's own Condition of them."""
    if guide.experiment.task != "diffusion":
        return labels
    return guide.condition(labels if "label" in guide.experiment.conditioner.fields else None)


def _check_alone(asked: Asked, way: Way) -> None:
    """Raises UserError for wishes without what they belong to."""
    if isinstance(asked.every, bool) or not isinstance(asked.every, int) or asked.every < 1:
        raise UserError(f"every={asked.every}: expected a whole number of evaluations between two calls, at least 1")
    if asked.init is None and (asked.strength is not None or asked.mask is not None):
        raise UserError(f"{'strength' if asked.strength is not None else 'mask'}: there is no image to start from; give init too")
    if asked.init is not None and asked.strength is None and asked.mask is None:
        raise UserError("init: give strength too, in (0, 1]: the share of the steps that is run from it; or a mask")
    if asked.noise is not None and asked.init is not None:
        raise UserError("noise and init: a sample starts from one of them")
    if asked.guide_condition is not None and asked.guide is None:
        raise UserError("guide_condition: there is no guide to be told it")
    for name in ("init", "noise", "callback"):
        if way.method is not None and getattr(asked, name) is not None:
            raise UserError(f"{name}: this sampler has no rows, it starts from its own noise and is not watched; take a sampler of a "
                            "table, as ddim")
    if asked.negative is not None and way.needs_parts:
        raise UserError("negative: guidance 'each' steps away from each part's own; say it as model.condition(negative_labels=[...])")
    if asked.negative is not None and not way.needs_null:
        raise UserError("negative: without classifier-free guidance nothing steps away from it; set guidance above 1")


def _start(model, asked: Asked, number: int, shape: tuple[int, int, int]):
    """(latents to start from, 1 where they stay, (images, where they are made anew)), each None where it is not asked for."""
    if asked.init is None:
        return None, None, None
    images = np.asarray(asked.init)
    f = model.experiment.autoencoder.factor
    size = (shape[0] * f, shape[1] * f, model.experiment.facts.channels)
    if images.ndim != 4 or images.shape[1:] != size:
        raise UserError(f"init: expected images [N, {', '.join(map(str, size))}], got {list(images.shape)}")
    if asked.mask is None:
        return model.encode(images, tile=asked.tile), None, None
    anew = _anew(asked.mask, size, number)
    clean, keep = model.encode(images, tile=asked.tile), keep_of(anew, f)
    if asked.strength in (None, 1):  # what is made anew starts from noise alone
        clean = clean * keep
    return clean, keep, (images if images.dtype == np.uint8 else to_uint8(images), anew)


def _anew(mask, size: tuple[int, ...], number: int) -> np.ndarray:
    """bool [1 or N, H, W], True where a mask makes anew images of this size."""
    given, mask = mask, np.asarray(mask)
    if mask.dtype.kind not in "biuf":
        raise UserError(f"mask: expected numbers from 0 to 1, got {given!r:.40}")
    mask = mask[None].astype(np.float32) if mask.ndim == 2 else mask.astype(np.float32)
    if mask.ndim != 3 or mask.shape[1:] != size[:2] or len(mask) not in (1, number) or not (0 <= mask.min() and mask.max() <= 1):
        raise UserError(f"mask: expected [{size[0]}, {size[1]}] or one for each image, from 0 (stays) to 1 (made anew); got "
                        f"{list(mask.shape)} from {mask.min(initial=0):g} to {mask.max(initial=0):g}")
    return mask >= 0.5


def _pasted(model, asked: Asked, number: int, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8, where they are not pasted) of `paste`.

    Raises:
      UserError: no two arrays of the images' size; a mask with init, which says the same.
    """
    if asked.mask is not None or not isinstance(asked.paste, tuple | list) or len(asked.paste) != 2:
        raise UserError("paste: expected (images, mask), and no mask beside init, which pastes by itself")
    images, f = np.asarray(asked.paste[0]), model.experiment.autoencoder.factor
    size = (shape[0] * f, shape[1] * f, model.experiment.facts.channels)
    if images.ndim != 4 or images.shape[1:] != size or len(images) not in (1, number):
        raise UserError(f"paste: expected images [{number}, {', '.join(map(str, size))}], got {list(images.shape)}")
    return images if images.dtype == np.uint8 else to_uint8(images), _anew(asked.paste[1], size, number)


def keep_of(anew: np.ndarray, factor: int) -> np.ndarray:
    """bool [N, H, W], True where made anew -> float32 [N, h, w, 1]: 1 where no pixel of the f x f under a latent is made anew."""
    n, high, wide = anew.shape
    blocks = anew.reshape(n, high // factor, factor, wide // factor, factor)
    return 1 - blocks.any((2, 4)).astype(np.float32)[..., None]


def _null(model, condition, asked: Asked) -> Condition | None:
    """What guidance steps away from.

    Raises:
      UserError: the model never learned a null, and nothing else was given.
    """
    conditioner = model.experiment.conditioner
    null = getattr(condition, "null", None) if asked.negative is None else asked.negative
    if null is None and not (conditioner.fields and conditioner.drop):
        raise UserError("guidance: this model was trained without a condition that is dropped, so it knows no null to step away from; "
                        "set guidance=1")
    return null


def given_of(condition):
    """What is given, of a Condition or of a Guided."""
    return condition.given if isinstance(condition, Guided) else condition


def _guide_told(asked: Asked, way: Way, number: int):
    """What the guide is told: labels int32 [N], or the guide's Condition of N."""
    if not way.needs_guide:
        return None
    guide, told = asked.guide, asked.guide_condition
    if guide.experiment.task != "classifier":
        if told is None and guide.experiment.conditioner.fields:
            raise UserError("guide_condition: say what the guide is told, as guide.condition(labels=[...]); guide.null(1) for nothing")
        return guide.spread(told, number)
    classes = guide.experiment.facts.classes
    labels = np.asarray([] if told is None else told)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels) or labels.min() < 0 or labels.max() >= classes:
        raise UserError(f"guide_condition: a classifier is told labels, whole numbers from 0 to {classes - 1}; got {told!r}")
    return spread(labels.astype(np.int32), number, "guide_condition")


def spread(tree, number: int, what: str):
    """Arrays [1 or N, ...] as host arrays [N, ...].

    Raises:
      UserError: another number of them, or no arrays at all.
    """
    if not all(hasattr(leaf, "shape") for leaf in jax.tree.leaves(tree)):
        raise UserError(f"{what}: expected what model.condition(labels=[...]) makes, got {tree!r:.60}")
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(tree)}
    if not sizes <= {1, number}:
        raise UserError(f"{what}: of {sorted(sizes)} examples, and {number} seeds; expected one for each, or one for all")
    return jax.tree.map(lambda leaf: np.broadcast_to(fetch(leaf) if isinstance(leaf, jax.Array) else leaf, (number, *leaf.shape[1:])), tree)
