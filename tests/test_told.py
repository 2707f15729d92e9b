"""`Model.condition`: what a user says, to what the network is told and what guidance steps away from. Each test says which mistake it
catches.
"""

import dataclasses
import functools
import json
import types

import jax
import numpy as np
import pytest

from ldm_jax import choices, output
from ldm_jax import experiment as ex
from ldm_jax.asked import prepare
from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import base_key
from ldm_jax.data.prompts import encode_prompts
from ldm_jax.models.autoencoder import AUTOENCODERS
from ldm_jax.models.condition import first_condition
from ldm_jax.models.first_stage import FirstStage
from ldm_jax.models.text_condition import BertText
from ldm_jax.models.units import LatentUnits
from ldm_jax.ops.images import write_png
from ldm_jax.pipeline import Model
from ldm_jax.said import Said, condition_beside, parse_pair, read_prompts, with_last
from ldm_jax.tokenized import skipping
from ldm_jax.train.sharding import make_mesh
from tests.data.vocabularies import bert_folder, clip_folder

FACTS = choices.Facts(channels=1, resolution=32, classes=10)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (2, 32, 32, 1)).astype(np.uint8)
MASK = np.zeros((32, 32), bool)
MASK[:, 20:] = True
TRANSFORMER = (dict(width=8, blocks=1, attention="transformer", heads=2, depth=1, down="none"),)


@pytest.fixture(scope="module")
def make_model(make_ldm_config):
    """Models with random conditioners, a first stage that only shifts and scales, and networks without parameters."""
    first = FirstStage(AUTOENCODERS["identity"](channels=1, resolution=32), LatentUnits((0.5,), (2.0,)))

    def make(section, **changes):
        config = make_ldm_config("given", **{"conditioner": section, "sampling.guidance": 1.0} | changes)
        experiment = ex.build(config, FACTS, first)
        params = jax.jit(lambda key: first_condition(experiment.conditioner, (32, 32, 1), (32, 32, 1), key)[1])(base_key(1))
        return Model(experiment, first, {"conditioner": params}, {}, None, "", make_mesh())

    return make


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return clip_folder(tmp_path_factory.mktemp("vocabularies") / "clip")


@pytest.fixture(scope="module")
def sections(vocabulary):
    """Text, a masked image and sizes."""
    known = json.loads((vocabulary / "vocab.json").read_text())
    text = dict(name="clip_text", width=8, layers=2, heads=2, vocabulary=len(known), length=6, bos=len(known) - 2, eos=len(known) - 1,
                pad=0, final_norm=False)
    return {"name": "several", "parts": (text, dict(name="inpainting"), dict(name="sizes", count=6, width=4))}


@pytest.fixture(scope="module")
def model(make_model, sections, vocabulary):
    return make_model(sections, **{"network.levels": TRANSFORMER}).with_tokenizer(vocabulary)


SEEN = {"image": IMAGES, "mask": MASK[None]}


def parts(model, fields, count=2):
    """(the condition, the null) that the conditioner itself makes of fields."""
    def both(params, fields):
        def encode(image):
            return model.first_stage.encode({}, image)

        apply = functools.partial(model.experiment.conditioner.apply, {"params": params})
        return apply(fields, None, encode), apply(count, fields, encode, method="null")

    return jax.jit(both)(model.params["conditioner"], fields)


def same(found, wanted):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, wanted)


def test_prompts_and_images_reach_the_conditioner(model):
    """Mistakes: weights of a prompt lost, width and height exchanged, a uint8 picture not brought to [-1, 1], a null that forgets the
    picture or has the prompt."""
    prompts = ["a (cat:1.5)", "red dog"]
    told = model.condition(prompts=prompts, **SEEN, original_size=(40, 30), crop=[(0, 0), (1, 2)])
    ids, weights, _ = encode_prompts(model.tokenizers[0], prompts)
    assert weights.max() == 1.5
    fields = {"tokens": ids, "token_weights": weights, "image": IMAGES / np.float32(127.5) - 1, "mask": np.stack([MASK] * 2),
              "sizes": np.float32([[30, 40, 0, 0, 32, 32], [30, 40, 2, 1, 32, 32]])}
    given, null = parts(model, fields)
    same(told.given, given)
    same(told.null, null)
    assert np.array_equal(told.given.image, told.null.image) and np.abs(told.given.tokens - told.null.tokens).max() > 0.01


