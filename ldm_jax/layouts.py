"""What is drawn for a model to follow: maps of classes, boxes, depth and small pictures, from files and from the API, each checked."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.data.boxes import WHOLE, boxes_tokens
from ldm_jax.pictures import any_picture
from ldm_jax.sizes import Size

LARGEST = 16 * 2**20  # bytes of a file of layouts
OF_CLASSES = ("shapes",)  # sources whose boxes are labelled by the classes of images
SAID_OF_BOXES = ("boxes", "box_labels", "crop")
KEYS = {"boxes": True, "labels": True, "crop": False}  # of a layout in a file: whether it must be there


def drawn(model, size: Size | None, files: Mapping[str, Sequence[str]], number: int) -> dict:
    """The keyword arguments of `Model.condition` for `number` images; image i has file i mod their number.

    Args:
      size: (width, height) of the images in pixels; None is the trained one.
      files: of map, depth and low_res, the paths; none is not said.

    Raises:
      UserError: files that are not what they should be, by the flag and the path.
    """
    facts, f = model.experiment.facts, model.experiment.autoencoder.factor
    wide, high = size or (facts.resolution, facts.resolution)
    readers = {"map": lambda path: read_map(path, (wide, high)), "depth": lambda path: any_picture(path, "--depth_image", "F"),
               "low_res": lambda path: _small(model, path, (wide // f, high // f) if size else None)}
    return {name: _each(f"--{'depth_image' if name == 'depth' else name}", paths, read, number) for name, read in readers.items()
            if (paths := files.get(name))}


def layouts_told(layouts: Sequence[Mapping], number: int) -> dict:
    """The same of layouts, as `read_layouts` gives them."""
    each = [layouts[i % len(layouts)] for i in range(number)] if layouts else []
    crops = {"crop": [x.get("crop", WHOLE) for x in each]} if any("crop" in x for x in each) else {}
    return {"boxes": [x["boxes"] for x in each], "box_labels": [x["labels"] for x in each]} | crops if each else {}


def _each(where: str, paths: Sequence[str], read, number: int) -> np.ndarray:
    """[number, ...], or [1, ...] of a single file."""
    found = [read(path) for path in paths[:number]]
    for path, other in zip(paths, found):
        if other.shape[:2] != found[0].shape[:2]:
            raise UserError(f"{where}={path}: it is {other.shape[1]}x{other.shape[0]}, and {paths[0]} is {found[0].shape[1]}x"
                            f"{found[0].shape[0]}: pictures of one call are of one size")
    return np.stack(found) if len(found) == 1 else np.stack([found[i % len(found)] for i in range(number)])


def read_map(path: str, size: Size) -> np.ndarray:
    """int32 [H, W] of a picture whose pixels are numbers of classes: grey (L, 16 bits) or with a palette (P), whose colours are not read.

    Raises:
      UserError: no file, no picture, a colour picture, another size.
    """
    image = any_picture(path, "--map", "")
    found = image.shape[1], image.shape[0]
    if image.ndim != 2 or image.dtype.kind not in "biu":
        raise UserError(f"--map={path}: a picture in colour or with transparency; expected one number of a class a pixel, which is a grey "
                        "picture (mode L) or one with a palette (mode P)")
    if found != tuple(size):
        raise UserError(f"--map={path}: it is {found[0]}x{found[1]}; this model makes images of {size[0]}x{size[1]}, and others by "
                        "--size=WIDTHxHEIGHT")
    return image.astype(np.int32)


def _small(model, path: str, size: Size | None) -> np.ndarray:
    """uint8 [h, w, C] of a small picture; size: what --size asks it to be."""
    channels, step = model.experiment.facts.channels, model.experiment.network.factor
    image = any_picture(path, "--low_res", "L" if channels == 1 else "RGB")
    found = image.shape[1], image.shape[0]
    if size is not None and found != size:
        raise UserError(f"--low_res={path}: it is {found[0]}x{found[1]}; for --size={size[0] * model.experiment.autoencoder.factor}x"
                        f"{size[1] * model.experiment.autoencoder.factor} it must be {size[0]}x{size[1]}")
    if any(side % step for side in found):
        nearest = [max(1, round(side / step)) * step for side in found]
        raise UserError(f"--low_res={path}: it is {found[0]}x{found[1]}; this model reads sides that are multiples of {step}; nearest: "
                        f"{nearest[0]}x{nearest[1]}")
    side, f = model.experiment.facts.resolution, model.experiment.autoencoder.factor
    small = side // f
    if size is None and found != (small, small):
        raise UserError(f"--low_res={path}: it is {found[0]}x{found[1]}; this model makes images of {side}x{side} from {small}x{small}, "
                        f"and of this one with --size={found[0] * f}x{found[1] * f}")
    return image.reshape(*image.shape[:2], channels)


def read_layouts(path: str) -> list[dict]:
    """[{"boxes": [[left, top, right, bottom], ...], "labels": [...], "crop"?: [...]}, ...] of a JSON file with one of them or a list.

    Raises:
      UserError: no file, no JSON, another form.
    """
    example = '{"boxes": [[0.1, 0.2, 0.5, 0.6]], "labels": [3]}'
    try:
        file = pathlib.Path(path)
        if file.stat().st_size > LARGEST:
            raise UserError(f"--boxes={path}: larger than {LARGEST // 2**20} MB; expected a layout, as {example}")
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        told = "no such file" if isinstance(error, FileNotFoundError) else f"not JSON that can be read; expected a layout, as {example}"
        raise UserError(f"--boxes={path}: {told}") from None
    layouts = found if isinstance(found, list) else [found]
    for i, layout in enumerate(layouts):
        wrong = _wrong(layout)
        if wrong:
            raise UserError(f"--boxes={path}: layout {i}: {wrong}; expected {example}, and a crop if it is not the whole")
    if not layouts:
        raise UserError(f"--boxes={path}: it holds no layout; expected one, as {example}, or a list of them")
    return layouts


def _wrong(layout) -> str:
    """What is wrong with the form of a layout; "" for nothing."""
    if not isinstance(layout, dict):
        return "it is no object"
    unknown, missing = sorted(layout.keys() - KEYS.keys()), [key for key, must in KEYS.items() if must and key not in layout]
    if unknown or missing:
        return f"it has no {', '.join(missing)}" if missing else f"it has {', '.join(unknown)}"
    if not isinstance(layout["boxes"], list) or not all(_is_box(box) for box in layout["boxes"]):
        return "boxes are no list of four numbers each"
    if not isinstance(layout["labels"], list) or not all(isinstance(x, int) and not isinstance(x, bool) for x in layout["labels"]):
        return "labels are no list of whole numbers"
    return "" if "crop" not in layout or _is_box(layout["crop"]) else "crop is no list of four numbers"


def _is_box(box) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(isinstance(x, int | float) and not isinstance(x, bool) for x in box)


def classes_of_boxes(model) -> int:
    """How many classes a model's boxes have, where its data tell: those of the images. 0 where they number their boxes apart."""
    config = model.manifest.config if model.manifest else {"data": {}}
    return model.experiment.facts.classes if config.get("data", {}).get("source", {}).get("name") in OF_CLASSES else 0


