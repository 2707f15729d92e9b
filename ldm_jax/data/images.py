"""Source `images`: a folder of image files, with or without class subfolders, captions, boxes, and maps of classes and of depth."""

import collections
import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.data.box_file import Line, names_of, read_boxes
from ldm_jax.data.captions import read_captions
from ldm_jax.data.decode import EXTENSIONS, UNREADABLE, read_image
from ldm_jax.data.maps import fitting, of_images, read_classes, read_depth

SHOWN = 5  # names printed in one message
READ = {"segmentation": read_classes, "depth": read_depth}  # what lies beside an image, by its name in a record


class Images:
    """Every image under a folder, in the order of their paths; sizes may differ (see crop_resize).

    Files are found at any depth by extension, whatever its case; names that begin with a dot are passed over, all other
    files that are not images too, but a HEIC, SVG or the like is refused by name. Links are followed if they stay in the folder
    (each real directory once, so that loops end); one that leads out is refused, unless links="anywhere".

    Split: if the folder has both `train/` and `test/`, they are the splits. Otherwise round(held_out * N) images, at
    least one where held_out > 0 and never all, are held out: those whose relative path has the smallest sha256.

    Args:
      folder: the directory.
      channels: 3 (grey is repeated) or 1 (colour becomes luma).
      labels: "none", or "folders": the first subfolder is the class, classes numbered in sorted order over both splits.
      captions: a .txt, .csv or .jsonl file, relative to the folder (see captions.py); "" for none. With train/ and test/,
        one such file in each. Every image must have a caption.
      maps, depths: folders of PNG files, each relative to the folder of images, of the classes of each image's pixels and of their depth
        (see maps.py); "" for none. A map has its image's relative name, with .png, and its size. A folder that lies among the
        images holds no images. With train/ and test/, one in each.
      boxes: a .jsonl file, where it is as captions (see box_file.py); names of labels are numbered in sorted order over both splits.
      held_out: share of the images in the test split, 0 <= held_out < 1.
      links: "inside" or "anywhere".

    Raises:
      UserError: missing or empty folder (what was looked for and what is there), images outside class folders, links that
        lead out, captions, boxes or maps that are missing, captions or boxes that name no image; at reading, bad images and
        maps, by name (see decode.py), maps of another size, boxes outside of the image.
    """

    name, version = "images", "1"

    def __init__(self, split: Literal["train", "test"], folder: str, channels: int = 3, labels: Literal["none", "folders"] = "none",
                 captions: str = "", held_out: float = 0.05, links: Literal["inside", "anywhere"] = "inside", maps: str = "",
                 boxes: str = "", depths: str = ""):
        _check(split, folder, channels, held_out, labels, links)
        root = pathlib.Path(folder)
        prepared = (root / "train").is_dir() and (root / "test").is_dir()
        parts = [root / "train", root / "test"] if prepared else [root]
        beside = {kind: (key, path) for kind, (key, path) in {"segmentation": ("maps", maps), "depth": ("depths", depths)}.items() if path}
        for key, path in beside.values():
            if any(os.path.realpath(part / path) == os.path.realpath(part) for part in parts):
                raise UserError(f"{key}={path!r}: the folder of the images; expected one of its own, among them or elsewhere")
        found = {part: list_images(part, links == "anywhere", [part / path for _, path in beside.values()]) for part in parts}
        self.class_names = _class_names(found) if labels == "folders" else ()
        self._root = root / split if prepared else root
        everything = found[self._root]
        self.files = everything if prepared else _part(everything, split, held_out, folder)
        self.split, self.channels, self.classes = split, channels, len(self.class_names)
        self._captions = read_captions(self._root / captions, everything) if captions else None
        self._maps = {kind: self._beside(self._root / path, key, everything, links) for kind, (key, path) in beside.items()}
        lines = {part: read_boxes(part / boxes, found[part]) for part in parts} if boxes else {}
        self.box_names = names_of(line for of_part in lines.values() for line in of_part.values())
        self._numbers = {name: i for i, name in enumerate(self.box_names)}
        self._boxes: dict[str, Line] | None = lines.get(self._root)

    @staticmethod
    def _beside(folder: pathlib.Path, key: str, files: list[str], links: str) -> dict[str, pathlib.Path]:
        there = list_images(folder, links == "anywhere", key=key)
        return {file: folder / found for file, found in of_images(there, files, f"{key}={str(folder)!r}").items()}

    def __len__(self) -> int:
        return len(self.files)

    def caption(self, i: int) -> str | None:
        """Of a record, without its image."""
        return None if self._captions is None else self._captions[self.files[i]]

    def __getitem__(self, i: int) -> dict:
        file = self.files[i]
        path = str(self._root / file)
        record = {"image": read_image(path, self.channels, path), "file": ascii(file)}
        if self.class_names:
            record["label"] = self._label(file)
        if self._captions is not None:
            record["caption"] = self._captions[file]
        for kind, maps in self._maps.items():
            where = str(maps[file])
            record[kind] = fitting(READ[kind](where, where), record["image"], where)
        if self._boxes is not None:
            height, width = record["image"].shape[:2]
            record |= {"boxes": self._boxes[file].shares(width, height), "box_labels": self._box_labels(file)}
        return record

    def fingerprint(self) -> dict:
        """The files' names and sizes, and those of their maps, labels, captions and boxes.

        Not the bytes of images and maps: a changed pixel of equal size is not seen.
        """
        digest = hashlib.sha256()
        for file in self.files:
            label = self._label(file) if self.class_names else -1
            caption = self._captions[file] if self._captions is not None else ""
            digest.update(os.fsencode(f"{file}\0{(self._root / file).stat().st_size}\0{label}\0") + caption.encode() + b"\0")
            for kind, maps in self._maps.items():
                digest.update(f"{kind} {maps[file].stat().st_size}\0".encode())
            if self._boxes is not None:
                line = self._boxes[file]
                digest.update(f"{line.unit} {line.boxes.tolist()} {self._box_labels(file).tolist()}\0".encode())
        return {"name": self.name, "version": self.version, "split": self.split, "records": len(self), "channels": self.channels,
                "classes": self.classes, "digest": digest.hexdigest()[:16]}

    def _label(self, file: str) -> int:
        return self.class_names.index(file.split("/", 1)[0])

    def _box_labels(self, file: str) -> np.ndarray:
        labels = self._boxes[file].labels
        return np.array([self._numbers[label] for label in labels] if self._numbers else labels, np.int32).reshape(-1)


