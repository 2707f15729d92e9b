"""Training from a cache is training from images; a cache of something else is refused."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import cached_data, describe, launch
from ldm_jax.config_tree import differences
from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import base_key, key_for
from ldm_jax.data.cache import open_cache
from ldm_jax.data.cached import MOMENTS, Cached
from ldm_jax.data.shapes_world import Shapes
from ldm_jax.encoding import Wanted, encode
from ldm_jax.models import bottleneck
from ldm_jax.models.condition import ClassConditioner
from ldm_jax.models.several_condition import Several
from ldm_jax.models.spatial_condition import Inpainting
from ldm_jax.models.text_condition import BertText, ClipText, TwoClipText
from ldm_jax.models.text_states import all_states
from tests.runs import lines, state_of


@pytest.fixture(scope="module")
def cache(trained_autoencoder, make_ldm_config):
    folder = trained_autoencoder.parent / "cache"
    if not folder.exists():
        said = encode(make_ldm_config(trained_autoencoder), str(folder), Wanted(batch=100))
        assert "latents of 1400 records and of 397 held out" in said and f"--config.data.cache={folder}" in said
    return folder


def test_training_from_a_cache_is_training_from_images(cache, trained_autoencoder, trained_ldm, make_ldm_config):
    """Mistake: the posterior's mean in the place of a draw, or a draw by other keys; units that are not applied, or twice; another
    order; latents of augmented images. Both agree to rounding, and the cache is named as seen from the run."""
    launch.train(make_ldm_config(trained_autoencoder, **{"data.cache": str(cache)}), str(cache.parent / "from_cache"))
    ours, theirs = (state_of(folder, 6) for folder in (cache.parent / "from_cache", trained_ldm))
    assert ours.keys() == theirs.keys()
    assert all(np.allclose(ours[path], theirs[path], rtol=0, atol=1e-5) for path in ours)
    losses = [[line["loss"] for line in lines(folder) if "loss" in line] for folder in (cache.parent / "from_cache", trained_ldm)]
    assert len(losses[0]) == 6 and np.allclose(*losses, rtol=0, atol=1e-5)
    assert json.loads((cache.parent / "from_cache" / "config.json").read_text())["data"]["cache"] == "../cache"


def test_a_cache_holds_what_the_first_stage_says(cache, trained_autoencoder, make_ldm_config):
    """Mistake: latents in units, which another run measures otherwise; log-variances that are not clamped; the last batch, which is
    filled up, in the place of records; moments under other names than the first stage's."""
    job = launch.prepare(make_ldm_config(trained_autoencoder))
    last = {"image": jnp.asarray(job.held_out.images[-3:] / 127.5 - 1, jnp.float32)}
    keys = key_for(base_key(0), "posterior", example=jnp.arange(3))
    wanted = jax.jit(job.first.stage.encode)(job.first.params, last["image"], keys)
    kept = Cached(job.held_out, open_cache(str(cache)), "test")
    found = [kept.found(i, None) for i in (394, 395, 396)]
    moments = {name: jnp.stack([one[name] for one in found]) for name in ("latent_mean", "latent_log_variance")}
    assert np.allclose(job.first.stage.latent(job.first.params, moments, keys), wanted, rtol=0, atol=1e-5)
    assert MOMENTS == bottleneck.MOMENTS
    assert [one["label"] for one in found] == job.held_out.labels[-3:].tolist()


FLIP, RESIZE = ({"name": "flip"},), ({"name": "crop_resize"},)
OTHERS = {
    "another encoder": ({}, {"digest": "0" * 64}, "another encoder, a first stage \\(.*, here 0000"),
    "other transforms": ({"transforms": FLIP, "variants": 2}, {}, "other transforms .*another number of variants"),
    "another seed": ({"transforms": FLIP, "variants": 2}, {}, "another seed of the transforms \\(None, here 5\\)"),
    "endless draws": ({"transforms": FLIP}, {}, "config.data.variants=0 draws the transforms of every image afresh"),
    "another size": ({"resolution": 16, "transforms": RESIZE}, {}, "other transforms .*; another size"),
    "no cache": ({"cache": "nowhere"}, {}, "'nowhere' is no cache, for it has no cache.json"),
    "no folder": ({"cache": 3}, {}, "config.data.cache=3: expected a folder"),
    "no number": ({"variants": -1}, {}, "config.data.variants=-1: expected a whole number from 0"),
    "pixels": ({}, None, "a cache holds latents, and there is no first stage to make any"),
}


