"""The names of a U-Net's tensors in the two published layouts.

"compvis": `model.diffusion_model.` of CompVis and Stability single files, named after the place in a list (input_blocks.4.0).
"diffusers": UNet2DConditionModel and UNet2DModel, named after level and block (down_blocks.1.resnets.0). Names are given without
prefix. The layouts differ in what holds plain attention's q, k, v: one tensor, head after head, or three.
"""

from collections.abc import Callable, Iterator, Mapping

from ldm_jax.core.errors import UserError
from ldm_jax.interop.layer_places import joined, linear, norm
from ldm_jax.interop.places import CONV, LINE, LINEAR, POINTWISE, Layout, Place
from ldm_jax.models.levels import LevelSpec, MiddleSpec
from ldm_jax.models.unet import UNet, middle_of

FORMS = ("compvis", "diffusers")
PROJECTIONS = {"conv": POINTWISE, "linear": LINEAR}
VECTORS = {"text_time": "add_embedding", "projection": "class_embedding"}  # where diffusers has what CompVis calls label_emb.0
LABEL_TABLE = {"compvis": "label_emb.weight", "diffusers": "class_embedding.weight"}  # [labels, time_width]: a conditioner's, not placed
ENDS = {  # the layers outside the levels
    "compvis": {"time_0": "time_embed.0", "time_2": "time_embed.2", "vector_0": "label_emb.0.0", "vector_2": "label_emb.0.2",
                "conv_in": "input_blocks.0.0", "norm_out": "out.0", "conv_out": "out.2"},
    "diffusers": {"time_0": "time_embedding.linear_1", "time_2": "time_embedding.linear_2", "conv_in": "conv_in",
                  "norm_out": "conv_norm_out", "conv_out": "conv_out"},
}
BLOCK = {  # the layers of a residual block
    "compvis": {"norm1": "in_layers.0", "conv1": "in_layers.2", "time": "emb_layers.1", "norm2": "out_layers.0",
                "conv2": "out_layers.3", "skip": "skip_connection"},
    "diffusers": {"norm1": "norm1", "conv1": "conv1", "time": "time_emb_proj", "norm2": "norm2", "conv2": "conv2",
                  "skip": "conv_shortcut"},
}


def unet_places(network: UNet, form: str, proj: str = "conv", vector: str = "") -> tuple[Place, ...]:
    """Every parameter of a network and the published tensors that hold it. `unet_options` reads the last two off a file.

    Args:
      form: "compvis" or "diffusers".
      proj: whether transformers' proj_in and proj_out are stored as 1x1 convolutions, "conv" (LDM, SD 1), or as "linear" layers
        (SD 2, SDXL).
      vector: "" where no vector is projected; otherwise where diffusers holds its two layers, "text_time" (add_embedding, SDXL) or
        "projection" (class_embedding, unCLIP): CompVis has one name for both.

    Raises:
      UserError: a network that the form cannot hold, or an unknown option.
    """
    for name, value, known in (("form", form, FORMS), ("proj", proj, PROJECTIONS), ("vector", vector, ("", *VECTORS))):
        if value not in known:
            raise UserError(f"{name}={value!r}: expected one of {', '.join(map(repr, known))}")
    walk = {"compvis": _compvis, "diffusers": _diffusers}[form]
    return (*_ends(form, vector), *walk(network, PROJECTIONS[proj]))


