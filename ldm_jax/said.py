"""What the flags of `sample.py` say to a model beside labels: prompts, pictures and numbers, as `Model.condition` takes them."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ldm_jax.core.errors import UserError
from ldm_jax.diffusion.guidance import Guided
from ldm_jax.layouts import drawn, layouts_told, read_layouts
from ldm_jax.pictures import named
from ldm_jax.tokenized import specs_of
from ldm_jax.told import reads
from ldm_jax.workdir import passed_by_all

LARGEST = 16 * 2**20  # bytes of a file of prompts


@dataclasses.dataclass(frozen=True)
class Said:
    """Texts are given to the images as labels are: image i has prompt i mod their number. What is None or empty is not said.

    depth, low_res, maps: picture files, given to the images as texts are; boxes: a file of layouts, given so too. numbers: noise_level,
    original_size, crop, target_size, aesthetic and clip_skip, by name.
    retrieval: whose embeddings are told, a `retrieved.Retrieval`.
    """

    prompts: tuple[str, ...] = ()
    negative_prompts: tuple[str, ...] = ()
    long_prompts: str = "one"
    depth: tuple[str, ...] = ()
    low_res: tuple[str, ...] = ()
    numbers: Mapping = dataclasses.field(default_factory=dict)
    maps: tuple[str, ...] = ()
    boxes: str = ""
    retrieval: Any = None

    @functools.cached_property
    def layouts(self) -> list[dict]:
        """What the file of layouts says; read once."""
        return read_layouts(self.boxes) if self.boxes else []

    def given(self, request, model) -> dict:
        """The keyword arguments of `Model.condition` for the images of a request.

        Raises:
          UserError: files that are not what they should be.
        """
        given = {name: request.of_each(texts) for name, texts in
                 (("prompts", self.prompts), ("negative_prompts", self.negative_prompts)) if texts}
        if given and self.long_prompts != "one":
            given["long_prompts"] = self.long_prompts
        files = {"map": self.maps, "depth": self.depth, "low_res": self.low_res}
        given |= drawn(model, request.made.get("size"), files, request.number) | layouts_told(self.layouts, request.number)
        if self.low_res and self.numbers.get("noise_level") is not None:
            given["noise_seeds"] = request.seeds
        return given | {name: [value] if name == "noise_level" else value for name, value in self.numbers.items() if value is not None}

    def note(self, i: int, entry: dict) -> None:
        """Adds the texts of image i to its entry in samples.json."""
        for name, texts in (("condition", self.prompts), ("negative", self.negative_prompts)):
            if texts:
                entry[name] = entry.get(name, {}) | {"prompt": texts[i % len(texts)]}
        for name, files in (("map", self.maps), ("depth_image", self.depth), ("low_res", self.low_res)):
            if len(files) > 1:
                entry["condition"] |= {name: pathlib.Path(files[i % len(files)]).name}
        if len(self.layouts) > 1:
            entry["condition"] |= {"layout": i % len(self.layouts)}
        if self.retrieval:
            self.retrieval.note(i, entry)

    @property
    def page(self) -> dict:
        """For samples.json: what all images were told."""
        numbers = {name: value for name, value in self.numbers.items() if value is not None}
        return named({"depth_image": self.depth, "low_res": self.low_res, "map": self.maps, "boxes": self.boxes}) | numbers | (
            {"long_prompts": self.long_prompts} if self.prompts or self.negative_prompts else {}) | (
                self.retrieval.page if self.retrieval else {})


def condition_of(model, request, labels: Sequence[int] | None) -> Guided | None:
    """What a model is told by an `output.Request` with these labels, one an image; None for nothing.

    Raises:
      UserError: what is missing, or not for this model.
    """
    model.need_diffusion("samples")
    if request.said and request.said.retrieval:
        request.said.retrieval.check(model)
    given = _all(model, request, labels)
    partners = [other for other in (request.guide, request.refiner) if other is not None and other.experiment.task == "diffusion"]
    theirs = {name for other in partners for name in _names(other)} - _names(model)  # said to them alone
    given = {name: value for name, value in given.items() if name.removeprefix("negative_") not in theirs}
    return model.condition(**given) if given else None


def with_last(model, folders: Sequence[str]):
    """A guide or a refiner with the last of the tokenizers, where it reads text and brought none of its own."""
    reads_text = model.experiment.task == "diffusion" and specs_of(model.experiment.conditioner)
    return model.with_tokenizer(folders[-1]) if folders and reads_text and not model.tokenizers else model


def condition_beside(model, request) -> Guided | None:
    """What a guide or a refiner is told by it: as much as this one reads."""
    names = _names(model)
    given = _all(model, request, request.label_of_each)
    return model.condition(**{name: value for name, value in given.items() if name.removeprefix("negative_") in names})


def _names(model) -> set[str]:
    """All that may be said to a model."""
    return {name for main, beside in reads(model.experiment.conditioner).items() for name in (main, *beside)}


def _all(model, request, labels) -> dict:
    fields, size = model.experiment.conditioner.fields, request.made.get("size")
    given = {} if labels is None else {"labels": labels}
    with passed_by_all():
        given |= request.said.given(request, model) if request.said else {}
        if request.said and request.said.retrieval and "embeddings" in fields:
            given["embeddings"] = request.said.retrieval.told(model, request.number)
        given |= request.pictures.told(model, size) if request.pictures and "mask" in fields else {}
    return given | ({"size": size} if size and ("sizes" in fields or "image" in model.experiment.conditioner.tells) else {})


def read_prompts(path: str) -> tuple[str, ...]:
    """One prompt a line; empty lines are left out.

    Raises:
      UserError: no such file, none in it, or no text.
    """
    try:
        file = pathlib.Path(path)
        if file.stat().st_size > LARGEST:
            raise UserError(f"--prompts_file={path}: larger than {LARGEST // 2**20} MB; expected a text with a prompt on each line")
        lines = file.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        told = "no such file" if isinstance(error, FileNotFoundError) else "not a text that can be read"
        raise UserError(f"--prompts_file={path}: {told}") from None
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise UserError(f"--prompts_file={path}: it holds no prompt; expected one on each line")
    return prompts


def parse_pair(text: str, where: str) -> tuple[int, int] | None:
    """"512x768" or "0,16" -> two whole numbers; None for "".

    Raises:
      UserError: anything else.
    """
    found = re.fullmatch(r"\s*(\d+)\s*[xX,]\s*(\d+)\s*", text)
    if text and not found:
        raise UserError(f"{where}={text}: expected two whole numbers, as {where}={'0,16' if where == '--crop' else '512x768'}")
    return (int(found[1]), int(found[2])) if found else None
