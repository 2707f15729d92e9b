"""Source `tfds`, on real array_record datasets that are prepared here. Nothing of it needs TensorFlow."""

import io
import itertools
import pathlib
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image

from ldm_jax.core.errors import UserError
from ldm_jax.data.batches import in_order, stream
from ldm_jax.data.prepared import Prepared
from ldm_jax.data.transforms import CropResize

COUNTS = {"train": 7, "test": 3}


def picture(i):
    return np.full((8, 10, 3), 20 * i, np.uint8)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    import tensorflow_datasets as tfds

    class TinyPictures(tfds.core.GeneratorBasedBuilder):
        url_infos = {}  # it looks for checksums in the class's package otherwise, with importlib_resources
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name, version=version) for name, version in (("old", "1.0.0"), ("new", "1.2.0"))]

        def _info(self):
            features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
                        "text": tfds.features.Text(), "number": tfds.features.Scalar(np.int64)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, download_manager):
            return {split: self._generate_examples(count) for split, count in COUNTS.items()}

        def _generate_examples(self, count):
            for i in range(count):
                file = io.BytesIO()
                Image.fromarray(picture(i)).save(file, "PNG")
                file.seek(0)
                yield i, {"image": file, "label": i % 3, "text": f"picture {i}, ä", "number": i}

    root = tmp_path_factory.mktemp("tfds")
    for config in ("old", "new"):
        TinyPictures(data_dir=str(root), config=config, file_format="array_record").download_and_prepare()
    return str(root)


def test_records(data_dir):
    source = Prepared("train", "tiny_pictures/old", data_dir, caption="text")
    assert len(source) == 7 and source.classes == 3 and source.channels == 3
    seen = {record["caption"]: record for record in map(source.__getitem__, range(7))}
    for i in range(7):
        record = seen[f"picture {i}, ä"]
        assert np.array_equal(record["image"], picture(i)) and record["label"] == i % 3
    assert Prepared("test", "tiny_pictures/old:1.0.0", data_dir, channels=1)[0]["image"].shape == (8, 10, 1)
    assert len(Prepared("test", "tiny_pictures/old", data_dir, test="train[5:]", label="")) == 2
    assert "label" not in Prepared("test", "tiny_pictures/new", data_dir, label="")[0]


def test_fingerprints_tell_configs_and_splits_apart(data_dir):
    cases = ("train", "old", "train"), ("test", "old", "train"), ("train", "new", "train"), ("train", "old", "train[1:]")
    made = [Prepared(split, f"tiny_pictures/{config}", data_dir, train=train).fingerprint() for split, config, train in cases]
    assert len({str(f) for f in made}) == 4 and [f["records"] for f in made] == [7, 3, 7, 6]


def test_the_newest_version_is_read_unless_one_is_named(data_dir, tmp_path):
    """Catches versions compared as words: 1.10.0 comes after 1.2.0."""
    for version in ("1.2.0", "1.10.0"):
        folder = tmp_path / "tiny_pictures" / "old" / version
        shutil.copytree(pathlib.Path(data_dir) / "tiny_pictures" / "old" / "1.0.0", folder)
        info = folder / "dataset_info.json"
        info.write_text(info.read_text().replace("1.0.0", version))
    for name, version in (("tiny_pictures/old", "1.10.0"), ("tiny_pictures/old:1.2.0", "1.2.0")):
        assert Prepared("train", name, str(tmp_path)).fingerprint()["dataset"].endswith("/" + version)


def test_through_the_stream(data_dir):
    source = Prepared("train", "tiny_pictures/new", data_dir)
    batches = list(itertools.islice(stream(source, (CropResize(8),), seed=0, batch=7, resolution=8, threads=4), 2))
    assert all(sorted(b["record"].tolist()) == list(range(7)) and b["image"].shape == (7, 8, 8, 3) for b in batches)


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "https://x.org/y", "module:attr", "a.b:C", "Cifar10", "x/..", "x/../y",
                                  "hf:user/set", "", "x/y/z", "x:1.0", "x\n"])
def test_names_that_are_not_allowed(name, data_dir):
    """Catches paths, addresses and code in place of a name (matrix row 44)."""
    with pytest.raises(UserError, match="expected name, name/config"):
        Prepared("train", name, data_dir)


