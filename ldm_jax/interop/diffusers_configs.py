"""What a diffusers folder is a model of, from its JSON files; `diffusers_plan.py` is the way back.

What a folder is follows from its components, not from its pipeline's name: the conditioner from the text encoders and from the
channels that the U-Net has more than the latent.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ldm_jax.core.errors import UserError
from ldm_jax.interop.description import Description
from ldm_jax.interop.diffusers_keys import INDEX, check_keys
from ldm_jax.interop.diffusers_nets import ReadNetwork, read_first_stage, read_unet
from ldm_jax.interop.diffusers_scheduler import read_scheduler
from ldm_jax.interop.diffusers_texts import read_bert, read_clip
from ldm_jax.interop.families import several
from ldm_jax.interop.folder_reader import NOT_READ
from ldm_jax.interop.zoo import ZOO

Jsons = Mapping[str, Mapping[str, Any]]
KNOWN = ("unet", "vae", "vqvae", "text_encoder", "text_encoder_2", "bert", "tokenizer", "tokenizer_2", "scheduler", "low_res_scheduler")
STEPS = {"StableDiffusionUpscalePipeline": (75, 9.0), "StableDiffusionXLPipeline": (50, 5.0), "StableDiffusionXLImg2ImgPipeline": (50, 5.0),
         "StableDiffusionXLInpaintPipeline": (50, 5.0), "LDMTextToImagePipeline": (50, 1.0), "LDMPipeline": (50, 1.0),
         "LDMSuperResolutionPipeline": (100, 1.0)}
"""(steps, guidance) that a pipeline takes when nothing is said; the others: (50, 7.5)."""


def describe_folder(jsons: Jsons) -> Description:
    """What a diffusers folder is a model of.

    Args:
      jsons: component -> its config.json (scheduler_config.json, tokenizer_config.json); "model_index" -> model_index.json. A lone
        U-Net or first stage is one component, of any name.

    Returns:
      Its Description, `kind` of the zoo where it is exactly that network with that conditioner. A lone U-Net has no scheduler and so
      no sections but its network; its first_stage is {}.

    Raises:
      UserError: a component or a setting without an equal here.
    """
    index = jsons.get("model_index", {})
    check_keys(index, INDEX, "model_index.json")
    parts = {name: config for name, config in jsons.items() if name not in ("model_index", *NOT_READ)}
    if len(parts) == 1 and not index:
        return _lone(next(iter(parts.values())))
    unknown = [name for name in parts if name not in KNOWN]
    if unknown or "unet" not in parts or "scheduler" not in parts:
        wrong = f"{unknown[0]} has no equal here" if unknown else "expected at least unet and scheduler"
        raise UserError(f"{index.get('_class_name', 'this folder')}: components {', '.join(parts)}: {wrong}; known: {', '.join(KNOWN)}")
    net = read_unet(parts["unet"])
    steps, guidance = STEPS.get(str(index.get("_class_name")), (50, 7.5))
    stage, factor, channels = {}, 1.0, net.channels[1]
    stage_config = parts.get("vae", parts.get("vqvae"))
    resolution = net.side
    if stage_config is not None:
        stage, factor, own, channels = read_first_stage(stage_config)
        resolution = net.side * 2 ** (len(stage["multipliers"]) - 1) or own
        stage = read_first_stage(stage_config, resolution)[0]
        if stage["latent_channels"] != net.channels[1]:
            raise UserError(f"the U-Net gives {net.channels[1]} channels, and the first stage's latent has {stage['latent_channels']}")
    if index.get("_class_name") == "LDMSuperResolutionPipeline":
        factor = 1.0  # it decodes latents as they are
    conditioner = _conditioner(parts, index, net, channels)
    told = _rates(conditioner)
    sections = dict(network=net.section, conditioner=conditioner) | read_scheduler(parts["scheduler"], steps, guidance if told else 1.0)
    if stage and sections["sampling"]["threshold"]["name"] != "none":
        raise UserError("scheduler: clip_sample=True clips latents, which have no range to keep to; write \"clip_sample\": false into "
                        "scheduler_config.json, as the published models have it")
    classes = net.labels - 1 if conditioner["name"] == "class" else 0  # its last row is the null
    described = Description("", stage, sections, factor, resolution or 512, channels, classes)
    return dataclasses.replace(described, kind=_kind(described))


def _lone(config: Mapping[str, Any]) -> Description:
    if config.get("_class_name") in ("AutoencoderKL", "VQModel"):
        stage, factor, resolution, channels = read_first_stage(config)
        same = [kind for kind, row in ZOO.items() if not row.sections and row.first_stage == stage and row.scale_factor == factor]
        return Description(same[0] if same else "", stage, {}, factor, resolution, channels)
    net = read_unet(config)
    return Description("", {}, {"network": net.section}, 1.0, net.side, net.channels[1])


def _conditioner(parts: Jsons, index: Mapping[str, Any], net: ReadNetwork, channels: int) -> dict:
    sections = [*_texts(parts, index, net), *_images(parts, index, net, channels)]
    tells = any(section["name"] in ("clip_text", "two_clip_text", "bert_text") for section in sections)
    if bool(net.tokens) != tells:
        raise UserError(f"the U-Net reads tokens of {net.tokens}, and there is no text encoder that gives them (text_encoder or bert)"
                        if net.tokens else "there is a text encoder, and the U-Net reads no tokens")
    return several(*sections) if len(sections) > 1 else sections[0] if sections else dict(name="none")


def _texts(parts: Jsons, index: Mapping[str, Any], net: ReadNetwork) -> list[dict]:
    """The parts that tell a text, and with two encoders the sizes."""
    first, second = parts.get("text_encoder"), parts.get("text_encoder_2")
    if net.vector and (net.vector != "text_time" or second is None):
        raise UserError(f"the U-Net is told a vector ({net.vector}) that no component here gives; expected SDXL's, with text_encoder_2")
    if "bert" in parts:
        return [dict(name="bert_text") | read_bert(parts["bert"]) | dict(drop=0.1)]
    if second is None:
        return [dict(name="clip_text") | read_clip(first, parts.get("tokenizer", {})) | dict(drop=0.1)] if first else []
    clip = read_clip(second, parts.get("tokenizer_2", {}), 1, False)
    numbers = net.vector_width - clip["projection"]
    if not clip["projection"] or numbers % net.addition or numbers // net.addition not in (5, 6):
        raise UserError(f"unet: projection_class_embeddings_input_dim={net.vector_width}, addition_time_embed_dim={net.addition}, text "
                        f"projection {clip['projection']}: expected the projection and 6 numbers (5 with an aesthetic score)")
    untold = "zeros" if index.get("force_zeros_for_empty_prompt", True) else "empty"
    sizes = dict(name="sizes", count=numbers // net.addition, width=net.addition)
    if first is None:
        return [dict(name="clip_text") | clip | dict(drop=0.1, vector="pooled") | ({"untold": untold} if untold == "zeros" else {}), sizes]
    return [dict(name="two_clip_text", first=read_clip(first, parts.get("tokenizer", {}), 1, False), second=clip, untold=untold, drop=0.1),
            sizes]


def _images(parts: Jsons, index: Mapping[str, Any], net: ReadNetwork, channels: int) -> list[dict]:
    """The part that tells an image, by how many channels the U-Net has more than the latent."""
    extra, latent = net.channels[0] - net.channels[1], net.channels[1]
    if net.labels and not extra and not net.tokens:
        return [dict(name="class", width=net.section["time_width"], drop=0.1, into="vector")]
    if net.labels:
        if extra != channels or "low_res_scheduler" not in parts:
            raise UserError(f"unet: num_class_embeds={net.labels}: expected an upscaler's, with {channels} channels more than the latent "
                            "and a low_res_scheduler")
        low = read_scheduler(parts["low_res_scheduler"], 50)["schedule"]
        if low["name"] != "scaled_linear":
            raise UserError(f"low_res_scheduler: beta_schedule of {low['name']}: expected scaled_linear")
        most = index.get("max_noise_level", 350)
        noise = dict(start=low["start"], end=low["end"], max_level=most)
        return [dict(name="low_resolution", levels=net.labels, width=net.section["time_width"])
                | (noise if noise != dict(start=1e-4, end=0.02, max_level=350) else {})]
    known = {0: [], latent + 1: [dict(name="inpainting", order=("mask", "masked"), hole=0.0)], 1: [dict(name="depth")]}
    if not net.tokens:
        known |= {channels: [dict(name="low_resolution")]}
    if extra not in known:
        raise UserError(f"unet: in_channels={net.channels[0]} with a latent of {latent}: expected "
                        f"{', '.join(str(latent + more) for more in known)}")
    return known[extra]


def _rates(conditioner: Mapping[str, Any]) -> bool:
    return any(part.get("drop", 0) for part in conditioner.get("parts", (conditioner,)))


def _kind(described: Description) -> str:
    """Of the zoo: the only row with this network, conditioner (by its parts) and way of training."""
    def essence(one: Description):
        conditioner = one.sections["conditioner"]
        stage = dict(one.first_stage)
        sides = len(stage.pop("attention", ()))
        return ([one.sections[key] for key in ("network", "schedule", "prediction")], stage, sides, one.scale_factor,
                [part["name"] for part in conditioner.get("parts", (conditioner,))])

    same = [kind for kind, row in ZOO.items() if row.sections and essence(row) == essence(described)]
    return same[0] if len(same) == 1 else ""
