"""Where the tensors of published text and image encoders stand in ours (shared by readers and writers).

Names are relative to the encoder; files put "cond_stage_model.transformer.", "conditioner.embedders.0.model." and the like
before them.
"""

from ldm_jax.core.errors import UserError
from ldm_jax.interop.places import CONV, LINEAR, SAME, Place, prefixed
from ldm_jax.models.bert_text import BertTextEncoder
from ldm_jax.models.condition import ClassConditioner
from ldm_jax.models.image_encoder import ClipImageEncoder
from ldm_jax.models.text_encoder import ClipTextEncoder


def clip_text_places(encoder: ClipTextEncoder, form: str, flat: bool = False) -> tuple[Place, ...]:
    """The places of a CLIP text encoder.

    Args:
      form: "hf" (transformers; also inside CompVis' FrozenCLIPEmbedder) or "openclip" (SD2, SDXL's second).
      flat: of "hf", the layout without "text_model.", which transformers 5 writes for a CLIPTextModel.

    Raises:
      UserError: an unknown form.
    """
    _known("form", form, ("hf", "openclip"))
    if form == "openclip":
        places = (Place("token_embedding", ("token_embedding.weight",)), Place("position_embedding", ("positional_embedding",)),
                  *_openclip_blocks(encoder.spec.layers), *_norm("norm_out", "ln_final"))
        return places + ((Place("projection/kernel", ("text_projection",)),) if encoder.spec.projection else ())
    places = (Place("token_embedding", ("embeddings.token_embedding.weight",)),
              Place("position_embedding", ("embeddings.position_embedding.weight",)),
              *_hf_blocks(encoder.spec.layers), *_norm("norm_out", "final_layer_norm"))
    places = prefixed(places, theirs="" if flat else "text_model.")
    return places + ((Place("projection/kernel", ("text_projection.weight",), LINEAR),) if encoder.spec.projection else ())


def clip_vision_places(encoder: ClipImageEncoder, form: str, flat: bool = False) -> tuple[Place, ...]:
    """The places of a CLIP image encoder; form and flat as in `clip_text_places`, with "vision_model." and "visual."."""
    _known("form", form, ("hf", "openclip"))
    if form == "openclip":
        places = (Place("class_embedding", ("class_embedding",)), Place("position_embedding", ("positional_embedding",)),
                  Place("patch_embedding/kernel", ("conv1.weight",), CONV), *_norm("norm_in", "ln_pre"),
                  *_openclip_blocks(encoder.spec.layers), *_norm("norm_out", "ln_post"))
        return prefixed(places + ((Place("projection/kernel", ("proj",)),) if encoder.spec.projection else ()), theirs="visual.")
    places = (Place("class_embedding", ("embeddings.class_embedding",)),
              Place("position_embedding", ("embeddings.position_embedding.weight",)),
              Place("patch_embedding/kernel", ("embeddings.patch_embedding.weight",), CONV), *_norm("norm_in", "pre_layrnorm"),
              *_hf_blocks(encoder.spec.layers), *_norm("norm_out", "post_layernorm"))
    places = prefixed(places, theirs="" if flat else "vision_model.")
    return places + ((Place("projection/kernel", ("visual_projection.weight",), LINEAR),) if encoder.spec.projection else ())


def bert_places(encoder: BertTextEncoder, form: str) -> tuple[Place, ...]:
    """The places of LDM's text encoder: form "x_transformers" (CompVis) or "ldmbert" (diffusers' LDMBertModel)."""
    _known("form", form, ("x_transformers", "ldmbert"))
    compvis, places = form == "x_transformers", []
    for k in range(encoder.spec.layers):
        attention, feed = (f"attn_layers.layers.{2 * k + i}." for i in (0, 1))
        layer = f"model.layers.{k}."
        qkv = [f"{attention}1.to_{p}.weight" if compvis else f"{layer}self_attn.{p}_proj.weight" for p in "qkv"]
        names = {"norm1": f"{attention}0" if compvis else f"{layer}self_attn_layer_norm",
                 "to_out": f"{attention}1.to_out" if compvis else f"{layer}self_attn.out_proj",
                 "norm2": f"{feed}0" if compvis else f"{layer}final_layer_norm",
                 "fc1": f"{feed}1.net.0.0" if compvis else f"{layer}fc1", "fc2": f"{feed}1.net.2" if compvis else f"{layer}fc2"}
        places += prefixed((Place("qkv/kernel", tuple(qkv), LINEAR), *_block(names)), ours=f"block_{k}/")
    names = (("token_emb.weight", "pos_emb.emb.weight", "norm") if compvis
             else ("model.embed_tokens.weight", "model.embed_positions.weight", "model.layer_norm"))
    head = _dense("to_logits", "to_logits") if encoder.spec.logits else ()
    return (Place("token_embedding", names[:1]), Place("position_embedding", names[1:2]), *places, *_norm("norm_out", names[2]), *head)


def class_places(conditioner: ClassConditioner) -> tuple[Place, ...]:
    """The place of CompVis' ClassEmbedder."""
    return (Place("embedding", ("embedding.weight",)),)


def _hf_blocks(layers: int) -> tuple[Place, ...]:
    places = []
    for k in range(layers):
        layer = f"encoder.layers.{k}."
        qkv = (Place(f"qkv/{ours}", tuple(f"{layer}self_attn.{p}_proj.{theirs}" for p in "qkv"), layout)
               for ours, theirs, layout in (("kernel", "weight", LINEAR), ("bias", "bias", SAME)))
        names = {"norm1": f"{layer}layer_norm1", "to_out": f"{layer}self_attn.out_proj", "norm2": f"{layer}layer_norm2",
                 "fc1": f"{layer}mlp.fc1", "fc2": f"{layer}mlp.fc2"}
        places += prefixed((*qkv, *_block(names)), ours=f"block_{k}/")
    return tuple(places)


def _openclip_blocks(layers: int) -> tuple[Place, ...]:
    places = []
    for k in range(layers):
        layer = f"transformer.resblocks.{k}."
        qkv = (Place("qkv/kernel", (f"{layer}attn.in_proj_weight",), LINEAR), Place("qkv/bias", (f"{layer}attn.in_proj_bias",)))
        names = {"norm1": f"{layer}ln_1", "to_out": f"{layer}attn.out_proj", "norm2": f"{layer}ln_2",
                 "fc1": f"{layer}mlp.c_fc", "fc2": f"{layer}mlp.c_proj"}
        places += prefixed((*qkv, *_block(names)), ours=f"block_{k}/")
    return tuple(places)


def _block(names: dict[str, str]) -> tuple[Place, ...]:
    return tuple(place for ours, theirs in names.items() for place in (_norm if "norm" in ours else _dense)(ours, theirs))


def _norm(ours: str, theirs: str) -> tuple[Place, Place]:
    return Place(f"{ours}/scale", (f"{theirs}.weight",)), Place(f"{ours}/bias", (f"{theirs}.bias",))


def _dense(ours: str, theirs: str) -> tuple[Place, Place]:
    return Place(f"{ours}/kernel", (f"{theirs}.weight",), LINEAR), Place(f"{ours}/bias", (f"{theirs}.bias",))


def _known(name: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise UserError(f"{name}={value!r}: expected one of {', '.join(accepted)}")