def list_images(root: pathlib.Path, anywhere: bool, without: Sequence[pathlib.Path] = (), key: str = "folder") -> list[str]:
    """Relative paths ("a/b.png") of all images under a folder, sorted; without: folders that are passed over."""
    if not root.is_dir():
        raise UserError(f"{key}={str(root)!r}: {'not a directory' if root.exists() else 'does not exist'}")
    real_root, files, others = os.path.realpath(root), [], collections.Counter()
    seen = {os.path.realpath(folder) for folder in without}
    pending = [root]
    while pending:
        directory = pending.pop()
        real = os.path.realpath(directory)
        if real in seen:
            continue
        seen.add(real)
        for entry in sorted(os.scandir(directory), key=lambda e: e.name):
            if entry.name.startswith("."):
                continue
            if entry.is_symlink():
                _check_link(entry.path, real_root, anywhere)
            if entry.is_dir():
                pending.append(pathlib.Path(entry.path))
                continue
            suffix = os.path.splitext(entry.name)[1].lower()
            if suffix in UNREADABLE:
                raise UserError(f"{entry.path!r}: {UNREADABLE[suffix]} cannot be read; convert it to PNG or JPEG, or move it away")
            if suffix in EXTENSIONS and entry.is_file():
                files.append(os.path.relpath(entry.path, root).replace(os.sep, "/"))
            else:
                others[suffix or "(none)"] += 1
    if not files:
        there = ", ".join(f"{n} {suffix}" for suffix, n in others.most_common(8)) or "no files"
        raise UserError(f"{key}={str(root)!r}: no images; looked at any depth for {' '.join(EXTENSIONS)} in any case, found {there}")
    return sorted(files)


def _check_link(path: str, real_root: str, anywhere: bool) -> None:
    target = os.path.realpath(path)
    if not os.path.exists(target):
        raise UserError(f"{path!r}: a link to {target!r}, which does not exist; mend or remove it")
    if not anywhere and target != real_root and not target.startswith(real_root + os.sep):
        raise UserError(f"{path!r}: a link that leads out of the folder, to {target!r}; copy the file in, or write links='anywhere'")


def _class_names(found: dict[pathlib.Path, list[str]]) -> tuple[str, ...]:
    loose = [str(root / file) for root, files in found.items() for file in files if "/" not in file]
    if loose:
        raise UserError(f"labels='folders': {len(loose)} images lie in no class folder: {', '.join(map(repr, loose[:SHOWN]))}; "
                        "move them, or write labels='none'")
    return tuple(sorted({file.split("/", 1)[0] for files in found.values() for file in files}))


def _part(files: list[str], split: str, held_out: float, folder: str) -> list[str]:
    count = min(max(1, round(held_out * len(files))), len(files) - 1) if held_out else 0
    ranked = sorted(files, key=lambda file: hashlib.sha256(os.fsencode(file)).digest())
    test = set(ranked[:count])
    part = [file for file in files if (file in test) == (split == "test")]
    if not part:
        raise UserError(f"folder={folder!r}: {len(files)} images and held_out={held_out} leave none for split '{split}'")
    return part


def _check(split, folder, channels, held_out, labels, links) -> None:
    for key, word, known in (("split", split, ("train", "test")), ("labels", labels, ("none", "folders")),
                             ("links", links, ("inside", "anywhere"))):
        if word not in known:
            raise UserError(f"{key}={word!r}: expected {' or '.join(known)}")
    if not folder:
        raise UserError("folder='': expected the path of a folder of images")
    if channels not in (1, 3):
        raise UserError(f"channels={channels}: expected 1 or 3")
    if not np.isfinite(held_out) or not 0 <= held_out < 1:
        raise UserError(f"held_out={held_out}: expected 0 to below 1")