def test_layers_are_skipped(model, make_model, sections, vocabulary):
    """Mistakes: the null left at the model's own layer, a skip that is forgotten, one for a model without CLIP taken."""
    text, *others = sections["parts"]
    earlier = make_model(sections | {"parts": (text | {"skip": 1}, *others)}, **{"network.levels": TRANSFORMER})
    earlier = dataclasses.replace(earlier, params=model.params, tokenizers=model.tokenizers)
    asked = dict(prompts=["a cat", "red"], **SEEN)
    told, wanted = model.condition(clip_skip=1, **asked), earlier.condition(**asked)
    same((told.given, told.null), (wanted.given, wanted.null))
    plain = model.condition(**asked)
    assert np.abs(plain.given.tokens - told.given.tokens).max() > 0.01 and np.abs(plain.null.tokens - told.null.tokens).max() > 0.01
    for wrong, match in ((2, "clip_skip=2: skip=2: expected 0"), (-1, "0 or above"), (1.0, "0 or above")):
        with pytest.raises(UserError, match=match):
            model.condition(clip_skip=wrong, **asked)
    with pytest.raises(UserError, match="no CLIP text encoder"):
        skipping(BertText(), 1)


def test_negative_prompts_stand_in_the_nulls_place(model, capsys):
    """Mistakes: negatives told beside the prompts, another number of windows than the prompts', pictures lost from the null."""
    told = model.condition(prompts=["a cat a dog red cat"], negative_prompts=["a dog", "red"], long_prompts="many", **SEEN)
    assert told.given.tokens.shape == told.null.tokens.shape and told.null.tokens.shape[:2] == (2, 12)
    plain = model.condition(prompts=["a dog", "red"], **SEEN).given
    np.testing.assert_allclose(told.null.tokens[:, :6], plain.tokens, atol=2e-5)
    assert np.array_equal(told.null.image, told.given.image)
    model.condition(prompts=["a cat a dog red cat"], **SEEN)
    assert "prompt 'a cat a dog red cat': too long for the model's text encoder, this was left out: 'red cat'" in capsys.readouterr().err


def test_what_is_dropped_in_training_may_be_left_out(model):
    """Mistakes: a model that cannot be asked without a prompt, or without the picture that it always had."""
    told = model.condition(**SEEN)
    assert np.array_equal(told.given.tokens, told.null.tokens) and told.given.tokens.shape[0] == 2
    for ask in (model.condition, lambda: model.null(1), lambda: model.condition(prompts=["a cat"], image=IMAGES)):
        with pytest.raises(UserError, match="mask: this model must be told"):
            ask()


def test_guidance_takes_the_null_of_the_condition(model):
    """Mistakes: a null without the picture where the condition has one, a Guided that is refused, a negative that is not preferred."""
    told, asked = model.condition(prompts=["a cat", "red dog"], **SEEN), {"guidance": 2.0}
    job = prepare(model, told, 2, asked)
    same(job.inputs.told.given, told.given)
    same(job.inputs.told.null, told.null)
    other = model.condition(prompts=["red"], **SEEN)
    same(prepare(model, told, 2, asked | {"negative": other}).inputs.told.null, other.given)
    with pytest.raises(UserError, match="must be told"):
        prepare(model, told.given, 2, asked)  # a Condition alone does not say what its null's picture is


