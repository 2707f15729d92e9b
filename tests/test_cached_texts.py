"""What a frozen text encoder says, kept in a cache from the captions to the step of training."""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest

from ldm_jax import cached_data, launch, states
from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import base_key
from ldm_jax.data.batches import in_order, stream
from ldm_jax.data.cached import Cached
from ldm_jax.encoding import Wanted, encode
from tests.untrained import save_untrained

SHAPES = {"name": "shapes", "records": 20, "resolution": 32, "world": 0}
TEXT = {"name": "clip_text", "width": 8, "layers": 1, "heads": 2, "vocabulary": 259, "length": 12, "bos": 256, "eos": 257, "pad": 258,
        "drop": 0.5, "trained": False}
LEVELS = (dict(width=8, blocks=1, attention="transformer", heads=2, depth=1, down="none"),)


@contextlib.contextmanager
def silent(total, unit):
    yield lambda done: None


@pytest.mark.slow  # the parts are tested alone in test_cached_data.py and data/test_cache.py
def test_texts_are_kept_from_captions_to_steps(tmp_path, make_autoencoder_config, make_ldm_config):
    """Mistake: states of another caption, of every variant again, of the encoder as another seed draws it; a step that is told other
    texts than from ids, where they are dropped too."""
    save_untrained(make_autoencoder_config(**{"data.source": SHAPES, "latent_units.images": 8}), tmp_path / "first", noise=0.1)
    config = make_ldm_config(tmp_path / "first", conditioner=TEXT, **{
        "data.source": SHAPES, "data.fields": {"tokens": {"name": "captions", "tokenizer": {"name": "bytes"}}}, "network.levels": LEVELS,
        "data.transforms": ({"name": "flip"},), "data.variants": 2})
    said = encode(config, str(tmp_path / "cache"), Wanted(images=True, batch=16), silent)
    assert "latents and images and states of texts of 20 records in 2 variants" in said
    job, kept = (launch.prepare(config | {"data": config["data"] | {"cache": cache}}) for cache in ("", str(tmp_path / "cache")))
    assert isinstance(kept.source, Cached) and kept.source.covers == ("tokens",) and job.fingerprint == kept.fingerprint
    stage, key = launch.stage_of(job), base_key(0)
    state = states.new_state(job, stage, key)
    cached_data.check_texts(kept.source, job.experiment.conditioner, state.params)
    other = jax.tree.map(lambda x: x + 1, state.params)
    with pytest.raises(UserError, match="holds the states of another text encoder .*: encode again with this config"):
        cached_data.check_texts(kept.source, job.experiment.conditioner, other)
    options = {"batch": 8, "resolution": 32, "fields": job.fields}
    batches = [next(stream(one.source, one.transforms, seed=0, start=4, variants=2, **options)) for one in (job, kept)]
    assert "tokens" in batches[0] and "tokens" not in batches[1] and batches[1]["token_states"].shape == (8, 12, 8)
    step = jax.jit(stage.step)
    after = [step(state, launch.frozen_of(job), batch, key) for batch in batches]
    assert np.allclose(after[0][1]["loss"], after[1][1]["loss"], rtol=0, atol=1e-5)
    for one, two in zip(*(jax.tree.leaves(dataclasses.replace(found, optimizer=())) for found, _ in after)):
        assert np.allclose(one, two, rtol=0, atol=1e-5)
    held_out = next(in_order(kept.held_out, kept.transforms, **options))
    assert held_out["token_states"].shape == (8, 12, 8) and "image" not in held_out