@pytest.fixture(scope="module")
def job(cache, trained_autoencoder, make_ldm_config):
    """A run from the cache, whose seed and variants draw nothing."""
    return launch.prepare(make_ldm_config(trained_autoencoder, seed=5, **{"data.cache": str(cache), "data.variants": 4}))


@pytest.mark.parametrize("what", OTHERS)
def test_a_cache_of_something_else_is_refused(job, what):
    """Mistake: training on the latents of another encoder or of other crops, without a word."""
    changes, first, told = OTHERS[what]
    config = job.config | {"data": job.config["data"] | {"variants": 0} | changes}
    sources, first = (job.source.source, job.held_out.source), None if first is None else dataclasses.replace(job.first, **first)
    with pytest.raises(UserError, match=told) as error:
        cached_data.in_place(config, sources, first, job.experiment, {})
    assert "\n" not in str(error.value)


def test_sources_and_seeds_are_compared(job):
    """Mistake: a seed that draws nothing refused; other records taken; a conditioner of images given none."""
    assert isinstance(job.source, Cached) and job.fingerprint["source"] == job.source.source.fingerprint()
    sources = job.held_out.source, job.source.source
    with pytest.raises(UserError, match="other training data .*; other held-out data"):
        cached_data.in_place(job.config, sources, job.first, job.experiment, {})
    drawn = job.config | {"data": job.config["data"] | {"transforms": FLIP}}
    assert [cached_data.made_of(config, sources, job.first)["seed"] for config in (drawn, job.config)] == [5, None]
    reads = type("Reads", (), {"conditioner": Inpainting()})
    with pytest.raises(UserError, match="holds no images, and config.conditioner reads them: encode again with --images"):
        cached_data.in_place(job.config, sources[::-1], job.first, reads, {})


def test_a_run_may_change_to_a_cache_and_back():
    """Mistake: a resumed run that refuses the cache which was made of its data; one that takes other variants."""
    saved = {"run": {"steps": 1}, "data": {"cache": "", "variants": 0, "batch": 8}, "model": {"data": {"cache": 1}}}
    assert differences(saved, saved | {"data": saved["data"] | {"cache": "../c"}, "run": {}}) == []
    assert differences(saved, saved | {"data": saved["data"] | {"variants": 2}}) == ["config.data.variants: 0, now 2"]
    assert differences(saved, saved | {"model": {"data": {"cache": 2}}}) != []
    assert differences(saved | {"text_encoders": "bert"}, saved | {"text_encoders": "../bert"}) == []


def test_a_dry_run_knows_what_a_cache_gives(cache, trained_autoencoder, make_ldm_config):
    """Mistake: a page of images that are encoded at each step, where the batches hold latents; one that fails."""
    batches = []
    for folder in ("", str(cache)):
        job = launch.prepare(make_ldm_config(trained_autoencoder, **{"data.cache": folder}))
        batches.append(describe._batch(job))
        assert {name: array.dtype for name, array in batches[-1].items()} == {
            name: array.dtype for name, array in next(launch.stream(job.source, job.transforms, seed=0, batch=8, threads=0)).items()
            if name in batches[-1]}
    images, latents = batches
    number = images["image"].shape[0]
    assert images.keys() == {"image", "label"} and latents.keys() == {"latent_mean", "latent_log_variance", "label"}
    assert number > 1 and all(array.shape[0] == number for array in latents.values()) and latents["latent_mean"].ndim == 4


def test_a_stage_to_be_trained_has_no_cache(cache, make_autoencoder_config):
    with pytest.raises(UserError, match="config.task='autoencoder' is one to be trained"):
        launch.prepare(make_autoencoder_config(**{"data.cache": str(cache)}))


SMALL = dict(width=8, layers=1, heads=2, vocabulary=20, length=5, bos=17, eos=18, pad=19)
IDS = np.int32([[17, 3, 4, 18, 19], [17, 5, 18, 19, 19], [17, 18, 19, 19, 19]])


