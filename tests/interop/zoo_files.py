"""Files of the zoo's models as the tests need them: names and shapes alone. Encoders' names are written out here, not taken from our
tables."""

import dataclasses
import functools

from ldm_jax.interop.described import single_file_shapes
from ldm_jax.interop.zoo import NETS, ZOO


def clip_hf(prefix, spec):
    found = {f"{prefix}text_model.embeddings.token_embedding.weight": (spec["vocabulary"], spec["width"]),
             f"{prefix}text_model.embeddings.position_embedding.weight": (spec["length"], spec["width"])}
    return found | {f"{prefix}text_model.encoder.layers.{k}.mlp.fc1.bias": (4 * spec["width"],) for k in range(spec["layers"])}


def open_clip(prefix, spec):
    found = {f"{prefix}token_embedding.weight": (spec["vocabulary"], spec["width"]), f"{prefix}logit_scale": (),
             f"{prefix}positional_embedding": (spec["length"], spec["width"]),
             f"{prefix}text_projection": (spec["width"], spec["projection"])}
    return found | {f"{prefix}transformer.resblocks.{k}.ln_1.weight": (spec["width"],) for k in range(spec["layers"])}


def bert(prefix, spec):
    found = {f"{prefix}token_emb.weight": (spec["vocabulary"], spec["width"]),
             f"{prefix}pos_emb.emb.weight": (spec["length"], spec["width"]),
             f"{prefix}to_logits.weight": (spec["vocabulary"], spec["width"])}
    return found | {f"{prefix}attn_layers.layers.{k}.0.weight": (spec["width"],) for k in range(2 * spec["layers"])}


def encoders(described) -> dict:
    """The conditioner's tensors in a single file, as far as they tell what it is."""
    conditioner, found = described.sections["conditioner"], {}
    for part in conditioner.get("parts", (conditioner,)):
        name = part["name"]
        if name == "clip_text" and part["activation"] == "quick_gelu":
            found |= clip_hf("cond_stage_model.transformer.", part)
        elif name == "clip_text":
            refines = part.get("vector") == "pooled"
            found |= open_clip("conditioner.embedders.0.model." if refines else "cond_stage_model.model.", part)
        elif name == "two_clip_text":
            found |= clip_hf("conditioner.embedders.0.transformer.", part["first"])
            found |= open_clip("conditioner.embedders.1.model.", part["second"])
        elif name == "bert_text":
            found |= bert("cond_stage_model.transformer.", part)
        elif name == "class":
            found |= {"cond_stage_model.embedding.weight": (described.classes + (part["drop"] > 0), part["width"])}
        elif name == "semantic_map":
            found |= {"cond_stage_model.channel_mapper.weight": (part["channels"], part["classes"], 1, 1)}
        elif name == "low_resolution" and part.get("levels"):
            found |= {"model.diffusion_model.label_emb.weight": (part["levels"], part["width"])}
    return found


def file_of(described) -> dict:
    """name -> shape of a single file of a description."""
    shapes = dict(published(described.kind) if ZOO.get(described.kind) == described else single_file_shapes(described))
    if not described.sections:
        return shapes
    scale = {"scale_factor": ()} if described.scale_factor == 0 else {}
    return shapes | encoders(described) | scale | {"betas": (1000,), "model_ema.decay": (), "model_ema.num_updates": ()}


@functools.cache
def published(kind) -> dict:
    """Network and first stage of a row, at full size."""
    return single_file_shapes(ZOO[kind])


def smaller(kind, width, multipliers, attended, blocks=1, depth=None, text=64, levels=0):
    """A relative of a row: narrow, of fewer levels, with a first stage of 2 levels and encoders of `text` channels and 2 layers;
    levels: of noise, that an upscaler is told."""
    row, net = ZOO[kind], NETS[kind]
    net = dataclasses.replace(net, width=width, multipliers=multipliers, attended=attended, blocks=blocks, depth=depth or net.depth)
    stage = row.first_stage | dict(width=32, multipliers=(1, 2), blocks=1, attention=())
    if stage["bottleneck"]["name"] == "vq":
        stage["bottleneck"] = stage["bottleneck"] | dict(codes=16)

    def narrow(part):
        if "layers" in part:
            clip = {"activation", "bos"} <= set(part)
            heads = {} if "head_width" in part else dict(heads=max(1, text // 64))
            part = part | dict(width=text, layers=2, vocabulary=300) | heads
            ids = dict(bos=298, eos=299, pad=299 if part["pad"] else 0, projection=text if part.get("projection") else 0)
            return part | (ids if clip else {})
        return part | {key: narrow(part[key]) for key in ("first", "second") if key in part} | (
            dict(width=text) if part.get("name") in ("class", "tokens") else {}) | (
            dict(levels=levels, width=4 * width) if part.get("levels") else {}) | (
            dict(halvings=1) if part.get("name") == "semantic_map" else {}) | (
            dict(parts=tuple(map(narrow, part["parts"]))) if "parts" in part else {})

    sections = dict(row.sections) | dict(network=net.section(), conditioner=narrow(row.sections["conditioner"]))
    return dataclasses.replace(row, kind="", first_stage=stage, sections=sections)