@pytest.mark.parametrize("arguments, message", [
    (dict(dataset="mnist"), "not prepared in .*there: tiny_pictures/new:1.2.0, tiny_pictures/old:1.0.0.*"
                            "tfds build mnist --file_format=array_record.*reading needs none"),
    (dict(dataset="tiny_pictures/old:9.0.0"), "not prepared"), (dict(data_dir="/nowhere/at/all"), "no such directory"),
    (dict(train="validation"), "Unknown split 'validation'"), (dict(train="train["), "split"),
    (dict(image="picture"), "has the features .*image"), (dict(label="number"), "expected a ClassLabel"),
    (dict(image="text"), "expected an Image feature"), (dict(caption="texts"), "has the features text"), (dict(channels=2), "1 or 3"),
])
def test_bad_arguments(arguments, message, data_dir):
    with pytest.raises(UserError, match=message):
        Prepared("train", **dict(dataset="tiny_pictures/old", data_dir=data_dir) | arguments)


def test_another_file_format_is_named(data_dir, tmp_path):
    """tfrecord has no random access: catches TFDS's own message, which names no dataset."""
    shutil.copytree(pathlib.Path(data_dir) / "tiny_pictures", tmp_path / "tiny_pictures")
    info = tmp_path / "tiny_pictures" / "old" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(UserError, match="tiny_pictures/old' is prepared as tfrecord"):
        Prepared("train", "tiny_pictures/old", str(tmp_path))


