"""diffusers' config.json of networks and first stages, and our sections network and model, both ways.

Its `attention_head_dim` means the number of heads in UNet2DConditionModel, and the width of one in UNet2DModel.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ldm_jax.core.errors import UserError
from ldm_jax.interop.diffusers_keys import PLAIN_UNET, STAGE, UNET, check_keys, each
from ldm_jax.models.levels import one_group_number

Config = Mapping[str, Any]
UNETS = {"UNet2DConditionModel": "transformer", "UNet2DModel": "plain"}
DOWN = {"DownBlock2D": "none", "ResnetDownsampleBlock2D": "none", "AttnDownBlock2D": "plain", "CrossAttnDownBlock2D": "transformer"}
UP = {"UpBlock2D": "none", "ResnetUpsampleBlock2D": "none", "AttnUpBlock2D": "plain", "CrossAttnUpBlock2D": "transformer"}
FIXED = {  # option: what it may be; left out, it is the first
    "center_input_sample": (False,), "flip_sin_to_cos": (True,), "freq_shift": (0,), "mid_block_scale_factor": (1, 1.0),
    "downsample_padding": (1,), "act_fn": ("silu", "swish"), "norm_eps": (1e-5,), "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,), "num_attention_heads": (None,), "dual_cross_attention": (False,), "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,), "class_embed_type": (None, "projection"), "addition_embed_type": (None, "text_time"),
    "time_embedding_act_fn": (None,), "timestep_post_act": (None,), "time_cond_proj_dim": (None,), "conv_in_kernel": (3,),
    "conv_out_kernel": (3,), "attention_type": ("default",), "class_embeddings_concat": (False,), "cross_attention_norm": (None,),
    "resnet_time_scale_shift": ("default", "scale_shift"), "resnet_skip_time_act": (False,), "resnet_out_scale_factor": (1.0, 1),
    "reverse_transformer_layers_per_block": (None,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D"), "downsample_type": ("conv", "resnet"),
}
STAGE_FIXED = {"act_fn": ("silu", "swish"), "shift_factor": (None, 0, 0.0), "latents_mean": (None,), "latents_std": (None,),
               "use_quant_conv": (True,), "use_post_quant_conv": (True,), "norm_type": ("group",), "lookup_from_codebook": (False,)}


@dataclasses.dataclass(frozen=True)
class ReadNetwork:
    """A U-Net's config: the section config.network; channels in and out; the width of tokens, of a projected vector, and the number
    of labels in a table: 0 for none; addition: features of each number that SDXL is told; side: of its latents, 0 where not said;
    `proj` and `vector` as `unet_places` takes them.
    """

    section: dict
    channels: tuple[int, int]
    tokens: int
    vector_width: int
    labels: int
    addition: int
    side: int
    proj: str
    vector: str


def read_unet(config: Config) -> ReadNetwork:
    """A UNet2DConditionModel's or UNet2DModel's config.json.

    Raises:
      UserError: another class, or a setting that our network has not.
    """
    kind = str(config.get("_class_name"))
    if kind not in UNETS:
        raise UserError(f"unet: _class_name={kind:.80}: expected {' or '.join(UNETS)}")
    _check(config, FIXED, "unet")
    plain = kind == "UNet2DModel"
    check_keys(config, PLAIN_UNET if plain else UNET, "unet")
    widths = tuple(config.get("block_out_channels", (224, 448, 672, 896) if plain else (320, 640, 1280, 1280)))
    count = len(widths)
    blocks, depths = (each(config.get(key, default), count, f"unet: {key}")
                      for key, default in (("layers_per_block", 2), ("transformer_layers_per_block", 1)))
    heads = _heads(config, widths, plain)
    crossing = each(config.get("only_cross_attention", False), count, "unet: only_cross_attention")
    attention, downs = _levels(config, count, plain)
    levels = []
    for i, kind_of in enumerate(attention):
        on = kind_of != "none"
        level = dict(width=widths[i], blocks=blocks[i], attention=kind_of, heads=heads[i] if on else 1,
                     depth=depths[i] if kind_of == "transformer" else 1, down=downs[i])
        levels.append(level | ({"cross_only": bool(crossing[i] and kind_of == "transformer")} if any(crossing) else {}))
    if plain and config.get("resnet_time_scale_shift") == "scale_shift" and config.get("attn_norm_num_groups") is None:
        raise UserError("unet: attn_norm_num_groups=None with scale_shift: its middle attention has no norm; expected norm_num_groups")
    middle = dict(attention="transformer", heads=heads[-1], depth=depths[-1])
    if plain:
        middle = dict(attention="plain" if config.get("add_attention", True) else "none", heads=heads[-1], depth=1)
    whole, crossed = config.get("only_cross_attention", False), config.get("mid_block_only_cross_attention")
    if whole is True if crossed is None else crossed:
        middle["cross_only"] = True
    labels = config.get("num_class_embeds") if config.get("class_embed_type") is None else None
    vector = "text_time" if config.get("addition_embed_type") else config.get("class_embed_type") or ""
    section = dict(name="unet", time_width=4 * widths[0], dropout=float(config.get("dropout", 0.0)),
                   scale_shift=config.get("resnet_time_scale_shift", "default") == "scale_shift",
                   vector="added" if labels else "projected", dtype="float32",
                   groups=config.get("norm_num_groups", 32), levels=tuple(levels), middle=middle)
    tokens = set() if plain else set(each(config.get("cross_attention_dim", 1280), count, "unet: cross_attention_dim"))
    if len(tokens) > 1:
        raise UserError(f"unet: cross_attention_dim={config['cross_attention_dim']}: expected the same for every level")
    default = 3 if plain else 4
    return ReadNetwork(section, (config.get("in_channels", default), config.get("out_channels", default)), max(tokens, default=0),
                       (config.get("projection_class_embeddings_input_dim") or 0) if vector else 0, labels or 0,
                       config.get("addition_time_embed_dim") or 0, _side(config.get("sample_size")),
                       "linear" if config.get("use_linear_projection", False) else "conv", vector)


def _heads(config: Config, widths: Sequence[int], plain: bool) -> list[int]:
    given = config.get("attention_head_dim", 8)
    if not plain:
        return list(each(given, len(widths), "unet: attention_head_dim"))
    if given and any(width % given for width in widths):
        raise UserError(f"unet: attention_head_dim={given} does not divide the widths {', '.join(map(str, widths))}")
    return [width // given if given else 1 for width in widths]


def _levels(config: Config, count: int, plain: bool) -> tuple[list[str], list[str]]:
    """(the attention, the `down`) of each level, from the block types of both ways, which must agree."""
    downs = list(config.get("down_block_types", ("DownBlock2D", *("AttnDownBlock2D",) * 3) if plain else
                            (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D")))
    ups = list(config.get("up_block_types", (*("AttnUpBlock2D",) * 3, "UpBlock2D") if plain else
                          ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3)))
    for name, given, known in (("down_block_types", downs, DOWN), ("up_block_types", ups, UP)):
        wrong = [kind for kind in given if kind not in known]
        if wrong or len(given) != count:
            raise UserError(f"unet: {name}={wrong[0] if wrong else given}: expected {count} of {', '.join(known)}")
    attention = [DOWN[kind] for kind in downs]
    residual = {kind: config.get(key, "conv") == "resnet" for kind, key in (("AttnDownBlock2D", "downsample_type"),
                                                                            ("AttnUpBlock2D", "upsample_type"))}
    residual |= {"ResnetDownsampleBlock2D": True, "ResnetUpsampleBlock2D": True}
    there = [residual.get(kind, False) for kind in downs[:-1]]
    back = [residual.get(kind, False) for kind in reversed(ups[:-1])]
    if [UP[kind] for kind in reversed(ups)] != attention or there != back:
        raise UserError(f"unet: down_block_types={downs} and up_block_types={ups} differ in attention or in how they resample; "
                        "expected the same on the way up as on the way down")
    return attention, [*("residual" if one else "conv" for one in there), "none"]


def write_unet(section: Mapping[str, Any], told: ReadNetwork) -> dict[str, Any]:
    """config.json of a network. told: all but its section is used.

    Raises:
      UserError: a network that diffusers has not.
    """
    levels, middle = section["levels"], section.get("middle") or section["levels"][-1]
    kinds = {spec["attention"] for spec in (*levels, middle)} - {"none"}
    if len(kinds) > 1 or not kinds:
        raise UserError(f"config.network: attention {' and '.join(sorted(kinds)) or 'none'}: diffusers' U-Nets have either "
                        "'plain' attention or 'transformer', at some level or in the middle")
    if section["vector"] == "added" and not told.labels or section["vector"] == "projected" and told.vector_width and not told.vector:
        raise UserError("config.network: diffusers' U-Nets are told a vector by a table of labels, or of sizes and text (text_time)")
    widths = [level["width"] for level in levels]
    common = dict(sample_size=told.side or None, in_channels=told.channels[0], out_channels=told.channels[1], block_out_channels=widths,
                  flip_sin_to_cos=True, freq_shift=0, dropout=section["dropout"], act_fn="silu", norm_eps=1e-5,
                  norm_num_groups=one_group_number(section.get("groups", 0), widths),
                  resnet_time_scale_shift="scale_shift" if section["scale_shift"] else "default")
    blocks = {level["blocks"] for level in levels}
    residual = [level["down"] == "residual" for level in levels]
    own = (_plain if kinds == {"plain"} else _conditioned)(levels, middle, residual, told)
    if len(blocks) > 1 and kinds == {"plain"}:
        raise UserError("config.network.levels: UNet2DModel has the same number of blocks at every level")
    own |= dict(attn_norm_num_groups=common["norm_num_groups"]) if kinds == {"plain"} else {}
    return common | own | dict(layers_per_block=[level["blocks"] for level in levels] if len(blocks) > 1 else blocks.pop())


def _plain(levels, middle, residual, told: ReadNetwork) -> dict[str, Any]:
    sizes = {spec["width"] // spec["heads"] for spec in levels if spec["attention"] == "plain"}
    sizes |= {levels[-1]["width"] // middle["heads"]} if middle["attention"] == "plain" else set()
    if len(sizes) > 1:
        raise UserError(f"config.network: heads of {', '.join(map(str, sorted(sizes)))} channels: UNet2DModel has heads of one width; "
                        "export in the CompVis layout")
    attended = [level["attention"] != "none" for level in levels]
    if len(set(residual[:-1])) > 1:
        raise UserError("config.network.levels: UNet2DModel resamples all levels in one way, and these differ in `down`")
    down = ["AttnDownBlock2D" if on else "ResnetDownsampleBlock2D" if res else "DownBlock2D" for on, res in zip(attended, residual)]
    ups = [False, *residual[:-1]]
    up = ["AttnUpBlock2D" if on else "ResnetUpsampleBlock2D" if res else "UpBlock2D" for on, res in zip(attended, ups)]
    how = "resnet" if any(residual) else "conv"
    return dict(_class_name="UNet2DModel", down_block_types=down, up_block_types=up[::-1], attention_head_dim=sizes.pop(),
                downsample_type=how, upsample_type=how, add_attention=middle["attention"] != "none",
                num_class_embeds=told.labels or None)


def _conditioned(levels, middle, residual, told: ReadNetwork) -> dict[str, Any]:
    if any(residual):
        raise UserError("config.network.levels: UNet2DConditionModel resamples by convolutions, and these levels have down='residual'")
    last = levels[-1]
    if middle["attention"] != "transformer" or last["attention"] != "none" and any(last[k] != middle[k] for k in ("heads", "depth")):
        raise UserError("config.network.middle: UNet2DConditionModel's middle has a transformer, with the last level's heads and depth")
    attended = [level["attention"] != "none" for level in levels]
    heads = [level["heads"] if on else middle["heads"] for level, on in zip(levels, attended)]
    depth = [level["depth"] if on else 1 for level, on in zip(levels, attended)]
    heads[-1], depth[-1] = middle["heads"], middle["depth"]
    crossing = [bool(level.get("cross_only")) for level in levels]
    config = dict(_class_name="UNet2DConditionModel", cross_attention_dim=told.tokens, use_linear_projection=told.proj == "linear",
                  down_block_types=["CrossAttnDownBlock2D" if on else "DownBlock2D" for on in attended],
                  up_block_types=["CrossAttnUpBlock2D" if on else "UpBlock2D" for on in attended][::-1],
                  mid_block_type="UNetMidBlock2DCrossAttn", attention_head_dim=_one(heads), transformer_layers_per_block=_one(depth),
                  only_cross_attention=_one(crossing), mid_block_only_cross_attention=bool(middle.get("cross_only")))
    if told.labels:
        config |= dict(num_class_embeds=told.labels)
    if told.vector == "text_time":
        config |= dict(addition_embed_type="text_time", addition_time_embed_dim=told.addition,
                       projection_class_embeddings_input_dim=told.vector_width)
    return config


def read_first_stage(config: Config, resolution: int = 0) -> tuple[dict, float, int, int]:
    """An AutoencoderKL's or VQModel's config.json.

    Args:
      resolution: of the images, in whose pixels attention is told; 0 takes the config's.

    Returns:
      (config.model, its scale factor, the resolution, the images' channels). A VQModel that says no factor has 1, as it was trained.

    Raises:
      UserError: another class, or a setting that our autoencoder has not.
    """
    kind = config.get("_class_name")
    if kind not in ("AutoencoderKL", "VQModel"):
        raise UserError(f"first stage: _class_name={str(kind):.80}: expected AutoencoderKL or VQModel")
    _check(config, STAGE_FIXED, kind)
    check_keys(config, STAGE, kind)
    widths = tuple(config.get("block_out_channels", (64,)))
    latent = config.get("latent_channels", 4 if kind == "AutoencoderKL" else 3)
    downs, ups = config.get("down_block_types", ("DownEncoderBlock2D",)), config.get("up_block_types", ("UpDecoderBlock2D",))
    attended = [str(name).startswith("Attn") for name in downs]
    wrong = ({*downs} - {"DownEncoderBlock2D", "AttnDownEncoderBlock2D"}) | ({*ups} - {"UpDecoderBlock2D", "AttnUpDecoderBlock2D"})
    if wrong or [str(name).startswith("Attn") for name in reversed(ups)] != attended or len(downs) != len(widths):
        raise UserError(f"{kind}: down_block_types={list(downs)}, up_block_types={list(ups)}: expected {len(widths)} of "
                        "DownEncoderBlock2D and UpDecoderBlock2D, or of Attn..., the same both ways")
    if any(width % widths[0] for width in widths) or config.get("vq_embed_dim") not in (None, latent):
        raise UserError(f"{kind}: block_out_channels={list(widths)}, vq_embed_dim={config.get('vq_embed_dim')}: expected multiples of "
                        f"the first width, and codes as wide as the latent, {latent}")
    side = resolution or _side(config.get("sample_size", 32)) or 256
    bottleneck = dict(name="kl")
    if kind == "VQModel":
        bottleneck = dict(name="vq", codes=config.get("num_vq_embeddings", 256), beta=0.25, form="legacy")
    section = dict(name="convolutional", width=widths[0], multipliers=tuple(width // widths[0] for width in widths),
                   blocks=config.get("layers_per_block", 1), attention=tuple(side // 2**i for i, on in enumerate(attended) if on),
                   middle_attention=config.get("mid_block_add_attention", True), latent_channels=latent, dropout=0.0, dtype="float32",
                   groups=config.get("norm_num_groups", 32), bottleneck=bottleneck)
    factor = config.get("scaling_factor")
    default = 0.18215 if kind == "AutoencoderKL" else 1.0
    return section, float(default if factor is None else factor), side, config.get("in_channels", 3)


def write_first_stage(section: Mapping[str, Any], resolution: int, channels: int, scale_factor: float) -> dict[str, Any]:
    """config.json of an autoencoder.

    Raises:
      UserError: one that diffusers has not.
    """
    widths = [section["width"] * multiplier for multiplier in section["multipliers"]]
    attended = [resolution // 2**i in section["attention"] for i in range(len(widths))]
    config = dict(in_channels=channels, out_channels=channels, block_out_channels=widths, layers_per_block=section["blocks"], act_fn="silu",
                  latent_channels=section["latent_channels"], norm_num_groups=one_group_number(section.get("groups", 0), widths),
                  sample_size=resolution,
                  scaling_factor=scale_factor, mid_block_add_attention=section["middle_attention"],
                  down_block_types=["AttnDownEncoderBlock2D" if on else "DownEncoderBlock2D" for on in attended],
                  up_block_types=["AttnUpDecoderBlock2D" if on else "UpDecoderBlock2D" for on in attended][::-1])
    bottleneck = section["bottleneck"]
    if bottleneck["name"] == "vq":
        return dict(_class_name="VQModel", num_vq_embeddings=bottleneck["codes"], vq_embed_dim=section["latent_channels"]) | config
    return dict(_class_name="AutoencoderKL") | config


def _check(config: Config, fixed: Mapping[str, tuple], where: str) -> None:
    for key, accepted in fixed.items():
        if config.get(key, accepted[0]) not in accepted:
            raise UserError(f"{where}: {key}={config[key]!r:.80} has no equal here; expected {' or '.join(map(repr, accepted))}")


def _one(values: Sequence):
    return values[0] if len(set(values)) == 1 else list(values)


def _side(sample_size) -> int:
    return max(sample_size) if isinstance(sample_size, list | tuple) else sample_size or 0
