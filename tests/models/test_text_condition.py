"""Conditioners of text: dropping, nulls, windows, weights, what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.core.choose import choose
from ldm_jax.core.errors import UserError
from ldm_jax.core.trees import count
from ldm_jax.interop.text_names import bert_places, clip_text_places
from ldm_jax.models.bert_text import BertSpec, BertTextEncoder
from ldm_jax.models.conditioners import CONDITIONERS
from ldm_jax.models.given_tokens import Tokens
from ldm_jax.models.prompt_weights import weighted
from ldm_jax.models.text_encoder import ClipSpec, ClipTextEncoder
from tests.nn.parity import random_like, shapes_of

SMALL = dict(width=8, layers=1, heads=2, vocabulary=20, length=6, bos=18, eos=19, pad=19)
SECTIONS = {
    "clip_text": dict(name="clip_text", vector="pooled", projection=5, **SMALL),
    "two_clip_text": dict(name="two_clip_text", first=SMALL, untold="zeros",
                          second=SMALL | dict(width=4, layers=2, projection=7, pad=0, skip=1, final_norm=False)),
    "bert_text": dict(name="bert_text", width=8, layers=1, heads=2, head_width=3, vocabulary=20, length=6, bos=18, eos=19),
}
ONE, TWO = [18, 1, 2, 19, 19, 19], [18, 3, 4, 5, 6, 19]
WIDTHS = {"clip_text": (8, 5), "two_clip_text": (12, 7), "bert_text": (8, None)}


@functools.cache
def made(name):
    conditioner = choose(CONDITIONERS, SECTIONS[name], "config.conditioner")
    return conditioner, {"params": random_like(shapes_of(conditioner, conditioner.example(1, (), ())), seed=0)}


@pytest.mark.parametrize("name", SECTIONS)
def test_dropped_texts_get_the_null_and_no_other(name):
    """Mistake: the whole batch dropped, a null of other ids or of one window only, weights left on what is dropped, tokens of
    windows mixed between examples, the pooled vector of the last window, the mean of two encoders' tokens restored as one.
    """
    conditioner, params = made(name)
    ids = np.int32([[ONE, TWO], [TWO, ONE]])
    weights = np.ones((2, 12), np.float32)
    weights[0, 8], weights[1, 2] = 1.5, 0.5
    fields = {field: ids for field in conditioner.fields} | {"token_weights": weights}
    conditioner.check(fields)

    @jax.jit
    def conditions(params):
        return (conditioner.apply(params, fields, np.array([False, True])), conditioner.apply(params, 2, fields, method="null"),
                conditioner.apply(params, {field: ids[:, 0] for field in conditioner.fields}))

    told, null, first = conditions(params)
    width, vector = WIDTHS[name]
    assert null.tokens.shape == told.tokens.shape == (2, 12, width) and first.tokens.shape == (2, 6, width)
    assert np.allclose(told.tokens[1], null.tokens[1], atol=1e-6) and np.allclose(told.tokens[0, :6], first.tokens[0], atol=1e-6)
    assert not np.allclose(first.tokens[1], null.tokens[1, :6], atol=0.1)
    assert not np.allclose(told.tokens[0, :6], told.tokens[0, 6:], atol=0.1)
    assert np.array_equal(null.tokens[0, :6], null.tokens[1, 6:])
    for part in (slice(0, 8), slice(8, width)):  # the window TWO of the first example, weighted encoder by encoder
        plain = np.asarray(first.tokens)[1, :, part]
        scaled = plain * weights[0, 6:, None]
        np.testing.assert_allclose(told.tokens[0, 6:, part], scaled * plain.mean() / scaled.mean() if plain.size else plain, rtol=1e-4)
    assert (np.asarray(null.tokens) == 0).all() == (SECTIONS[name].get("untold") == "zeros")
    assert conditioner.tells == (("tokens", "vector") if vector else ("tokens",))
    if vector:
        assert first.vector.shape[1] == conditioner.vector_width == vector and np.allclose(told.vector[0], first.vector[0], atol=1e-6)
        assert np.allclose(told.vector[1], null.vector[1], atol=1e-6) and not np.allclose(first.vector[0], first.vector[1], atol=1e-3)


@pytest.mark.parametrize("name, trained", [("clip_text", False), ("bert_text", True)])
def test_gradients_reach_the_encoder_that_is_trained_only(name, trained):
    """Mistake: a published encoder trained with the U-Net, or LDM's own left at its start."""
    conditioner, params = made(name)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(conditioner.apply(p, {"tokens": np.int32([[ONE]])}).tokens[:, 1] ** 2)))(params)
    assert conditioner.trained == trained
    assert (np.abs(gradient["params"]["encoder"]["block_0"]["qkv"]["kernel"]).max() > 0) == trained