def encoded(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    file.seek(0)
    return file


CLASSES = np.arange(80, dtype=np.uint16).reshape(8, 10) * 40


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """tiny_scenes as COCO has them: i objects and i + 1 captions in record i, and maps of 16 bits."""
    import tensorflow_datasets as tfds

    kinds = tfds.features

    class TinyScenes(tfds.core.GeneratorBasedBuilder):
        url_infos = {}
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            objects = {"bbox": kinds.BBoxFeature(), "label": kinds.ClassLabel(names=["cat", "dog"]), "id": np.int64}
            features = {"image": kinds.Image(shape=(None, None, 3)), "objects": kinds.Sequence(objects),
                        "map": kinds.Image(shape=(None, None, 1), dtype=np.uint16, encoding_format="png"), "image/name": kinds.Text(),
                        "captions": kinds.Sequence({"text": kinds.Text(), "id": np.int64}),
                        "words": kinds.Sequence(kinds.Text())}
            for name, form in (("old", None), ("corners", "XYXY")):
                features[name] = kinds.Sequence({"bbox": kinds.BBoxFeature(bbox_format=form), "label": kinds.ClassLabel(num_classes=2)})
            return tfds.core.DatasetInfo(builder=self, features=kinds.FeaturesDict(features))

        def _split_generators(self, download_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(3):
                objects = [{"bbox": kinds.BBox(0.1, 0.2 + j / 10, 0.3, 0.9), "label": j % 2, "id": j} for j in range(i)]
                yield i, {"image": encoded(picture(i)), "map": encoded(CLASSES + i), "image/name": f"{i}", "objects": objects,
                          "captions": [{"text": f"{i} {j} ä", "id": j} for j in range(i + 1)], "words": ["w"] * i, "corners": [],
                          "old": [{"bbox": kinds.BBox(0.0, 0.0, 1.0 + i, 1.0), "label": 1}]}

    root = tmp_path_factory.mktemp("scenes")
    TinyScenes(data_dir=str(root), file_format="array_record").download_and_prepare()
    return str(root)


def scenes_source(data_dir, **more):
    return Prepared("train", "tiny_scenes", data_dir, **dict(label="") | more)


def test_objects_maps_and_captions_inside_of_sequences(scenes):
    """Mistake: top before left, as TFDS keeps boxes; no boxes as an array of another shape; a map decoded as a picture of 8 bits; the
    slash of a feature's own name taken for a sequence's; captions of a sequence that are not told to be drawn.
    """
    source = scenes_source(scenes, boxes="objects", segmentation="map", caption="captions/text")
    assert source.box_names == ("cat", "dog") and source.classes == 0
    for record, text in ((source[i], source.caption(i)) for i in range(3)):
        i = int(text[0])
        assert record["boxes"].shape == (i, 4) and record["boxes"].dtype == np.float32 and record["box_labels"].tolist() == [0, 1][:i]
        assert np.allclose(record["boxes"], [[0.2 + j / 10, 0.1, 0.9, 0.3] for j in range(i)] or np.zeros((0, 4)))
        assert record["segmentation"].dtype == np.uint16 and np.array_equal(record["segmentation"], CLASSES + i)
        assert record["captions"] == tuple(f"{i} {j} ä" for j in range(i + 1)) and record["caption"] == text == f"{i} 0 ä"
        assert np.array_equal(record["image"], picture(i))
    assert sorted(scenes_source(scenes, caption="image/name").caption(i) for i in range(3)) == ["0", "1", "2"]
    assert [scenes_source(scenes, caption=key).draws for key in ("captions/text", "words", "image/name", "")] == [True, True, False, False]
    assert source.fingerprint() != scenes_source(scenes).fingerprint()
    assert scenes_source(scenes).fingerprint()["keys"] == {"image": "image", "label": "", "caption": ""}


class Text:
    gives = ("text", "same")

    def __call__(self, record, rng):
        return {"text": np.array(record["caption"]), "same": np.array(int(record["caption"].split()[1]))}


def test_one_of_several_captions_by_the_position(scenes):
    """Mistake: the first one always; one that another field of the same record does not get; one drawn in evaluation, or by no seed."""
    source, fields = scenes_source(scenes, caption="captions/text"), {"a": Text()}
    batches = [next(stream(source, (CropResize(8),), seed=seed, batch=60, fields=fields, threads=0)) for seed in (0, 0, 1)]
    assert batches[0]["text"].tolist() == batches[1]["text"].tolist() != batches[2]["text"].tolist()
    for i in range(3):
        taken = batches[0]["same"][[text.startswith(str(i)) for text in batches[0]["text"].tolist()]]
        assert set(taken.tolist()) == set(range(i + 1)) and len(taken) == 20
    both = {"a": Text(), "b": type("Other", (Text,), {"__call__": lambda self, record, rng: {"b": np.array(record["caption"])}})()}
    batch = next(stream(source, (CropResize(8),), seed=0, batch=60, fields=both, threads=0))
    assert np.array_equal(batch["text"], batch["b"])
    evaluated = next(in_order(source, (CropResize(8),), batch=3, fields=fields, threads=0))
    assert all(text.endswith(" 0 ä") for text in evaluated["text"].tolist())


@pytest.mark.parametrize("arguments, message", [
    (dict(boxes="object"), "boxes='object': tiny_scenes has the features objects"),
    (dict(boxes="captions"), "expected a sequence of objects with bbox .* and label .a ClassLabel., tiny_scenes has id: .* text:"),
    (dict(boxes="image/name"), "tiny_scenes has Text there"),
    (dict(segmentation="objects"), "segmentation='objects': expected an Image feature"),
    (dict(caption="captions/txt"), "caption='captions/txt': captions of tiny_scenes has text, id"),
    (dict(caption="words/text"), "words of tiny_scenes has no features inside"),
    (dict(boxes="corners"), "tiny_scenes keeps boxes as XYXY, expected REL_YXYX"),
])
def test_bad_names_inside_of_sequences(arguments, message, scenes):
    """Mistake: a KeyError at the first batch; boxes of another form read as if they were 0 to 1."""
    with pytest.raises(UserError, match=message):
        scenes_source(scenes, **arguments)


def test_a_record_that_cannot_be_told_is_named(scenes):
    """Mistake: a record without captions that ends in an IndexError; captions that are numbers; boxes in pixels."""
    source = scenes_source(scenes, caption="words")
    empty = [i for i in range(3) if scenes_source(scenes, caption="image/name").caption(i) == "0"][0]
    with pytest.raises(UserError, match=f"tiny_scenes/1.0.0 train record {empty}: words is empty, expected one caption or more"):
        source[empty]
    with pytest.raises(UserError, match="the caption is a .*int64, expected one text"):
        scenes_source(scenes, caption="captions/id")[0]
    old = scenes_source(scenes, boxes="old")
    assert old[empty]["boxes"].tolist() == [[0, 0, 1, 1]]
    with pytest.raises(UserError, match="record .: old: expected top, left, bottom, right in 0 to 1, got 0, 0, [23], 1"):
        old[(empty + 1) % 3]


def test_reading_loads_no_tensorflow_and_no_dataset_code(data_dir):
    code = textwrap.dedent(f"""
        import sys
        from ldm_jax.data.prepared import Prepared
        from ldm_jax.data.batches import in_order
        list(in_order(Prepared("test", "tiny_pictures/old", {data_dir!r}), (), batch=2, resolution=None))
        print([m for m in sys.modules if m.split(".")[0] in ("tensorflow", "torch") or m.startswith("tensorflow_datasets.image_")])
    """)
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
