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
from ldm_jax.told import FLAGS, REFUSED, reads
from ldm_jax.workdir import passed_by_all

LARGEST = 16 * 2**20  # bytes of a file of prompts
QUALIFIERS = ("sizes", "noise_level", "low_res_noise")  # fields that say something of others, and nothing alone


@dataclasses.dataclass(frozen=True)
class Said:
    """Texts are given to the images as labels are: image i has prompt i mod their number. What is None or empty is not said.

    depth, low_res, maps: picture files, given to the images as texts are; boxes: a file of layouts, given so too. numbers: noise_level,
    original_size, crop, target_size, aesthetic and clip_skip, by name.
    retrieval: whose embeddings are told, a `retrieved.Retrieval`. long_prompts: as of `Model.condition`; "" refuses a text that would
    lose its end. unconditional: a model that reads a condition may be told nothing.
    """

    prompts: tuple[str, ...] = ()
    negative_prompts: tuple[str, ...] = ()
    long_prompts: str = ""
    depth: tuple[str, ...] = ()
    low_res: tuple[str, ...] = ()
    numbers: Mapping = dataclasses.field(default_factory=dict)
    maps: tuple[str, ...] = ()
    boxes: str = ""
    retrieval: Any = None
    unconditional: bool = False

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
        if given:
            given["long_prompts"] = self.long_prompts or REFUSED
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
            {"long_prompts": self.long_prompts} if self.long_prompts and (self.prompts or self.negative_prompts) else {}) | (
                {"unconditional": True} if self.unconditional else {}) | (self.retrieval.page if self.retrieval else {})


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
    own = _names(model.experiment.conditioner)
    theirs = {name for other in partners for name in _names(other.experiment.conditioner)} - own  # said to them alone
    given = {name: value for name, value in given.items() if name.removeprefix("negative_") not in theirs}
    if request.said:
        _check_told(model.experiment.conditioner, given, request.said.unconditional)
    return model.condition(**given) if given else None


def _check_told(conditioner, given: Mapping, unconditional: bool) -> None:
    """Raises UserError: a model that reads a condition and is told nothing, where nobody asked for that; or asked, and told."""
    names = {main: (main, *(beside if main == "boxes_tokens" else ())) for main, beside in reads(conditioner).items()
             if main not in QUALIFIERS}
    told = [name for name, ways in names.items() if any(way in given for way in ways)]
    if any(name.removeprefix("negative_") not in {*_names(conditioner), "size"} for name in given):
        return  # `Model.condition` says what it does not read
    if unconditional and told:
        raise UserError(f"--unconditional: and the model is told {', '.join(FLAGS.get(name, name) for name in told)}; leave one out")
    if names and not told and not unconditional:
        raise UserError(f"this model reads {', '.join(FLAGS.get(name, name) for name in names)}, and is told nothing; say it, or "
                        "--unconditional for samples of nothing in particular")


def check_texts(texts: Sequence[str], where: str) -> None:
    """Raises UserError: a text with nothing in it, which is most often a variable of the shell that was not set."""
    for text in texts:
        if not text.strip():
            raise UserError(f"{where}={text!r}: an empty text; expected words, as {where}='a red cube'")


def with_last(model, folders: Sequence[str]):
    """A guide or a refiner with the last of the tokenizers, where it reads text and brought none of its own."""
    reads_text = model.experiment.task == "diffusion" and specs_of(model.experiment.conditioner)
    return model.with_tokenizer(folders[-1]) if folders and reads_text and not model.tokenizers else model


def condition_beside(model, request) -> Guided | None:
    """What a guide or a refiner is told by it: as much as this one reads."""
    names = _names(model.experiment.conditioner)
    given = _all(model, request, request.label_of_each)
    return model.condition(**{name: value for name, value in given.items() if name.removeprefix("negative_") in names})


def _names(conditioner) -> set[str]:
    """All that may be said to a model."""
    return {name for main, beside in reads(conditioner).items() for name in (main, *beside)}


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
