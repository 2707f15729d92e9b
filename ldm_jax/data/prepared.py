"""Source `tfds`: any dataset that TensorFlow Datasets has prepared on disk as array_record. Reading needs no TensorFlow."""

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Literal

import numpy as np

from ldm_jax.core.choose import nearest
from ldm_jax.core.errors import UserError
from ldm_jax.data.decode import read_image
from ldm_jax.data.maps import fitting, read_classes

NAME = re.compile(r"(?P<name>[a-z][a-z0-9_]*)(/(?P<config>[A-Za-z0-9][A-Za-z0-9_.+-]*))?(:(?P<version>\d+\.\d+\.\d+))?")


class Prepared:
    """One split of a prepared dataset, read through `as_data_source` of its read-only builder: no dataset code is
    imported, nothing is downloaded, and images stay encoded until they are asked for.

    Args:
      dataset: "name", "name/config", "name:1.2.3" or "name/config:1.2.3"; the newest prepared version unless one is named.
        Nothing else passes: no paths, addresses or module:attribute.
      data_dir: where it was prepared; "" is TFDS_DATA_DIR, else ~/tensorflow_datasets.
      train, test: what the splits are called there; slices as "train[:90%]" work.
      image, label, caption: the names of its features; "" for no labels or no captions. One inside of a sequence is written
        captions/text. Of several captions of an image, training takes one by the seed and the position, or, with
        config.data.variants, by the seed, the record and its variant; evaluation the first.
      boxes: the name of a sequence of objects with bbox and label, as "objects", or "" for none. How many classes they have is
        `box_names` long.
      segmentation: the name of an image feature that holds a class for each pixel, or "" for none.
      channels: 3 or 1.

    Fields: draws, whether captions lie in a sequence, so that a record may have several.

    Raises:
      UserError: a name that is not allowed, a dataset that is not prepared there or not as array_record, a split or a
        feature that it has not (what it has is listed); at reading, a bad image or map (see decode.py, maps.py).
    """

    name, version = "tfds", "1"

    def __init__(self, split: Literal["train", "test"], dataset: str, data_dir: str = "", train: str = "train", test: str = "test",
                 image: str = "image", label: str = "label", caption: str = "", channels: int = 3, boxes: str = "",
                 segmentation: str = ""):
        if split not in ("train", "test"):
            raise UserError(f"split={split!r}: expected train or test")
        if channels not in (1, 3):
            raise UserError(f"channels={channels}: expected 1 or 3")
        folder = _find(dataset, data_dir)
        import tensorflow_datasets as tfds

        self._builder = tfds.builder_from_directory(str(folder))
        features = self._builder.info.features
        self._keys = {"image": image, "label": label, "caption": caption}
        self._keys |= {kind: key for kind, key in (("boxes", boxes), ("segmentation", segmentation)) if key}
        self.channels, self.split = channels, train if split == "train" else test
        kinds = tfds.features
        wanted = {"image": (kinds.Image, ""), "label": (kinds.ClassLabel, "; label='' for none"), "segmentation": (kinds.Image, "")}
        for kind, key in self._keys.items():
            if key or kind == "image":
                found, (expected, none) = _feature(features, kind, key, dataset), wanted.get(kind, (object, ""))
                if not isinstance(found, expected):
                    raise UserError(f"{kind}={key!r}: expected {'an' if expected is kinds.Image else 'a'} {expected.__name__}"
                                    f"{' feature' * (expected is kinds.Image)}, {dataset} has {type(found).__name__} there{none}")
        self.draws = bool(caption) and (caption not in features or hasattr(features[caption], "feature"))
        self.classes = features[label].num_classes if label else 0
        self.box_names = _check_boxes(features[boxes], boxes, dataset) if boxes else ()
        encoded = {key: tfds.decode.SkipDecoding() for key, feature in features.items() if isinstance(feature, kinds.Image)}
        self._rows = _rows(self._builder, self.split, encoded, dataset)

    def __len__(self) -> int:
        return len(self._rows)

    def caption(self, i: int) -> str | None:
        """Of a record, the first one, without its image."""
        return self._captions(self._rows[int(i)], self._where(i))[0] if self._keys["caption"] else None

    def _captions(self, row: Mapping, where: str) -> tuple[str, ...]:
        found = _value(row, self._keys["caption"])
        texts = tuple(_text(value, where) for value in (found if isinstance(found, list) else [found]))
        if not texts:
            raise UserError(f"{where}: {self._keys['caption']} is empty, expected one caption or more")
        return texts

    def _where(self, i: int) -> str:
        return f"{self._builder.info.full_name} {self.split} record {i}"

    def __getitem__(self, i: int) -> dict:
        row, where = self._rows[int(i)], self._where(i)
        record = {"image": read_image(bytes(row[self._keys["image"]]), self.channels, where)}
        if self._keys["label"]:
            record["label"] = int(row[self._keys["label"]])
        if self._keys["caption"]:
            record["captions"] = self._captions(row, where)
            record["caption"] = record["captions"][0]
        if "boxes" in self._keys:
            objects = row[self._keys["boxes"]]
            boxes = np.array(objects["bbox"], np.float32).reshape(-1, 4)
            bad = boxes[~((boxes >= 0) & (boxes <= 1)).all(1)]
            if len(bad):
                raise UserError(f"{where}: {self._keys['boxes']}: expected top, left, bottom, right in 0 to 1, got "
                                f"{', '.join(f'{x:g}' for x in bad[0])}")
            record |= {"boxes": boxes[:, [1, 0, 3, 2]], "box_labels": np.array(objects["label"], np.int32).reshape(-1)}
        if "segmentation" in self._keys:
            record["segmentation"] = fitting(read_classes(bytes(row[self._keys["segmentation"]]), where), record["image"], where)
        return record

    def fingerprint(self) -> dict:
        base = self._builder.info.splits[re.split(r"[\[+]", self.split)[0]]
        return {"name": self.name, "version": self.version, "dataset": self._builder.info.full_name, "split": self.split,
                "records": len(self), "bytes": int(base.num_bytes), "shards": [int(n) for n in base.shard_lengths],
                "keys": self._keys, "channels": self.channels}


