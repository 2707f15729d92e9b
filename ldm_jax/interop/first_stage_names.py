"""The names of a first stage's tensors in the two published layouts.

"compvis": `first_stage_model.` of CompVis and Stability single files, and autoencoders' own. "diffusers": AutoencoderKL and VQModel,
whose decoder counts its levels from the coarsest and whose attention has linear layers. Names are given without prefix.
"""

from collections.abc import Iterator

from ldm_jax.core.errors import UserError
from ldm_jax.interop.layer_places import linear, norm
from ldm_jax.interop.places import CONV, LINEAR, POINTWISE, Place
from ldm_jax.models.autoencoder import Autoencoder
from ldm_jax.models.bottleneck import VectorQuantiser

NAMES = {  # of a part inside its parent; "{}" stands for a number
    "compvis": {"down": "down.{}", "up": "up.{}", "block": "block.{}", "attention": "attn.{}", "downsample": "downsample",
                "upsample": "upsample", "block_1": "mid.block_1", "attn_1": "mid.attn_1", "block_2": "mid.block_2",
                "norm_out": "norm_out", "nin_shortcut": "nin_shortcut",
                "norm": "norm", "q": "q", "k": "k", "v": "v", "proj_out": "proj_out"},
    "diffusers": {"down": "down_blocks.{}", "up": "up_blocks.{}", "block": "resnets.{}", "attention": "attentions.{}",
                  "downsample": "downsamplers.0", "upsample": "upsamplers.0", "block_1": "mid_block.resnets.0",
                  "attn_1": "mid_block.attentions.0", "block_2": "mid_block.resnets.1",
                  "norm_out": "conv_norm_out", "nin_shortcut": "conv_shortcut",
                  "norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"},
}
FORMS = tuple(NAMES)


def first_stage_places(module: Autoencoder, form: str) -> tuple[Place, ...]:
    """Every parameter of an autoencoder, KL or VQ, and the published tensors that hold it.

    Raises:
      UserError: an unknown form.
    """
    if form not in FORMS:
        raise UserError(f"form={form!r}: expected one of {', '.join(map(repr, FORMS))}")
    return (*_half(module, form, "encoder", "down", "downsample", module.blocks),
            *_half(module, form, "decoder", "up", "upsample", module.blocks + 1),
            *linear("quant_conv", "quant_conv", POINTWISE), *linear("post_quant_conv", "post_quant_conv", POINTWISE),
            *((Place("bottleneck/codebook", ("quantize.embedding.weight",)),) if isinstance(module.bottleneck, VectorQuantiser) else ()))


def _half(module: Autoencoder, form: str, half: str, way: str, resample: str, blocks: int) -> Iterator[Place]:
    """The encoder or the decoder."""
    names, last = NAMES[form], len(module.multipliers) - 1
    widths = [module.width * m for m in module.multipliers]
    before = [module.width, *widths[:-1]] if way == "down" else [*widths[1:], widths[-1]]  # of the map that a level is given
    for layer in ("conv_in", "conv_out"):
        yield from linear(f"{half}/{layer}", f"{half}.{layer}", CONV)
    yield from norm(f"{half}/norm_out", f"{half}.{names['norm_out']}")
    for i in range(last + 1):
        number = last - i if form == "diffusers" and way == "up" else i
        ours, theirs = f"{half}/{way}_{i}", f"{half}.{names[way].format(number)}"
        for j in range(blocks):
            yield from _block(f"{ours}/block_{j}", f"{theirs}.{names['block'].format(j)}", form, j == 0 and before[i] != widths[i])
            if module.resolution // 2**i in module.attention:
                yield from _attention(f"{ours}/attn_{j}", f"{theirs}.{names['attention'].format(j)}", form)
        if i < last if way == "down" else i > 0:
            yield from linear(f"{ours}/{resample}/conv", f"{theirs}.{names[resample]}.conv", CONV)
    for part in ("block_1", "block_2"):
        yield from _block(f"{half}/mid/{part}", f"{half}.{names[part]}", form, False)
    if module.middle_attention:
        yield from _attention(f"{half}/mid/attn_1", f"{half}.{names['attn_1']}", form)


def _block(ours: str, theirs: str, form: str, shortcut: bool) -> Iterator[Place]:
    for n in (1, 2):
        yield from norm(f"{ours}/norm{n}", f"{theirs}.norm{n}")
        yield from linear(f"{ours}/conv{n}", f"{theirs}.conv{n}", CONV)
    if shortcut:
        yield from linear(f"{ours}/nin_shortcut", f"{theirs}.{NAMES[form]['nin_shortcut']}", POINTWISE)


def _attention(ours: str, theirs: str, form: str) -> Iterator[Place]:
    yield from norm(f"{ours}/norm", f"{theirs}.{NAMES[form]['norm']}")
    for layer in ("q", "k", "v", "proj_out"):
        yield from linear(f"{ours}/{layer}", f"{theirs}.{NAMES[form][layer]}", POINTWISE if form == "compvis" else LINEAR)