@pytest.mark.parametrize("told, words", [
    ({"depth": np.zeros((1, 32, 32))}, "depth: this model does not read it; it reads .*image"),
    ({"labels": [1]}, "labels: this model was trained without labels"),
    ({"prompts": "a cat"}, "expected a list of texts"), ({"prompts": []}, "expected a list of texts"),
    ({"prompts": ["a"] * 3}, "prompts of 3|image of 2.*and 3 examples"),
    ({"negative_crop": (0, 0)}, "negative_crop: this model does not read it"),
    ({"aesthetic": 6.0}, "aesthetic: this model does not read it"),
    ({"original_size": 512}, "original_size=512: expected .width, height."),
    ({"prompts": ["a"], "long_prompts": "all"}, "windows='all'"),
    ({"mask": 2.0 * MASK[None]}, "mask: expected 0")])
def test_what_the_model_does_not_read_is_refused(told, words, model):
    """Mistake: a wish that changes nothing, and nobody is told."""
    with pytest.raises(UserError, match=words):
        model.condition(**SEEN | told)


def test_tokenizers_belong_to_the_model(make_model, sections, vocabulary, model, tmp_path):
    """Mistakes: ids of another vocabulary, which are words of this one; padding of the folder where the encoder had another."""
    bare = make_model(sections, **{"network.levels": TRANSFORMER})
    with pytest.raises(UserError, match="came without its tokenizer"):
        bare.condition(prompts=["a cat"], **SEEN)
    assert model.tokenizers[0].pad == 0 != model.tokenizers[0].eos and model.tokenizers[0].length == 6
    assert with_last(bare, ["nowhere", vocabulary]).tokenizers == model.tokenizers
    assert with_last(model, ["nowhere"]) is model and with_last(bare, []) is bare  # its own stay
    with pytest.raises(UserError, match="2 folders for 1 text encoder"):
        bare.with_tokenizer(vocabulary, vocabulary)
    short = dict(sections["parts"][0], vocabulary=30, bos=28, eos=29)
    with pytest.raises(UserError, match="is it this model's"):
        make_model(short, **{"network.levels": TRANSFORMER}).with_tokenizer(vocabulary)
    with pytest.raises(UserError, match="vocab.json"):
        bare.with_tokenizer(bert_folder(tmp_path / "bert"))


def test_a_small_image_is_noised_by_its_own_seed(make_model):
    """Mistakes: one noise for the batch, noise that depends on the place in it, a level that is not told."""
    upscaler = make_model(dict(name="low_resolution", levels=10, width=32), **{"network.vector": "added"})
    small = IMAGES
    told = upscaler.condition(low_res=small, noise_level=[5], noise_seeds=[3, 4])
    assert told.null is None and told.given.vector.shape == (2, 32)
    alone = upscaler.condition(low_res=small[1:], noise_level=[5], noise_seeds=[4])
    np.testing.assert_allclose(alone.given.image, told.given.image[1:], atol=1e-6)
    same_image = upscaler.condition(low_res=small[:1], noise_level=[5], noise_seeds=[3, 4]).given.image
    assert np.abs(same_image[0] - same_image[1]).max() > 0.1
    with pytest.raises(UserError, match="noise_level: this model must be told it"):
        upscaler.condition(low_res=small)


def test_the_refiners_null_has_its_own_rating(make_model, sections):
    """Mistakes: a rating of 6 on both sides, numbers in another order than the published, a size that the refiner is not told, and a
    number that it does not read."""
    text = dict(sections["parts"][0], vector="pooled", projection=8)
    refiner = make_model({"name": "several", "parts": (text, dict(name="sizes", count=5, width=4))}, **{"network.levels": TRANSFORMER})
    told = refiner.condition(original_size=(64, 48), aesthetic=7.0)
    rating = [np.cos(7.0), np.cos(2.5)]
    assert told.given.vector.shape == (1, 8 + 20)
    np.testing.assert_allclose([told.given.vector[0, -4], told.null.vector[0, -4]], rating, atol=1e-5)
    np.testing.assert_allclose(told.given.vector[0, 8], np.cos(48.0), atol=1e-5)
    request = output.Request(1, making={"size": (48, 64)}, said=Said(numbers={"target_size": (8, 8)}))
    np.testing.assert_allclose(condition_beside(refiner, request).given.vector[0, 8], np.cos(64.0), atol=1e-5)