def test_weights_scale_tokens_and_keep_each_windows_mean():
    """Mistake: the mean of the whole batch, so that a neighbour's weights change an image; weights on features; ones that change bits."""
    tokens = np.random.default_rng(0).standard_normal((2, 6, 4)).astype(np.float32) + 0.5
    weights = np.float32([[1, 1, 1, 1, 2, 1], [1, 0.5, 1, 1, 1, 1]])
    out = np.asarray(jax.jit(weighted, static_argnums=2)(tokens, weights, 3))
    assert np.array_equal(out[0, :3], tokens[0, :3]) and np.array_equal(out[1, 3:], tokens[1, 3:])
    for row, part in ((0, slice(3, 6)), (1, slice(0, 3))):
        scaled = tokens[row, part] * weights[row, part, None]
        np.testing.assert_allclose(out[row, part], scaled * tokens[row, part].mean() / scaled.mean(), rtol=1e-5)
    assert np.isfinite(weighted(jnp.zeros((1, 3, 4)), np.float32([[1, 2, 1]]), 3)).all()


def test_embeddings_are_told_as_they_are():
    """Mistake: a null that is not zeros, or has another number of tokens than what is given."""
    conditioner = choose(CONDITIONERS, dict(name="tokens", width=4, count=3), "config.conditioner")
    fields = {"embeddings": np.ones((2, 5, 4), np.float32)}
    conditioner.check(fields)
    told = conditioner.apply({}, fields, np.array([False, True]))
    assert np.array_equal(told.tokens, np.stack([np.ones((5, 4)), np.zeros((5, 4))]))
    assert conditioner.apply({}, 2, fields, method="null").tokens.shape == (2, 5, 4)
    assert conditioner.apply({}, 2, method="null").tokens.shape == (2, 3, 4)
    for wrong in (np.ones((2, 4)), np.ones((2, 5, 3)), np.full((2, 5, 4), np.nan)):
        with pytest.raises(UserError, match=r"expected finite numbers \[B, k, 4\]"):
            conditioner.check({"embeddings": wrong})
    with pytest.raises(UserError, match="embeddings: this conditioner needs them"):
        conditioner.check({})


def test_skipping_layers_takes_earlier_states():
    """Mistake: a clip-skip that counts from the first layer, or that forgets what the model skips anyway."""
    conditioner = choose(CONDITIONERS, SECTIONS["clip_text"], "config.conditioner")
    assert conditioner.clone(layers=3).skipping(1).skipping(1).skip == 2 and conditioner.skipping(0) == conditioner
    two = choose(CONDITIONERS, SECTIONS["two_clip_text"], "config.conditioner")
    with pytest.raises(UserError, match="skip=1: expected 0"):
        two.skipping(1)
    longer = SECTIONS["two_clip_text"] | dict(first=SMALL | dict(layers=2), second=SMALL | dict(layers=3, skip=1))
    longer = choose(CONDITIONERS, longer, "config.conditioner").skipping(1)
    assert (longer.first.skip, longer.second.skip) == (1, 2)


@pytest.mark.parametrize("change, match", [
    (dict(tokens=np.float32([[ONE]])), "whole numbers"), (dict(tokens=np.int32([[ONE[:5]]])), r"\[B, n, 6\]"),
    (dict(tokens=np.int32([[[18, 1, 20, 19, 19, 19]]])), "id 20: expected 0 to 19"),
    (dict(tokens=np.int32([[[18, 1, 2, 3, 4, 5]]])), "end, id 19"),
    (dict(token_weights=np.ones((1, 5), np.float32)), "token_weights"), (dict(token_weights=np.full((1, 6), np.nan)), "token_weights"),
    (dict(tokens_2=np.int32([[ONE, ONE]])), "as many texts and windows")])
