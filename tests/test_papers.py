"""configs/papers.py: each row is of one piece, from its data set to what its network is told. Nothing is trained or read here."""

import dataclasses
import pathlib

import numpy as np
import pytest

from ldm_jax import choices, config_file, data_choices, experiment
from ldm_jax.core.choose import takes
from ldm_jax.core.errors import UserError
from ldm_jax.data.sources import SOURCES
from ldm_jax.interop.described import autoencoder_of
from ldm_jax.interop.zoo import ZOO
from ldm_jax.models.first_stage import FirstStage
from ldm_jax.models.units import unit_of

FILE = str(pathlib.Path(__file__).resolve().parents[1] / "configs" / "papers.py")
RNG = np.random.default_rng(0)
RECORD = {"image": RNG.integers(0, 256, (256, 256, 3), dtype=np.uint8), "caption": "two",
          "segmentation": np.full((256, 256), 181, np.uint8), "boxes": np.array([[0.1, 0.2, 0.5, 0.9]], np.float32),
          "box_labels": np.array([79]), "window": (0.0, 0.0, 1.0, 1.0, False), "size": (256, 256)}


@dataclasses.dataclass(frozen=True)
class Words:
    """A tokenizer of the encoder's own marks, in the place of a folder that tests have not."""

    bos: int
    eos: int
    pad: int
    vocabulary: int
    length: int = 77
    kind: str = "bert"
    digest: str = ""

    def ids(self, text: str) -> list[int]:
        return [5] * len(text)

    def decode(self, ids: list[int]) -> str:
        return ""


def module() -> dict:
    import runpy

    return runpy.run_path(FILE)


PAPERS = module()


@pytest.fixture(scope="module")
def built():
    """{row: (config, experiment)}."""
    made = {}
    for row in PAPERS["ARGUMENTS"]:
        config, first = config_file.load(f"{FILE}:{row}"), None
        experiment.check_keys(config)
        if row in PAPERS["FIRST_STAGES"]:
            stage = autoencoder_of(ZOO[PAPERS["FIRST_STAGES"][row]])
            first = FirstStage(stage, unit_of(stage.latent_channels))
        classes = 1000 if config["data"]["source"]["label" if config["data"]["source"]["name"] == "tfds" else "labels"] == "label" else 0
        made[row] = config, experiment.build(config, choices.Facts(3, config["data"]["resolution"], classes), first)
    return made


def test_every_row_is_told_what_it_reads(built):
    """Mistake: a key that its source or a transform does not take; a field that nothing makes, or of another size than is read."""
    assert set(PAPERS["FIRST_STAGES"]) == {row for row, (config, _) in built.items() if config["task"] == "diffusion"} and len(built) > 20
    for row, (config, made) in built.items():
        source = dict(config["data"]["source"])
        assert set(source) == {"name", *takes(SOURCES[source["name"]])} - {"split"}, row
        assert data_choices.transforms(config), row
        if config["task"] == "autoencoder":
            continue
        section = config["conditioner"]
        words = Words(*(section[key] for key in ("bos", "eos", "pad", "vocabulary"))) if "tokens" in config["data"]["fields"] else None
        fields = data_choices.fields_of(config, made.conditioner, made.autoencoder.factor, {"tokens": words} if words else None)
        data_choices.check_fields(made.conditioner, made.facts, fields)
        wanted = made.conditioner.example(1, (256, 256, 3), made.latent_shape) if made.conditioner.fields else {}
        for name, maker in fields.items():
            told = maker(RECORD, np.random.default_rng(0))
            for field in maker.gives:  # texts may be of several windows, which a batch's are not
                assert told[field].shape == np.squeeze(wanted[field], 0 if field not in ("tokens", "boxes_tokens") else (0, 1)).shape, row
            assert name in maker.gives, row


@pytest.mark.parametrize("row, stage, rate, batch, steps", [
    ("celeba-hq", "vq-f4", 9.6e-5, 48, 410_000), ("ffhq", "vq-f4", 8.4e-5, 42, 635_000),
    ("lsun-churches", "kl-f8", 5e-5, 96, 500_000), ("lsun-bedrooms", "vq-f4", 9.6e-5, 48, 1_900_000),
    ("imagenet", "vq-f4", 1e-4, 1200, 178_000), ("coco-layout", "vq-f8", 4.8e-5, 48, 170_000),
    ("openimages-layout", "vq-f4", 4.8e-5, 24, 4_400_000), ("text-to-image", "kl-f8", 5e-5, 680, 390_000),
    ("imagenet-sr", "vq-f4", 6.4e-5, 64, 860_000), ("places-inpainting", "vq-f4-noattn", 1e-6, 128, 360_000),
    ("openimages-vq-f4", None, 3.6e-5, 8, 533_066)])
def test_numbers_are_the_papers(built, row, stage, rate, batch, steps):
    """Mistake: a relative's first stage, rate, batch or length. The numbers are of arXiv 2112.10752, tables 12 to 15, and model cards."""
    config = built[row][0]
    assert PAPERS["FIRST_STAGES"].get(row) == stage and config["learning_rate"]["peak"] == pytest.approx(rate)
    assert (config["data"]["batch"], config["run"]["steps"]) == (batch, steps)


def test_an_unknown_row_lists_the_known_ones():
    """Mistake: a traceback, or a message without the names."""
    for argument in (f"{FILE}:imagenet512", FILE):
        with pytest.raises(UserError, match="expected a row after the colon, one of imagenet, .*openimages-vq-f16"):
            config_file.load(argument)
