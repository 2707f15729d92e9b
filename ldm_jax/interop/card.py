"""The README.md of an exported model, from its manifest alone: what it is, how it was made, how to use it, what is not known of it."""

import json
import re
from collections.abc import Mapping
from typing import Any

from ldm_jax.checkpoint.manifest import Manifest
from ldm_jax.core.errors import UserError

LAYOUTS = {  # -> (library of the hub's list, how it is loaded)
    "bundle": ("ldm_jax", 'import ldm_jax as ldm\n\nmodel = ldm.load({name})'),
    "diffusers": ("diffusers", 'from diffusers import DiffusionPipeline\n\nmodel = DiffusionPipeline.from_pretrained({name})'),
    "diffusers-component": ("diffusers", 'from diffusers import {class_name}\n\nmodel = {class_name}.from_pretrained({name})'),
    "compvis": ("ldm_jax", 'import ldm_jax as ldm\n\nmodel = ldm.load({name})'),
}
TASKS = {"autoencoder": ("an autoencoder: images to latents and back", "image-to-image"),
         "classifier": ("a classifier of noisy latents", "image-classification"),
         "embedding": ("an embedder of images and of texts, in one space as CLIP's", "feature-extraction")}
TOLD = {"class": ("images of a class", "unconditional-image-generation"), "": ("images, told nothing", "unconditional-image-generation"),
        "none": ("images, told nothing", "unconditional-image-generation"), "clip_text": ("images of a text", "text-to-image"),
        "bert_text": ("images of a text", "text-to-image"), "two_clip_text": ("images of a text", "text-to-image"),
        "tokens": ("images of given embeddings, as of a picture's neighbours", "image-to-image"),
        "layout": ("images of a layout of boxes", "unconditional-image-generation")}
LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")


def model_card(manifest: Manifest, *, name: str, layout: str = "bundle", origin: str = "", license: str = "",
               class_name: str = "") -> str:
    """The text of a README.md in the hub's form.

    Args:
      manifest: of what is exported.
      name: the folder's or file's name, without its path.
      layout: one of `LAYOUTS`; class_name: the class that loads a "diffusers-component".
      origin: where the weights come from if not from training by this config: "read from sd-v1-4.ckpt", one line.
      license: the hub's word for it ("openrail"); "" where it is not known, and the page says so.

    Raises:
      UserError: a license that is no such word.
      ValueError: a name with a path, an origin of several lines, an unknown layout.
    """
    if license and not LICENSE.fullmatch(license):
        raise UserError(f"license={license!r}: expected the hub's word for it, as in 'apache-2.0' or 'openrail'")
    if not name or "/" in name or not (name + origin).isprintable():
        raise ValueError(f"a card of {name!r}, {origin!r}")
    library, code = LAYOUTS[layout]
    code = code.replace("ldm.load(", "ldm.load_clip(") if manifest.task == "embedding" else code
    what, tag = _what(manifest)
    lines = ["---", f"library_name: {library}", f"pipeline_tag: {tag}"]
    lines += [f"license: {license}"] if license else []
    lines += ["tags:", "- latent-diffusion", "- ldm_jax", "---", "", f"# {name}", "", f"This is {what}.", ""]
    lines += ["| | |", "|---|---|", *(f"| {key} | {_cell(value)} |" for key, value in _facts(manifest, origin))]
    lines += ["", "## Use", "", "```python", *code.format(name=json.dumps(name), class_name=class_name).splitlines(), "```", ""]
    lines += ["## How it was made", "", _made(manifest, origin), ""]
    lines += ["```json", json.dumps(_config(manifest), indent=1, sort_keys=True), "```", ""]
    lines += ["## Not known", "", *_unknown(manifest, origin, license)]
    return "\n".join(lines) + "\n"


def _what(manifest: Manifest) -> tuple[str, str]:
    if manifest.task in TASKS:
        return TASKS[manifest.task]
    conditioner = manifest.config.get("conditioner") or {}
    names = ["layout" if part.get("reads") == "boxes_tokens" else part.get("name", "") for part in conditioner.get("parts", (conditioner,))]
    told, tag = next((TOLD[name] for name in names if name in TOLD), ("images of an image", "image-to-image"))
    if {"inpainting", "depth", "low_resolution", "semantic_map"} & set(names) and "text" in tag:
        told, tag = f"{told} and an image", "image-to-image"
    latent = "a diffusion model of latents" if manifest.first_stage else "a diffusion model of pixels"
    return f"{latent} that makes {told}", tag


def _facts(manifest: Manifest, origin: str) -> list[tuple[str, Any]]:
    facts = manifest.config.get("facts") or {}
    rows: list[tuple[str, Any]] = [("parameters", f"{manifest.parameter_count:,}")]
    if "resolution" in facts:
        rows.append(("images", f"{facts['resolution']} x {facts['resolution']} x {facts.get('channels', 3)}"))
    rows += [("classes", facts["classes"])] if facts.get("classes") else []
    rows += [(key, _section(manifest.config[key])) for key in ("prediction", "schedule", "time_input", "conditioner")
             if isinstance(manifest.config.get(key), Mapping)]
    rows += [("weights", {"ema": "moving average", "raw": "raw"}[manifest.weights])] if manifest.weights else []
    rows += [] if origin else [("optimizer steps", f"{manifest.step:,}")]
    units = manifest.latent_units or (manifest.first_stage and manifest.first_stage.latent_units)
    rows += [("latent mean", _numbers(units["mean"])), ("latent std", _numbers(units["std"]))] if units else []
    if manifest.first_stage:
        rows.append(("first stage", f"inside; digest {manifest.first_stage.digest[:16]}"))
    rows += [("digest", manifest.content_digest)] if manifest.content_digest else []
    return rows + [("written by", ", ".join(f"{key} {value}" for key, value in manifest.versions.items()))]


def _section(section: Mapping[str, Any]) -> str:
    """"v", or "scaled_linear: start 0.0015, end 0.0195": the plain values of a config's section."""
    plain = {key: value for key, value in section.items() if key != "name" and isinstance(value, (str, int, float)) and value != ""}
    name = str(section.get("name", ""))
    return name + (": " if plain and name else "") + ", ".join(f"{key} {value}" for key, value in plain.items())


def _made(manifest: Manifest, origin: str) -> str:
    if origin:
        return f"Its weights were not trained here: {origin}. What they are, in the words of a config:"
    return f"Trained for {manifest.step:,} optimizer steps by this config:"


def _config(manifest: Manifest) -> dict[str, Any]:
    """The config without how the run was kept (`run`) and without places of one machine."""
    return _without_places({key: value for key, value in manifest.to_json()["config"].items() if key != "run"})


def _without_places(value):
    """A JSON value; of paths, and of whatever else has a slash, the last part."""
    if isinstance(value, dict):
        return {key: _without_places(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_places(inner) for inner in value]
    return re.split(r"[/\\]", value.rstrip("/"))[-1] if isinstance(value, str) else value


def _unknown(manifest: Manifest, origin: str, license: str) -> list[str]:
    told = [] if license else ["- The license: whoever publishes this has to state it; that of the training data and of the "
                               "original weights may bind."]
    told += ["- What the weights were trained on."] if origin else []
    told += ["- Quality: no metric is stored with a model; measure before you rely on it.",
             "- What it should not be used for, its biases: nobody has examined them."]
    return told


def _numbers(values) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _cell(value) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
