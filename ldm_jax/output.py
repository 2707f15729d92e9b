"""Sampling from the command line: labels and seeds to a folder of pictures that says how they were made."""

import ast
import dataclasses
import io
import json
import re
from collections.abc import Iterable, Mapping

import jax
import numpy as np
from etils import epath

from ldm_jax.asked import by_guide
from ldm_jax.checkpoint.digests import write_atomically
from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import SEED_LIMIT, check_seed
from ldm_jax.ops.images import make_grid, write_png
from ldm_jax.pictures import Pictures
from ldm_jax.pictures import pictures_of as pictures_of
from ldm_jax.pictures import size_of as size_of
from ldm_jax.pipeline import Model
from ldm_jax.said import Said, condition_beside, condition_of
from ldm_jax.workdir import passed_by_all, refuse_remote

PAGE = "samples.json"  # written last: a folder without it is not finished
UNFINISHED = ".samples.unfinished"  # stands while a folder is written, so that an interrupted one is known as ours
GRID_LIMIT = 256  # images in grid.png; a larger one is a picture of dots


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for. Image i has seed `seed` + i and label labels[i mod len]; what is None or empty is the model's own way.

    negative: labels to be steered away from, given to the images as the labels are. guide: a second Model. pictures: an image to
    start from, see `Pictures`. making: size, tile, decode_batch and handover, as `Model.sample` takes them. refiner: a second Model.
    said: prompts, pictures and numbers that the model is told.
    """

    number: int = 16
    seed: int = 0
    labels: tuple[int, ...] = ()
    batch_size: int = 16
    rounding: str = "round"
    sampling: Mapping = dataclasses.field(default_factory=dict)
    negative: tuple[int, ...] = ()
    guide: Model | None = None
    pictures: Pictures | None = None
    making: Mapping = dataclasses.field(default_factory=dict)
    refiner: Model | None = None
    said: Said | None = None

    def __post_init__(self):
        if self.number < 1 or self.batch_size < 1:
            raise UserError(f"--num_samples={self.number}, --batch_size={self.batch_size}: expected whole numbers from 1")
        check_seed(self.seed, "--seed")
        if self.seed + self.number - 1 > SEED_LIMIT:
            raise UserError(f"--seed={self.seed} with {self.number} images: the last seed would be {self.seed + self.number - 1}; "
                            f"seeds end at {SEED_LIMIT} (2^32 - 1)")

    @property
    def seeds(self) -> list[int]:
        return [self.seed + i for i in range(self.number)]

    @property
    def label_of_each(self) -> list[int] | None:
        return self.of_each(self.labels)

    @property
    def negative_of_each(self) -> list[int] | None:
        return self.of_each(self.negative)

    def of_each(self, labels: tuple[int, ...]) -> list[int] | None:
        """The label of each image, one after the other; None without any."""
        return [labels[i % len(labels)] for i in range(self.number)] if labels else None

    def wishes(self, model: Model) -> dict:
        """The keyword arguments of `Model.sample` beside seeds and batches.

        Raises:
          UserError: files that are no pictures of the model's size.
        """
        with passed_by_all():
            asked = dict(self.sampling) | self.made | (self.pictures.wishes(model, self.made.get("size")) if self.pictures else {})
        if self.negative and "label" not in model.experiment.conditioner.fields:
            raise UserError("--negative_labels: this model was trained without labels")
        if self.negative:
            asked["negative"] = condition_of(model, self, self.negative_of_each)
        if self.said and self.said.negative_prompts and model.sampling(**self.sampling)["guidance"] == 1:
            raise UserError("--negative_prompt: without classifier-free guidance nothing steps away from it; set --guidance above 1")
        if self.guide is not None and self.guide.experiment.task == "classifier" and not self.labels:
            raise UserError("--guide is a classifier, and guides to a class: say which, as --labels=0-9")
        for name, other in (("guide", self.guide), ("refiner", self.refiner)):
            if other is not None:
                told = condition_beside(other, self) if other.experiment.task == "diffusion" else self.label_of_each
                asked |= {name: other, f"{name}_condition": told}
        return asked

    @property
    def made(self) -> dict:
        """What was said of `making`."""
        return {name: value for name, value in self.making.items() if value is not None}


def parse_labels(text: str, where: str = "--labels") -> tuple[int, ...]:
    """"0,1,2" or "0-9" or "" -> a tuple of ints."""
    labels: list[int] = []
    for part in text.replace(" ", "").split(",") if text else ():
        found = re.fullmatch(r"(-?\d+)(?:-(\d+))?", part)
        if not found or (found[2] and int(found[2]) < int(found[1])):
            raise UserError(f"{where}={text!r}: expected whole numbers, as 0,1,2 or 0-9")
        labels += range(int(found[1]), int(found[2] or found[1]) + 1)
    return tuple(labels)


def parse_choice(text: str, where: str) -> str | dict | None:
    """A name, or a section as {"name": ..., ...}; None for "".

    Raises:
      UserError: braces around something else.
    """
    text = text.strip()
    if not text.startswith(("{", "[", "(")):
        return text or None
    try:
        section = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        section = None
    if not isinstance(section, dict):
        raise UserError(f"{where}={text}: expected a name, or a section, as {where}='{{\"name\":\"ddim\",\"eta\":1.0}}' (mind the quotes)")
    return section


def parse_guidance(text: str) -> float | dict | None:
    """A number, or a section; None for "".

    Raises:
      UserError: anything else.
    """
    text = text.strip()
    if not text or text.startswith("{"):
        return parse_choice(text, "--guidance")
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--guidance={text}: expected a number, 1 for off, or a section, as "
                        "--guidance='{\"name\":\"classifier_free\",\"weight\":2.0,\"rescale\":0.7}'") from None


def sample_to(model: Model, request: Request, out: str, progress=None) -> np.ndarray:
    """Samples, writes 000000.png ..., grid.png, samples.npz and samples.json into `out`, and returns the images.

    Every process computes; process 0 writes. samples.json is written last: a folder without it is not finished.

    Raises:
      UserError: `out` holds other files than samples, or cannot be written.
    """
    folder = _checked(out)
    sampling = model.sampling(**request.sampling)
    told = condition_of(model, request, request.label_of_each if _reads_labels(model, request) else None)
    batches = model.batches(told, seeds=request.seeds, batch_size=request.batch_size, progress=progress, rounding=request.rounding,
                            **request.wishes(model))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={out} cannot be made: {error}") from None
    try:
        images = _write_pictures(folder, batches)
        if jax.process_index() == 0:
            page = sampling | request.made | {"weights": model.manifest.weights, "model_digest": model.digest,
                                              "dtype": model.experiment.network.dtype}
            if model.loras:
                page["loras"] = list(model.loras)
            if request.guide:
                page["guidance"] = dict(by_guide(request.guide, sampling["guidance"]))
            for name, other in (("guide", request.guide), ("refiner", request.refiner)):
                page |= {name: {"task": other.experiment.task, "step": other.manifest.step, "digest": other.digest}} if other else {}
            _write_pages(folder, images, request, page | (request.pictures.page if request.pictures else {}))
    except OSError as error:
        raise UserError(f"--out={out} cannot be written: {error}") from None
    return images


def _reads_labels(model: Model, request: Request) -> bool:
    """Whether the labels are for the model, and not only for a classifier that guides one without a condition."""
    only_guide = request.guide is not None and request.guide.experiment.task == "classifier"
    return not only_guide or "label" in model.experiment.conditioner.fields


def _checked(out: str) -> epath.Path:
    """The folder, if writing into it cannot cost anybody a file."""
    refuse_remote(out, "--out")
    folder = epath.Path(out)
    if not out or folder.exists() and not folder.is_dir():
        raise UserError(f"--out={out}: expected a folder, as --out=samples")
    if folder.exists() and any(folder.iterdir()) and not any((folder / name).exists() for name in (PAGE, UNFINISHED)):
        raise UserError(f"--out={out} holds other files; name an empty folder, or one that samples were written to before")
    return folder


def _write_pictures(folder: epath.Path, batches: Iterable[np.ndarray]) -> np.ndarray:
    """Writes each batch as it comes, in the place of what an earlier call wrote and of nothing else; returns all images."""
    mine, done = jax.process_index() == 0, []
    if mine:
        (folder / UNFINISHED).write_text("")
        (folder / PAGE).unlink(missing_ok=True)
        for old in folder.iterdir():
            if re.fullmatch(r"\d{6,}\.png", old.name):
                old.unlink()
    for images in batches:
        for i, image in enumerate(images if mine else (), start=sum(map(len, done))):
            write_png(folder / f"{i:06d}.png", image)
        done.append(images)
    return np.concatenate(done)


def _write_pages(folder: epath.Path, images: np.ndarray, request: Request, told: Mapping) -> None:
    """grid.png, samples.npz and, last, samples.json."""
    write_png(folder / "grid.png", make_grid(images[:GRID_LIMIT], _columns(request, len(images))))
    arrays = {"arr_0": images}
    if request.labels:
        arrays["arr_1"] = np.asarray(request.label_of_each, np.int64)
    body = io.BytesIO()
    np.savez_compressed(body, **arrays)
    _write_bytes(folder / "samples.npz", body.getvalue())
    each = [{"file": f"{i:06d}.png", "seed": seed, "condition": {"label": label}} for i, (seed, label) in
            enumerate(zip(request.seeds, request.label_of_each or [None] * len(images)))]
    for entry, label in zip(each, request.negative_of_each or ()):
        entry["negative"] = {"label": label}
    for i, entry in enumerate(each if request.said else ()):
        request.said.note(i, entry)
    page = {**told, **(request.said.page if request.said else {}), "rounding": request.rounding, "images": each}
    write_atomically(folder / PAGE, json.dumps(page, indent=1) + "\n")
    (folder / UNFINISHED).unlink()


def _columns(request: Request, number: int) -> int | None:
    """One column for each label where that makes a readable grid."""
    columns = len(request.labels)
    return columns if 2 < columns <= 20 and columns <= number else None


def _write_bytes(path: epath.Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data)
    partial.replace(path)