def unet_options(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """`proj` and `vector` of a file in either form, from its tensors' names (without prefix) and shapes."""
    linears = any(name.endswith(".proj_in.weight") and len(shape) == 2 for name, shape in shapes.items())
    vector = next((option for option, name in VECTORS.items() if f"{name}.linear_1.weight" in shapes), "")
    return {"proj": "linear" if linears else "conv", "vector": "text_time" if "label_emb.0.0.weight" in shapes else vector}


def _ends(form: str, vector: str) -> Iterator[Place]:
    names = dict(ENDS[form])
    if vector and form == "diffusers":
        names |= {"vector_0": f"{VECTORS[vector]}.linear_1", "vector_2": f"{VECTORS[vector]}.linear_2"}
    for ours in ("time_0", "time_2", *(("vector_0", "vector_2") if vector else ())):
        yield from linear(ours, names[ours])
    for ours in ("conv_in", "conv_out"):
        yield from linear(ours, names[ours], CONV)
    yield from norm("norm_out", names["norm_out"])


def _block(ours: str, theirs: str, form: str, skip: bool) -> Iterator[Place]:
    """A residual block; skip: whether its width changes."""
    names = {layer: f"{theirs}.{name}" for layer, name in BLOCK[form].items()}
    yield from norm(f"{ours}/norm1", names["norm1"])
    yield from linear(f"{ours}/conv1", names["conv1"], CONV)
    yield from linear(f"{ours}/time", names["time"])
    yield from norm(f"{ours}/norm2", names["norm2"])
    yield from linear(f"{ours}/conv2", names["conv2"], CONV)
    if skip:
        yield from linear(f"{ours}/skip", names["skip"], POINTWISE)


def _attention(ours: str, theirs: str, form: str, spec: LevelSpec | MiddleSpec, proj: Layout) -> Iterator[Place]:
    if spec.attention == "transformer":
        yield from _transformer(ours, theirs, spec.depth, proj)
    elif spec.attention == "plain" and form == "compvis":
        yield from norm(f"{ours}/norm", f"{theirs}.norm")
        yield Place(f"{ours}/qkv/kernel", (f"{theirs}.qkv.weight",), Layout(axes=LINE.axes, ones=LINE.ones, heads=spec.heads))
        yield Place(f"{ours}/qkv/bias", (f"{theirs}.qkv.bias",), Layout(heads=spec.heads))
        yield from linear(f"{ours}/proj_out", f"{theirs}.proj_out", LINE)
    elif spec.attention == "plain":
        yield from norm(f"{ours}/norm", f"{theirs}.group_norm")
        yield from joined(f"{ours}/qkv", tuple(f"{theirs}.to_{part}" for part in "qkv"))
        yield from linear(f"{ours}/proj_out", f"{theirs}.to_out.0")


def _transformer(ours: str, theirs: str, depth: int, proj: Layout) -> Iterator[Place]:
    """A spatial transformer: the two forms have the same names."""
    yield from norm(f"{ours}/norm", f"{theirs}.norm")
    yield from linear(f"{ours}/proj_in", f"{theirs}.proj_in", proj)
    for k in range(depth):
        our, their = f"{ours}/block_{k}", f"{theirs}.transformer_blocks.{k}"
        for n in (1, 2, 3):
            yield from norm(f"{our}/norm{n}", f"{their}.norm{n}")
        for part in ("attn1", "attn2"):
            for layer in ("to_q", "to_k", "to_v"):
                yield from linear(f"{our}/{part}/{layer}", f"{their}.{part}.{layer}", bias=False)
            yield from linear(f"{our}/{part}/to_out", f"{their}.{part}.to_out.0")
        yield from linear(f"{our}/ff/proj", f"{their}.ff.net.0.proj")
        yield from linear(f"{our}/ff/out", f"{their}.ff.net.2")
    yield from linear(f"{ours}/proj_out", f"{theirs}.proj_out", proj)


def _skips(network: UNet) -> Callable[[str], bool]:
    """Whether the residual block at a path of ours changes the width."""
    h = network.levels[0].width
    changes, kept = set(), [h]
    for i, level in enumerate(network.levels):
        changes |= {f"down_{i}/block_0"} if h != level.width else set()
        h = level.width
        kept += [h] * (level.blocks + (level.down != "none"))
    for i, level in reversed(list(enumerate(network.levels))):
        for j in range(level.blocks + 1):
            changes |= {f"up_{i}/block_{j}"} if h + kept.pop() != level.width else set()
            h = level.width
    return changes.__contains__


def _compvis(network: UNet, proj: Layout) -> Iterator[Place]:
    middle, skip = middle_of(network.levels, network.middle), _skips(network)
    if middle.attention == "none":
        raise UserError("middle attention='none': the CompVis layout always has attention in the middle; export in the layout of diffusers")
    n = 0
    for i, level in enumerate(network.levels):
        for j in range(level.blocks):
            n += 1
            yield from _block(f"down_{i}/block_{j}", f"input_blocks.{n}.0", "compvis", skip(f"down_{i}/block_{j}"))
            yield from _attention(f"down_{i}/attention_{j}", f"input_blocks.{n}.1", "compvis", level, proj)
        if level.down != "none":
            n += 1
            yield from _resample(f"down_{i}/downsample", f"input_blocks.{n}.0", "compvis", level.down, "op")
    yield from _block("middle/block_1", "middle_block.0", "compvis", False)
    yield from _attention("middle/attention_1", "middle_block.1", "compvis", middle, proj)
    yield from _block("middle/block_2", "middle_block.2", "compvis", False)
    n = -1
    for i, level in reversed(list(enumerate(network.levels))):
        for j in range(level.blocks + 1):
            n += 1
            yield from _block(f"up_{i}/block_{j}", f"output_blocks.{n}.0", "compvis", skip(f"up_{i}/block_{j}"))
            yield from _attention(f"up_{i}/attention_{j}", f"output_blocks.{n}.1", "compvis", level, proj)
        if i:
            last = 1 if level.attention == "none" else 2
            yield from _resample(f"up_{i}/upsample", f"output_blocks.{n}.{last}", "compvis", network.levels[i - 1].down, "conv")


def _diffusers(network: UNet, proj: Layout) -> Iterator[Place]:
    middle, skip, last = middle_of(network.levels, network.middle), _skips(network), len(network.levels) - 1
    for i, level in enumerate(network.levels):
        for way, theirs, blocks in (("down", f"down_blocks.{i}", level.blocks), ("up", f"up_blocks.{last - i}", level.blocks + 1)):
            for j in range(blocks):
                yield from _block(f"{way}_{i}/block_{j}", f"{theirs}.resnets.{j}", "diffusers", skip(f"{way}_{i}/block_{j}"))
                yield from _attention(f"{way}_{i}/attention_{j}", f"{theirs}.attentions.{j}", "diffusers", level, proj)
        if i < last:
            yield from _resample(f"down_{i}/downsample", f"down_blocks.{i}.downsamplers.0", "diffusers", level.down, "conv")
        if i:
            up = network.levels[i - 1].down
            yield from _resample(f"up_{i}/upsample", f"up_blocks.{last - i}.upsamplers.0", "diffusers", up, "conv")
    yield from _block("middle/block_1", "mid_block.resnets.0", "diffusers", False)
    yield from _attention("middle/attention_1", "mid_block.attentions.0", "diffusers", middle, proj)
    yield from _block("middle/block_2", "mid_block.resnets.1", "diffusers", False)


def _resample(ours: str, theirs: str, form: str, how: str, conv: str) -> Iterator[Place]:
    """What halves or doubles: a convolution, called `conv` there, or a residual block."""
    return _block(ours, theirs, form, False) if how == "residual" else iter(linear(f"{ours}/conv", f"{theirs}.{conv}", CONV))