def test_the_command_says_it_all(model, monkeypatch, tmp_path):
    """Mistakes: prompts that do not go round as labels do, a mask that is pasted where the model is told it, a picture's folder in
    samples.json, a size that is not what the model is told."""
    write_png(tmp_path / "digit.png", IMAGES[0])
    write_png(tmp_path / "mask.png", np.uint8(MASK * 255)[..., None])
    seen = {}

    def batches(self, condition, **given):
        seen.update(condition=condition, **given)
        return iter([np.zeros((3, 32, 32, 1), np.uint8)])

    monkeypatch.setattr(Model, "batches", batches)
    named = dataclasses.replace(model, manifest=types.SimpleNamespace(weights="ema"))
    said = Said(("a (cat:1.5)", "red dog"), ("a dog",), numbers={"crop": (1, 2), "aesthetic": None})
    pictures = output.pictures_of(str(tmp_path / "digit.png"), str(tmp_path / "mask.png"), None)
    request = output.Request(3, sampling={"guidance": 2.0}, pictures=pictures, said=said, making={"size": (32, 32)})
    output.sample_to(named, request, str(tmp_path / "out"))
    wanted = model.condition(prompts=[said.prompts[i] for i in (0, 1, 0)], negative_prompts=["a dog"], image=IMAGES[:1], mask=MASK[None],
                             crop=(1, 2))
    same(seen["condition"], wanted)
    assert "init" not in seen and "mask" not in seen
    text = (tmp_path / "out" / "samples.json").read_text()
    page = json.loads(text)
    assert page["images"][2] == {"file": "000002.png", "seed": 2, "condition": {"label": None, "prompt": "a (cat:1.5)"},
                                 "negative": {"prompt": "a dog"}}
    assert [image["condition"]["prompt"] for image in page["images"]] == ["a (cat:1.5)", "red dog", "a (cat:1.5)"]
    assert "unconditional" not in page and "long_prompts" not in page
    assert page["crop"] == [1, 2] and page["init_image"]["file"] == "digit.png" and str(tmp_path) not in text
    for changes, words in (({"sampling": {"guidance": 1.0}}, "--negative_prompt: without classifier-free guidance"),
                           ({"pictures": output.pictures_of(str(tmp_path / "digit.png"), "", 0.5)}, "--mask: this model fills in"),
                           ({"pictures": None}, "image, mask: this model must be told them"),
                           ({"said": Said(), "pictures": None}, "this model reads --prompt, --init_image, --mask, and is told nothing"),
                           ({"said": Said(("a cat a dog red",))}, "prompt 'a cat a dog red': .* this would be lost: 'red'"),
                           ({"said": Said(("a cat",), ("a cat a dog red",))}, "this would be lost: 'red'"),
                           ({"said": Said(depth=(str(tmp_path / "digit.png"),))}, "depth: this model does not read it")):
        with pytest.raises(UserError, match=words):
            output.sample_to(named, dataclasses.replace(request, **changes), str(tmp_path / "out"))


def test_files_and_pairs_in_words(tmp_path):
    """Mistakes: an empty line taken for a prompt, a size whose second number is lost."""
    (tmp_path / "prompts.txt").write_text("a cat\n\n  red dog \n", "utf-8")
    assert read_prompts(str(tmp_path / "prompts.txt")) == ("a cat", "red dog")
    assert parse_pair("512x768", "--target_size") == (512, 768) and parse_pair("0,16", "--crop") == (0, 16)
    assert parse_pair("", "--crop") is None
    (tmp_path / "empty.txt").write_text("\n")
    for ask, words in ((lambda: parse_pair("512", "--crop"), "--crop=512: expected two whole numbers, as --crop=0,16"),
                       (lambda: read_prompts(str(tmp_path / "none.txt")), "no such file"),
                       (lambda: read_prompts(str(tmp_path / "empty.txt")), "holds no prompt")):
        with pytest.raises(UserError, match=words):
            ask()
