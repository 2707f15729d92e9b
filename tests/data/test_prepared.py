"""Source `tfds`, on a real array_record dataset that is prepared here. Nothing of it needs TensorFlow."""

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
from ldm_jax.data.batches import stream
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


def test_reading_loads_no_tensorflow_and_no_dataset_code(data_dir):
    code = textwrap.dedent(f"""
        import sys
        from ldm_jax.data.prepared import Prepared
        from ldm_jax.data.batches import in_order
        list(in_order(Prepared("test", "tiny_pictures/old", {data_dir!r}), (), batch=2, resolution=None))
        print([m for m in sys.modules if m.split(".")[0] in ("tensorflow", "torch") or m.startswith("tensorflow_datasets.image_")])
    """)
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
