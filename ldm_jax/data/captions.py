"""Captions of a folder of images, from one file, in one of the three layouts that the field uses."""

import csv
import io
import json
import pathlib

from ldm_jax.core.errors import UserError

FILE_KEYS, TEXT_KEYS = ("file_name", "file"), ("text", "caption")
LONGEST = 10_000  # characters


def read_captions(path: pathlib.Path, files: list[str]) -> dict[str, str]:
    """{relative path of an image: its caption}, for exactly the given files.

    UTF-8, with or without a byte order mark, any line ends, blank lines passed over. By the file's extension:
      .txt    one image a line: the relative path, a tab, the caption.
      .csv    a header with file_name (or file) and text (or caption), quoted as spreadsheets do.
      .jsonl  one object a line with the same keys.

    Raises:
      UserError: no such file, not UTF-8, a line that cannot be read (its number), an empty caption or one above 10,000
        characters, an image twice, an image that is not in the folder, images that have no caption (count and first names).
    """
    layouts = {".txt": _from_txt, ".csv": _from_csv, ".jsonl": _from_jsonl}
    if path.suffix.lower() not in layouts:
        raise UserError(f"captions={str(path)!r}: expected a file that ends with {', '.join(layouts)}")
    text = read_text(path, "captions")
    known, captions = set(files), {}
    for number, file, caption in layouts[path.suffix.lower()](text, str(path)):
        here, caption = f"{str(path)!r} line {number}", caption.strip()
        file = file.strip().removeprefix("./")
        if file not in known:
            raise UserError(f"{here}: {file!r} is not an image of the folder; paths are relative to it")
        if file in captions:
            raise UserError(f"{here}: {file!r} has a caption already; keep one")
        if not 0 < len(caption) <= LONGEST:
            raise UserError(f"{here}: a caption of {len(caption)} characters for {file!r}; expected 1 to {LONGEST}")
        captions[file] = caption
    missing = [file for file in files if file not in captions]
    if missing:
        raise UserError(f"captions={str(path)!r}: {len(missing)} of {len(files)} images have none, first "
                        + ", ".join(map(repr, missing[:5])))
    return captions


def read_text(path: pathlib.Path, key: str) -> str:
    """A file's text. Raises UserError: it cannot be read; key: of the config, that names it."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{key}={str(path)!r}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{key}={str(path)!r}: {error.strerror}; the path is relative to the folder of images") from None


def json_lines(text: str, where: str, expected: str):
    """Yields (line number, object) of one JSON object a line. Raises UserError: another line; expected: what is."""
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where!r} line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise UserError(f"{where!r} line {number}: expected an object with {expected}")
        yield number, row


def _from_txt(text: str, where: str):
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if line.strip():
            file, tab, caption = line.rstrip("\n").partition("\t")
            if not tab:
                raise UserError(f"{where!r} line {number}: expected path, tab, caption; there is no tab")
            yield number, file, caption


def _from_csv(text: str, where: str):
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        file_key, text_key = (key_in(rows.fieldnames or (), keys, where, 1) for keys in (FILE_KEYS, TEXT_KEYS))
        for row in rows:
            if row[text_key] is None or None in row:
                raise UserError(f"{where!r} line {rows.line_num}: {'too many' if None in row else 'too few'} columns; "
                                "put captions that hold commas in double quotes")
            yield rows.line_num, row[file_key], row[text_key]
    except csv.Error as error:
        raise UserError(f"{where!r} line {rows.line_num}: {error}") from None


def _from_jsonl(text: str, where: str):
    for number, row in json_lines(text, where, "file_name and text"):
        values = [row[key_in(row, keys, where, number)] for keys in (FILE_KEYS, TEXT_KEYS)]
        if not all(isinstance(value, str) for value in values):
            raise UserError(f"{where!r} line {number}: file_name and text must be strings")
        yield number, *values


def key_in(there, keys: tuple[str, ...], where: str, number: int) -> str:
    """Which one of the keys is there, in a line of a file."""
    found = [key for key in keys if key in there]
    if len(found) != 1:
        raise UserError(f"{where!r} line {number}: expected one of {' or '.join(keys)}, found {', '.join(map(str, there)) or 'nothing'}")
    return found[0]