def _feature(features, kind: str, key: str, dataset: str):
    """The feature of a name; "a/b" is the feature so called, or b of the sequence a."""
    outer, slash, inner = key.partition("/")
    if key in features or not slash or outer not in features:
        if key not in features:
            raise UserError(f"{kind}={key!r}: {dataset} has the features {nearest(key, features)}")
        return features[key]
    inside = _inside(features[outer])
    if inner not in inside:
        raise UserError(f"{kind}={key!r}: {outer} of {dataset} has {nearest(inner, inside) or 'no features inside'}")
    return inside[inner]


def _inside(feature) -> Mapping:
    """The features of each thing in a sequence; {} of any other feature."""
    inside = getattr(feature, "feature", None)
    return dict(inside.items()) if hasattr(inside, "items") else {}


def _value(row: Mapping, key: str):
    outer, _, inner = key.partition("/")
    return row[key] if key in row else row[outer][inner]


def _check_boxes(feature, key: str, dataset: str) -> tuple[str, ...]:
    """The names of the classes of a sequence of objects."""
    import tensorflow_datasets as tfds

    inside, kinds = _inside(feature), tfds.features
    if not isinstance(inside.get("bbox"), kinds.BBoxFeature) or not isinstance(inside.get("label"), kinds.ClassLabel):
        has = ", ".join(f"{name}: {type(found).__name__}" for name, found in sorted(inside.items())) or type(feature).__name__
        raise UserError(f"boxes={key!r}: expected a sequence of objects with bbox (a BBoxFeature) and label (a ClassLabel), {dataset} has "
                        f"{has} there")
    form = getattr(inside["bbox"].bbox_format, "name", "REL_YXYX")  # those prepared before there was a choice say nothing
    if form != "REL_YXYX":
        raise UserError(f"boxes={key!r}: {dataset} keeps boxes as {form}, expected REL_YXYX: top, left, bottom, right in 0 to 1")
    return tuple(inside["label"].names)


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