def layout_tokens(conditioner, given: Mapping, classes: int = 0) -> np.ndarray:
    """int32 [N, length] of `boxes` (one layout [n, 4], or one for each example), `box_labels` and `crop` (a box, or one for each).

    classes: of the boxes; 0 where only the number of ids is known.

    Raises:
      UserError: boxes outside the image or of no area, labels that are not theirs, more objects than the model reads.
    """
    parts = getattr(conditioner, "parts", (conditioner,))
    spec = next(part.specs["boxes_tokens"] for part in parts if "boxes_tokens" in getattr(part, "specs", {}))
    if "boxes" not in given or "box_labels" not in given or "boxes_tokens" in given:
        raise UserError("boxes and box_labels belong together, in the place of boxes_tokens: as boxes=[(0.1, 0.2, 0.5, 0.6)], "
                        "box_labels=[3]")
    boxes, labels = list(given["boxes"]), list(given["box_labels"])
    if not any(np.ndim(x) for x in labels):
        boxes, labels = [boxes], [labels]
    crops = given.get("crop", WHOLE)
    crops = [crops] if np.ndim(crops) == 1 else list(crops)
    number = max(len(boxes), len(labels), len(crops))
    if {len(boxes), len(labels), len(crops)} - {1, number}:
        raise UserError(f"boxes of {len(boxes)}, box_labels of {len(labels)} and crop of {len(crops)} examples: expected one for each, or "
                        "one for all")
    boxes, labels, crops = (list(x) * (number if len(x) == 1 else 1) for x in (boxes, labels, crops))
    unknown = sorted({int(x) for each in labels for x in each if classes and x >= classes})
    if unknown:
        raise UserError(f"box_labels: {', '.join(map(str, unknown))}: the model's data has no such class; expected 0 to {classes - 1}")
    return np.stack([_tokens(i, *one, spec) for i, one in enumerate(zip(boxes, labels, crops))])


def _tokens(i: int, boxes, labels, crop, spec) -> np.ndarray:
    for name, box in [(f"boxes[{i}][{k}]", box) for k, box in enumerate(boxes)] + [(f"crop[{i}]", crop)]:
        box = tuple(float(x) for x in box)
        if len(box) != 4 or not all(map(math.isfinite, box)):
            raise UserError(f"{name}={box}: expected left, top, right, bottom")
        if min(box) < 0 or max(box) > 1:
            raise UserError(f"{name}={box}: it is outside of the image; expected left, top, right, bottom from 0 to 1, shares of the whole "
                            "image's sides")
        if box[0] >= box[2] or box[1] >= box[3]:
            raise UserError(f"{name}={box}: it has no area; expected left, top, right, bottom, left < right and top < bottom")
    try:
        return boxes_tokens(boxes, np.asarray(labels, int) if not len(labels) else labels, crop, (spec.length - 2) // 3, spec.vocabulary)
    except UserError as error:
        raise UserError(f"boxes, example {i}: {error}") from None
