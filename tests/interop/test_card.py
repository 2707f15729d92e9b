"""The model card: what the manifest says, nothing of the machine, and a head that the hub can read."""

import dataclasses

import pytest

from ldm_jax.checkpoint.manifest import FirstStage, Manifest
from ldm_jax.core.errors import UserError
from ldm_jax.interop.card import LAYOUTS, model_card

UNITS = {"mean": [0.125, -0.25], "std": [1.5, 0.75]}
CONFIG = {"task": "diffusion", "facts": {"resolution": 32, "channels": 1, "classes": 10, "steps_an_epoch": 3},
          "prediction": {"name": "v"}, "schedule": {"name": "scaled_linear", "start": 0.0015, "end": 0.0195},
          "conditioner": {"name": "class", "width": 64}, "first_stage": "/home/me/runs/first", "init_from": "/home/me/x",
          "data": {"source": {"name": "folder", "path": "/home/me/images"}}, "run": {"steps": 3},
          "loss": {"perceptual_weights": "/home/me/lpips.safetensors", "parts": ["a/b", 1.5, True]}}
MANIFEST = Manifest("diffusion", CONFIG, 1234567, 500, "ab" * 32, FirstStage("", 300, "cd" * 32, {}, UNITS), None, "ema")


def head(text):
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(text.split("---")[1])


def test_a_trained_model_explains_itself():
    """Catches a path of the machine on a public page, a number left out, a code line for another layout, a head that is no YAML."""
    text = model_card(MANIFEST, name="digits", layout="diffusers", license="apache-2.0")
    assert head(text) == {"library_name": "diffusers", "pipeline_tag": "unconditional-image-generation", "license": "apache-2.0",
                          "tags": ["latent-diffusion", "ldm_jax"]}
    for told in ("a diffusion model of latents that makes images of a class", "| parameters | 1,234,567 |", "| images | 32 x 32 x 1 |",
                 "| latent mean | 0.125 -0.25 |", "| latent std | 1.5 0.75 |", "| digest | " + "ab" * 32, "| weights | moving average |",
                 "| schedule | scaled_linear: start 0.0015, end 0.0195 |", 'DiffusionPipeline.from_pretrained("digits")',
                 "Trained for 500 optimizer steps", '"prediction": {'):
        assert told in text, told
    assert "/home" not in text and '"perceptual_weights": "lpips.safetensors"' in text and '"path": "images"' in text
    assert "license:" in text and "- The license" not in text and '"run"' not in text


def test_converted_weights_say_where_they_come_from_and_what_is_not_known():
    """Catches a card that claims training by us, optimizer steps that nobody took here, and a license that was never given."""
    text = model_card(dataclasses.replace(MANIFEST, step=0), name="sd", layout="bundle", origin="read from sd-v1-4.ckpt")
    assert "were not trained here: read from sd-v1-4.ckpt" in text and "optimizer steps" not in text and 'ldm.load("sd")' in text
    assert "license" not in head(text) and "- The license" in text and "- What the weights were trained on." in text


def test_a_first_stage_and_models_in_pixels():
    first = Manifest("autoencoder", {"task": "autoencoder"}, 5, 7, None, None, UNITS)
    text = model_card(first, name="vae", layout="diffusers-component", class_name="AutoencoderKL")
    assert "an autoencoder" in text and 'AutoencoderKL.from_pretrained("vae")' in text and "| latent std | 1.5 0.75 |" in text
    pixels = model_card(dataclasses.replace(MANIFEST, first_stage=None, config={"conditioner": {"name": "clip_text"}}), name="x")
    assert "diffusion model of pixels that makes images of a text" in pixels and head(pixels)["pipeline_tag"] == "text-to-image"
    assert set(LAYOUTS) == {"bundle", "diffusers", "diffusers-component", "compvis"}


def test_what_is_told_and_what_tells():
    """Catches an embedder that is a diffusion model, layouts that are texts, and neighbours that are an image."""
    def card(task="diffusion", **conditioner):
        return model_card(dataclasses.replace(MANIFEST, task=task, config={"conditioner": conditioner}), name="x")

    text = card("embedding")
    assert "This is an embedder of images and of texts" in text and 'ldm.load_clip("x")' in text and "ldm.load(" not in text
    assert "makes images of given embeddings" in card(name="tokens")
    layout = dict(name="bert_text", reads="boxes_tokens")
    for text in (card(**layout), card(name="several", parts=[layout])):
        assert "makes images of a layout of boxes" in text and head(text)["pipeline_tag"] != "text-to-image"
    assert "images of a text" in card(name="bert_text", reads="tokens")


@pytest.mark.parametrize("change", [{"license": "mit\nevil: 1"}, {"license": "My License"}])
def test_a_license_is_one_word(change):
    """Catches lines that are smuggled into the head of the page."""
    with pytest.raises(UserError, match="expected the hub's word"):
        model_card(MANIFEST, name="x", **change)
    with pytest.raises(ValueError, match="a card of"):
        model_card(MANIFEST, name="a/b")
    with pytest.raises(ValueError, match="a card of"):
        model_card(MANIFEST, name="x", origin="a\nb")
