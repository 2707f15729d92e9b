"""Source `tfds`: any dataset that TensorFlow Datasets has prepared on disk as array_record. Reading needs no TensorFlow."""

import os
import pathlib
import re
from typing import Literal

import numpy as np

from ldm_jax.core.choose import nearest
from ldm_jax.core.errors import UserError
from ldm_jax.data.decode import read_image

NAME = re.compile(r"(?P<name>[a-z][a-z0-9_]*)(/(?P<config>[A-Za-z0-9][A-Za-z0-9_.+-]*))?(:(?P<version>\d+\.\d+\.\d+))?")


class Prepared:
    """One split of a prepared dataset, read through `as_data_source` of its read-only builder: no dataset code is
    imported, nothing is downloaded, and images stay encoded until they are asked for.

    Args:
      dataset: "name", "name/config", "name:1.2.3" or "name/config:1.2.3"; the newest prepared version unless one is named.
        Nothing else passes: no paths, addresses or module:attribute.
      data_dir: where it was prepared; "" is TFDS_DATA_DIR, else ~/tensorflow_datasets.
      train, test: what the splits are called there; slices as "train[:90%]" work.
      image, label, caption: the names of its features; "" for no labels or no captions.
      channels: 3 or 1.

    Raises:
      UserError: a name that is not allowed, a dataset that is not prepared there or not as array_record, a split or a
        feature that it has not (what it has is listed); at reading, a bad image (see decode.py).
    """

    name, version = "tfds", "1"

    def __init__(self, split: Literal["train", "test"], dataset: str, data_dir: str = "", train: str = "train", test: str = "test",
                 image: str = "image", label: str = "label", caption: str = "", channels: int = 3):
        if split not in ("train", "test"):
            raise UserError(f"split={split!r}: expected train or test")
        if channels not in (1, 3):
            raise UserError(f"channels={channels}: expected 1 or 3")
        folder = _find(dataset, data_dir)
        import tensorflow_datasets as tfds

        self._builder = tfds.builder_from_directory(str(folder))
        features = self._builder.info.features
        self._keys = {"image": image, "label": label, "caption": caption}
        self.channels, self.split = channels, train if split == "train" else test
        for kind, key in self._keys.items():
            if (key or kind == "image") and key not in features:
                raise UserError(f"{kind}={key!r}: {dataset} has the features {nearest(key, features)}")
        if not isinstance(features[image], tfds.features.Image):
            raise UserError(f"image={image!r}: expected an Image feature, {dataset} has {type(features[image]).__name__} there")
        if label and not isinstance(features[label], tfds.features.ClassLabel):
            raise UserError(f"label={label!r}: expected a ClassLabel, {dataset} has {type(features[label]).__name__} there; "
                            "label='' for none")
        self.classes = features[label].num_classes if label else 0
        self._rows = _rows(self._builder, self.split, {image: tfds.decode.SkipDecoding()}, dataset)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> dict:
        row, where = self._rows[int(i)], f"{self._builder.info.full_name} {self.split} record {i}"
        record = {"image": read_image(bytes(row[self._keys["image"]]), self.channels, where)}
        if self._keys["label"]:
            record["label"] = int(row[self._keys["label"]])
        if self._keys["caption"]:
            record["caption"] = _text(row[self._keys["caption"]], where)
        return record

    def fingerprint(self) -> dict:
        base = self._builder.info.splits[re.split(r"[\[+]", self.split)[0]]
        return {"name": self.name, "version": self.version, "dataset": self._builder.info.full_name, "split": self.split,
                "records": len(self), "bytes": int(base.num_bytes), "shards": [int(n) for n in base.shard_lengths],
                "keys": self._keys, "channels": self.channels}


def _find(dataset: str, data_dir: str) -> pathlib.Path:
    match = NAME.fullmatch(dataset)
    if not match:
        raise UserError(f"dataset={dataset!r}: expected name, name/config, name:1.2.3 or name/config:1.2.3 (lower case, no paths, "
                        "addresses or module:attribute)")
    root = pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    if not root.is_dir():
        raise UserError(f"data_dir={str(root)!r}: no such directory; {dataset} must be prepared first: {_how(dataset, root)}")
    base = root / match["name"]
    versions = base / match["config"] if match["config"] else base
    ready = {tuple(map(int, p.name.split("."))): p for p in versions.glob("*.*.*") if re.fullmatch(r"\d+\.\d+\.\d+", p.name)
             and (p / "dataset_info.json").is_file()}
    wanted = tuple(map(int, match["version"].split("."))) if match["version"] else max(ready, default=None)
    if wanted not in ready:
        there = sorted(f"{p.parent.parent.relative_to(root)}:{p.parent.name}" for p in root.glob("*/**/dataset_info.json"))
        raise UserError(f"dataset={dataset!r} is not prepared in {str(root)!r} (there: {', '.join(there[:10]) or 'nothing'}): "
                        f"{_how(dataset, root)}")
    return ready[wanted]


def _how(dataset: str, root: pathlib.Path) -> str:
    return (f"tfds build {dataset} --file_format=array_record --data_dir={root} "
            "(building many datasets needs TensorFlow installed; reading needs none)")


def _rows(builder, split: str, decoders: dict, dataset: str):
    try:
        return builder.as_data_source(split=split, decoders=decoders)
    except NotImplementedError:
        kind = builder.info.file_format.value
        raise UserError(f"dataset={dataset!r} is prepared as {kind}, which has no random access: convert it with "
                        f"tfds convert_format, or {_how(dataset, builder.data_path)}") from None
    except ValueError as error:
        raise UserError(f"split {split!r} of {dataset}: {str(error).splitlines()[0]}") from None


def _text(value, where: str) -> str:
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, bytes | str):
        raise UserError(f"{where}: the caption is a {type(value).__name__}, expected one text")
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        raise UserError(f"{where}: the caption is not UTF-8") from None