def test_bad_ids_are_refused_on_the_host(change, match):
    """Mistake: ids of another vocabulary, which indexing would clamp; a text without its end, whose pooled vector is the beginning's."""
    conditioner = choose(CONDITIONERS, SECTIONS["two_clip_text"], "config.conditioner")
    fields = {"tokens": np.int32([[ONE]]), "tokens_2": np.int32([[ONE]]), "token_weights": np.ones((1, 6), np.float32)}
    conditioner.check(fields)
    with pytest.raises(UserError, match=match):
        conditioner.check(fields | change)
    with pytest.raises(UserError, match="needs token ids"):
        conditioner.check({"tokens": fields["tokens"]})


@pytest.mark.parametrize("section", [
    SECTIONS["clip_text"] | dict(heads=3), SECTIONS["clip_text"] | dict(eos=20), SECTIONS["clip_text"] | dict(drop=2.0),
    SECTIONS["clip_text"] | dict(activation="relu"), SECTIONS["two_clip_text"] | dict(second=SMALL | dict(length=5)),
    SECTIONS["two_clip_text"] | dict(first=SMALL | dict(depth=1)), SECTIONS["bert_text"] | dict(layers=0)])
def test_a_config_that_cannot_be_is_refused(section):
    """Mistake: numbers that only fail inside of a trace."""
    with pytest.raises(UserError):
        choose(CONDITIONERS, section, "config.conditioner")


PUBLISHED = {  # parameters, tensors in the file
    "CLIP ViT-L/14": (ClipTextEncoder(ClipSpec()), "hf", 123_060_480, 196),
    "OpenCLIP ViT-H": (ClipTextEncoder(ClipSpec(1024, 24, 16, "gelu", 1024, pad=0)), "openclip", 354_032_640, 293),
    "OpenCLIP ViT-bigG": (ClipTextEncoder(ClipSpec(1280, 32, 20, "gelu", 1280, pad=0)), "openclip", 694_659_840, 389),
    "BERT 640": (BertTextEncoder(BertSpec(640, 32)), "x_transformers", 186_150_000, 422),
    "BERT 1280": (BertTextEncoder(BertSpec(1280, 32)), "x_transformers", 581_990_000, 422),
    "boxes": (BertTextEncoder(BertSpec(512, 16, vocabulary=8192, length=92, bos=-1, eos=-1)), "x_transformers", 58_860_000, 214),
}


AGAIN = ("OpenCLIP ViT-bigG", "BERT 1280", "boxes")  # say what others say, of other numbers


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in AGAIN else name for name in PUBLISHED])
def test_published_encoders_counted(name):
    """Mistake: a block, a bias or a table too many or too few, in the encoder or in its names."""
    encoder, form, parameters, tensors = PUBLISHED[name]
    shapes = jax.eval_shape(lambda: encoder.init(jax.random.key(0), np.zeros((1, 3), np.int32)))
    assert abs(count(shapes) - parameters) <= (5_000 if form == "x_transformers" else 0)
    places = (bert_places if form == "x_transformers" else clip_text_places)(encoder, form)
    assert sum(len(place.theirs) for place in places) == tensors


def test_an_embedding_beside_the_time():
    """Mistake: an image's embedding told as a token to a network that reads a vector, or a null that is not zeros."""
    one = np.random.default_rng(0).standard_normal((2, 1, 4)).astype(np.float32)
    conditioner = Tokens(width=4, into="vector")
    told = conditioner.apply({}, {"embeddings": one}, np.array([False, True]))
    assert conditioner.tells == ("vector",) and told.tokens is None and told.vector.shape == (2, 4)
    assert np.array_equal(told.vector, one[:, 0] * [[1], [0]])
    assert np.array_equal(conditioner.apply({}, 2, method="null").vector, np.zeros((2, 4)))
    for fields, match in (({"embeddings": np.zeros((2, 3, 4))}, r"\[B, 1, 4\]"), ({}, "needs them")):
        with pytest.raises(UserError, match=match):
            conditioner.check(fields)
    with pytest.raises(UserError, match="one embedding"):
        Tokens(width=4, count=2, into="vector")
