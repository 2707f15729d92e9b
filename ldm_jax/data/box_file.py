"""Boxes of a folder of images, from one file."""

import dataclasses
import json
import pathlib
from collections.abc import Iterable

import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.data.captions import FILE_KEYS, json_lines, key_in, read_text

LABEL_KEYS = ("labels", "box_labels")
KEYS = (*FILE_KEYS, "boxes", *LABEL_KEYS, "unit")
UNITS = ("pixels", "shares")
LIMIT = 2**31 - 1
OVER = 1.0  # pixels by which a box may leave the image, as rounded ones do; it is cut


@dataclasses.dataclass(frozen=True)
class Line:
    """The boxes of one image: float64 [n, 4], left, top, right, bottom in `unit`, and what each is, a number or a name."""

    where: str
    boxes: np.ndarray
    labels: tuple
    unit: str

    def shares(self, width: int, height: int) -> np.ndarray:
        """float32 [n, 4] in 0..1 of the upright image. Raises UserError: a box that is not inside of it."""
        size = np.array([width, height, width, height], np.float64) if self.unit == "pixels" else np.ones(4)
        over = OVER if self.unit == "pixels" else 1e-6
        outside = ((self.boxes < -over) | (self.boxes > size + over)).any(1)
        cut = np.clip(self.boxes, 0, size)
        wrong = outside | (cut[:, :2] >= cut[:, 2:]).any(1)
        if wrong.any():
            limits = f"the {width}x{height} of the upright image" if self.unit == "pixels" else "0 to 1"
            raise UserError(f"{self.where}: box {self.boxes[int(np.argmax(wrong))].tolist()}: expected left < right and top < bottom, "
                            f"within {limits}")
        return (cut / size).astype(np.float32)


def read_boxes(path: pathlib.Path, files: list[str]) -> dict[str, Line]:
    """{relative path of an image: its boxes}, for exactly the given files.

    A .jsonl file in UTF-8, one object a line: file_name (or file); boxes, [[left, top, right, bottom], ...] of the upright image; labels
    (or box_labels), one for each box, whole numbers from 0 or names; unit, "pixels" (if it is absent) or "shares", 0 to 1 of width and
    height. An image without boxes has a line with none.

    Raises:
      UserError: no such file, not UTF-8, a line that cannot be read (its number), an unknown key, another number of labels than of boxes,
        an image twice, one that is not in the folder, images without a line (count and first names).
    """
    if path.suffix.lower() != ".jsonl":
        raise UserError(f"boxes={str(path)!r}: expected a file that ends with .jsonl")
    known, found = set(files), {}
    for number, row in json_lines(read_text(path, "boxes"), str(path), "file_name, boxes and labels"):
        here = f"{str(path)!r} line {number}"
        file = row[key_in(row, FILE_KEYS, str(path), number)]
        if not isinstance(file, str) or (file := file.strip().removeprefix("./")) not in known:
            raise UserError(f"{here}: {file!r} is not an image of the folder; paths are relative to it")
        if file in found:
            raise UserError(f"{here}: {file!r} has its boxes already; write all of an image into one line")
        found[file] = _line(row, here, row[key_in(row, LABEL_KEYS, str(path), number)])
    missing = [file for file in files if file not in found]
    if missing:
        raise UserError(f"boxes={str(path)!r}: {len(missing)} of {len(files)} images have no line, first "
                        + ", ".join(map(repr, missing[:5])) + '; one without boxes has "boxes": [], "labels": []')
    return found


def names_of(lines: Iterable[Line]) -> tuple[str, ...]:
    """The names in all lines, sorted: a label's number is its place; () where labels are numbers. Raises UserError: some are, some not."""
    first, names = {}, set()
    for line in lines:
        for label in line.labels:
            first.setdefault(type(label), line.where)
            if isinstance(label, str):
                names.add(label)
    if len(first) > 1:
        raise UserError(f"{first[str]}: labels are names, and numbers in {first[int]}; expected one or the other in all lines")
    return tuple(sorted(names))


def _is_box(value) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(type(x) in (int, float) and abs(x) < LIMIT for x in value)


def _line(row: dict, here: str, labels) -> Line:
    strange = [key for key in row if key not in KEYS]
    if strange:
        raise UserError(f"{here}: key {strange[0]!r}; expected {', '.join(KEYS)}")
    unit = row.get("unit", UNITS[0])
    if unit not in UNITS:
        raise UserError(f"{here}: unit {unit!r}; expected {' or '.join(UNITS)}")
    given = row.get("boxes")
    if not isinstance(given, list) or not all(map(_is_box, given)):
        raise UserError(f"{here}: boxes {json.dumps(given)[:60]}; expected [[left, top, right, bottom], ...], all numbers")
    boxes = np.array(given, np.float64).reshape(-1, 4)
    if not isinstance(labels, list) or len(labels) != len(boxes):
        raise UserError(f"{here}: labels {json.dumps(labels)[:60]} for {len(boxes)} boxes; expected one for each, as [\"cat\", \"dog\"]")
    for label in labels:
        if not (type(label) is int and 0 <= label <= LIMIT) and not (isinstance(label, str) and label.strip()):
            raise UserError(f"{here}: label {label!r}; expected a whole number from 0, or a name")
    if unit == "pixels" and len(boxes) and boxes.max() <= 1 and (boxes % 1).any():
        raise UserError(f"{here}: all boxes lie within the first pixel; if they are shares of the image, write \"unit\": \"shares\"")
    return Line(here, boxes, tuple(labels), unit)