@pytest.mark.parametrize("untold", ["empty", "zeros"])
def test_kept_states_tell_what_ids_tell(untold):
    """Mistake: a text that is told where it is dropped; the pooled vector of another window; the null of other windows."""
    text = ClipText(**SMALL, projection=6, vector="pooled", untold=untold)
    params = text.init(base_key(0), {"tokens": IDS})
    states = text.apply(params, {"tokens": IDS}, method=all_states)
    assert {name: value.shape for name, value in states.items()} == {"token_states": (3, 5, 8), "pooled": (3, 6)}
    for drop in (None, jnp.array([False, True, False])):
        told, kept = (text.apply(params, fields, drop) for fields in ({"tokens": IDS}, states))
        assert np.allclose(told.tokens, kept.tokens, atol=1e-6) and np.allclose(told.vector, kept.vector, atol=1e-6)
    none, kept = (text.apply(params, 3, fields, method="null") for fields in ({"tokens": IDS}, states))
    assert np.array_equal(none.tokens, kept.tokens) and none.tokens.shape == (3, 5, 8)


def test_some_of_the_texts_may_be_kept():
    """Mistake: a KeyError where the ids of one of two texts alone stand in the fields; the states of the other text."""
    text = TwoClipText(first=SMALL, second=SMALL | {"width": 12, "projection": 6})
    params = text.init(base_key(0), {"tokens": IDS, "tokens_2": IDS})
    every, one = (text.apply(params, fields, method=all_states) for fields in ({"tokens": IDS, "tokens_2": IDS}, {"tokens_2": IDS}))
    assert set(one) == {"token_states_2", "pooled_2"} and all(np.allclose(one[name], every[name], atol=1e-6) for name in one)


def test_states_of_an_encoder_in_training_are_refused():
    """Mistake: an encoder that is trained, and whose first states are told for ever."""
    text = BertText(**SMALL | {"bos": 17}, head_width=4, logits=False)
    with pytest.raises(UserError, match="token_states: kept states are of a frozen encoder, and this one is trained"):
        text.init(base_key(0), {"token_states": jnp.zeros((1, 5, 8)), "pooled": jnp.zeros((1, 0))})


class Captioned(Shapes):
    """Records of several captions, one of which training draws."""

    draws = True


def test_drawn_captions_are_variants():
    """Mistake: a cache of one caption a record, by no seed, in the place of one drawn of several; states of the first caption alone."""
    sources, first = [Captioned(split, 8, 4) for split in ("train", "test")], types.SimpleNamespace(digest="d")
    config = {"data": {"transforms": (), "resolution": 8, "variants": 0}, "seed": 5}
    with pytest.raises(UserError, match="config.data.variants=0 draws the caption of every image afresh"):
        cached_data.made_of(config, sources, first)
    made_of = cached_data.made_of(config | {"data": config["data"] | {"variants": 2}}, sources, first)
    assert (made_of["seed"], made_of["variants"]) == (5, 2)
    fields = {"tokens": types.SimpleNamespace(gives=("tokens",), describe=dict)}
    plain = [Shapes(split, 8, 4) for split in ("train", "test")]
    assert [cached_data.kept_texts(ClipText(**SMALL), fields, some) for some in (plain, sources)] == [{"tokens": {}}, {}]


def test_which_texts_are_kept():
    """Mistake: states kept of an encoder that is trained, of ids that two encoders read, of layouts, which change with the crop."""
    class Maker:
        def __init__(self, name):
            self.gives = (name,)

        def describe(self):
            return {"maker": self.gives[0]}

    fields = {name: Maker(name) for name in ("tokens", "boxes_tokens")}
    clip, bert = ClipText(**SMALL), BertText(**SMALL, head_width=4, logits=False)
    layout = BertText(**SMALL, head_width=4, logits=False, reads="boxes_tokens", trained=False)
    label = ClassConditioner(classes=3, width=4, drop=0.1, into="tokens")
    kept = {"tokens": {"maker": "tokens"}}
    for conditioner, wanted in ((clip, kept), (bert, {}), (layout, {}), (label, {}), (None, {}), (Several((label, clip)), kept),
                                (Several((clip, bert)), {}), (Several((clip, layout)), kept)):
        assert cached_data.kept_texts(conditioner, fields) == wanted
    assert cached_data.kept_texts(clip, {}) == {}
