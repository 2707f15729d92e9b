"""The JSON files that a diffusers folder of a model has; `diffusers_configs.py` reads them back."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ldm_jax.core.errors import UserError
from ldm_jax.interop.description import Description
from ldm_jax.interop.diffusers_nets import ReadNetwork, write_first_stage, write_unet
from ldm_jax.interop.diffusers_scheduler import write_scheduler
from ldm_jax.interop.diffusers_texts import last_told, write_bert, write_clip

PIPELINES = {  # a part of the conditioner: the pipeline that it makes
    "none": "LDMPipeline", "clip_text": "StableDiffusionPipeline", "two_clip_text": "StableDiffusionXLPipeline",
    "bert_text": "LDMTextToImagePipeline", "sizes": "StableDiffusionXLImg2ImgPipeline", "inpainting": "StableDiffusionInpaintPipeline",
    "depth": "StableDiffusionDepth2ImgPipeline", "low_resolution": "StableDiffusionUpscalePipeline"}
CLIP_ONLY = ("inpainting", "depth", "low_resolution")
TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2", "bert": "tokenizer"}


@dataclasses.dataclass(frozen=True)
class FolderPlan:
    """What a folder of a model holds. index: model_index.json; jsons: component -> its config; texts: component -> the numbers of the
    encoder that stock pipelines expect there (fewer layers than ours where ours has some that are not told).
    """

    index: dict[str, Any]
    jsons: dict[str, dict[str, Any]]
    texts: dict[str, dict[str, Any]]


def plan_folder(described: Description, proj: str = "") -> FolderPlan:
    """The JSON files of a model, for the pipeline of diffusers that runs it.

    Args:
      proj: "conv" or "linear", as `unet_places` takes it; "" is linear where the text encoder is OpenCLIP's, as published.

    Raises:
      UserError: a model that no pipeline of diffusers runs.
    """
    conditioner = described.sections["conditioner"]
    parts = {part["name"]: part for part in conditioner.get("parts", (conditioner,))}
    texts, pipeline = _texts(parts)
    if not described.first_stage:
        raise UserError("a model of pixels has no pipeline among diffusers' of latent diffusion; export its U-Net alone")
    first = "vqvae" if "bert" in texts or not texts else "vae"
    jsons = {first: write_first_stage(described.first_stage, described.resolution, described.channels, described.scale_factor),
             "unet": write_unet(described.sections["network"], _told(described, parts, texts, proj)),
             "scheduler": write_scheduler(described.sections)}
    index = {"_class_name": pipeline} | {name: ["diffusers", jsons[name]["_class_name"]] for name in jsons}
    jsons |= {name: write_bert(text) if name == "bert" else write_clip(text) for name, text in texts.items()}
    index |= {name: ["latent_diffusion" if name == "bert" else "transformers", jsons[name]["architectures"][0]] for name in texts}
    index |= {TOKENIZERS[name]: ["transformers", "BertTokenizer" if name == "bert" else "CLIPTokenizer"] for name in texts}
    low = parts.get("low_resolution", {})
    if low.get("levels"):
        jsons["low_res_scheduler"] = dict(_class_name="DDPMScheduler", beta_schedule="scaled_linear", beta_start=low.get("start", 1e-4),
                                          beta_end=low.get("end", 0.02), num_train_timesteps=1000)
        index |= dict(low_res_scheduler=["diffusers", "DDPMScheduler"], max_noise_level=low.get("max_level", 350))
    return FolderPlan(index | _options(pipeline, parts), jsons, texts)


def _texts(parts: Mapping[str, Mapping]) -> tuple[dict[str, dict], str]:
    """(component -> the numbers of its encoder, the pipeline)."""
    names, images = set(parts), [name for name in CLIP_ONLY if name in parts]
    if names == {"two_clip_text", "sizes"}:
        text = parts["two_clip_text"]
        return dict(text_encoder=dict(text["first"]), text_encoder_2=dict(text["second"])), PIPELINES["two_clip_text"]
    if names == {"clip_text", "sizes"}:
        return dict(text_encoder_2=dict(parts["clip_text"])), PIPELINES["sizes"]
    if names == {"clip_text", *images} and len(images) < 2:
        return dict(text_encoder=last_told(parts["clip_text"])), PIPELINES[images[0] if images else "clip_text"]
    if names == {"bert_text"} and parts["bert_text"].get("reads", "tokens") == "tokens":
        return dict(bert=dict(parts["bert_text"])), PIPELINES["bert_text"]
    if names == {"none"} or names == {"low_resolution"} and not parts["low_resolution"].get("levels"):
        return {}, "LDMSuperResolutionPipeline" if "low_resolution" in names else PIPELINES["none"]
    if names == {"class"} and parts["class"]["into"] == "vector" and parts["class"]["drop"] > 0:  # a reader takes the last row for the null
        return {}, PIPELINES["none"]  # whose network is told its class_labels by hand: no stock pipeline has classes
    raise UserError(f"config.conditioner: no pipeline of diffusers is told {' and '.join(parts)}; export in the CompVis layout")


def _told(described: Description, parts: Mapping, texts: Mapping, proj: str) -> ReadNetwork:
    """What a U-Net's config.json says beside its section."""
    stage, sizes, low = described.first_stage, parts.get("sizes"), parts.get("low_resolution", {})
    latent = stage["latent_channels"]
    extra = (latent + 1) * ("inpainting" in parts) + ("depth" in parts) + described.channels * ("low_resolution" in parts)
    linear = any(text.get("activation") == "gelu" for text in texts.values())
    vector = sizes["count"] * sizes["width"] + texts["text_encoder_2"]["projection"] if sizes else 0
    labels = low.get("levels", 0) or (described.classes + 1) * ("class" in parts)
    side = described.resolution // 2 ** (len(stage["multipliers"]) - 1)
    return ReadNetwork({}, (latent + extra, latent), sum(text["width"] for text in texts.values()), vector, labels,
                       sizes["width"] if sizes else 0, side, proj or ("linear" if linear else "conv"), "text_time" if sizes else "")


def _options(pipeline: str, parts: Mapping[str, Mapping]) -> dict[str, Any]:
    """What model_index.json says beside the components that are there."""
    nothing = [None, None]
    if pipeline.startswith("StableDiffusionXL"):
        text = parts.get("two_clip_text") or parts["clip_text"]
        options = dict(force_zeros_for_empty_prompt=text.get("untold") == "zeros")
        if "clip_text" in parts:
            options |= dict(requires_aesthetics_score=parts["sizes"]["count"] == 5, text_encoder=nothing, tokenizer=nothing)
        return options
    if pipeline == "StableDiffusionDepth2ImgPipeline":
        return dict(depth_estimator=nothing, feature_extractor=nothing)
    if pipeline.startswith("StableDiffusion"):
        checks = {} if pipeline == "StableDiffusionUpscalePipeline" else dict(requires_safety_checker=False)
        return dict(safety_checker=nothing, feature_extractor=nothing) | checks
    return {}
