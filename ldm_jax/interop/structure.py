"""What the tensors of a CompVis or Stability single file say of its architecture, by their names and shapes alone.

What they cannot say (how many heads, the schedule, what is predicted) is not here; see `recognise.py`.
"""

import dataclasses
import re
from collections.abc import Mapping

from ldm_jax.core.errors import UserError
from ldm_jax.interop.families import GROUPS, Heads

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class SeenNetwork:
    """A U-Net. levels: as in config.network, without heads; middle likewise; channels in and out; width of a projected vector and
    number of labels in a table that is added to the time embedding, of tokens: 0 for none.
    """

    levels: tuple[dict, ...]
    middle: dict
    channels: tuple[int, int]
    time_width: int
    scale_shift: bool
    vector: int
    labels: int
    tokens: int
    proj: str

    def section(self, heads: Heads) -> dict:
        """config.network."""
        def with_heads(spec, width):
            return spec | {"heads": heads.of(width) if spec["attention"] != "none" else 1}

        crossing = any(level["cross_only"] for level in self.levels)
        levels = tuple({key: value for key, value in with_heads(level, level["width"]).items() if crossing or key != "cross_only"}
                       for level in self.levels)
        return dict(name="unet", time_width=self.time_width, dropout=0.0, scale_shift=self.scale_shift,
                    vector="added" if self.labels else "projected", dtype="float32", groups=GROUPS, levels=levels,
                    middle=with_heads(self.middle, levels[-1]["width"]))


def count(shapes: Shapes, pattern: str) -> int:
    """How many numbers stand, from 0 on without a gap, where the pattern has "{}" in the beginning of a name."""
    before, after = map(re.escape, pattern.split("{}"))
    known = {int(found[1]) for name in shapes if (found := re.match(f"{before}(\\d+){after}", name))}
    return next(n for n in range(len(known) + 1) if n not in known)


def below(shapes: Shapes, prefix: str) -> Shapes:
    """The tensors of a part, without its prefix."""
    return {name[len(prefix):]: shape for name, shape in shapes.items() if name.startswith(prefix)}


def network(shapes: Shapes) -> SeenNetwork:
    """The U-Net of names without prefix.

    Raises:
      KeyError: a tensor that every one has.
    """
    levels, n = [], 0
    groups = _groups(shapes)
    for i, size in enumerate(reversed(groups)):
        first = n + 1
        n += size - 1
        width = shapes[f"input_blocks.{first}.0.out_layers.3.weight"][0]
        level = dict(width=width, blocks=size - 1) | _attention(shapes, f"input_blocks.{first}.1") | dict(down="none")
        if i < len(groups) - 1:
            n += 1
            level["down"] = "conv" if f"input_blocks.{n}.0.op.weight" in shapes else "residual"
        levels.append({key: level[key] for key in ("width", "blocks", "attention", "depth", "down", "cross_only")})
    tokens = next((shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")), 0)
    last = shapes["input_blocks.1.0.out_layers.3.weight"][0]
    middle = _attention(shapes, "middle_block.1")
    return SeenNetwork(
        tuple(levels), {key: middle[key] for key in ("attention", "depth")},
        (shapes["input_blocks.0.0.weight"][1], shapes["out.2.weight"][0]), shapes["time_embed.0.weight"][0],
        shapes["input_blocks.1.0.emb_layers.1.weight"][0] == 2 * last, shapes.get("label_emb.0.0.weight", (0, 0))[1],
        shapes.get("label_emb.weight", (0,))[0], tokens,
        "linear" if any(name.endswith("proj_in.weight") and len(shape) == 2 for name, shape in shapes.items()) else "conv")


def _groups(shapes: Shapes) -> list[int]:
    """How many output blocks each level has, coarsest first: a level ends with what doubles the side."""
    ends = ("1.conv.weight", "2.conv.weight", "1.in_layers.0.weight", "2.in_layers.0.weight")
    groups, size = [], 0
    for n in range(count(shapes, "output_blocks.{}.")):
        size += 1
        if any(f"output_blocks.{n}.{end}" in shapes for end in ends):
            groups.append(size)
            size = 0
    return [*groups, size] if size else groups


def _attention(shapes: Shapes, place: str) -> dict:
    if f"{place}.qkv.weight" in shapes:
        return dict(attention="plain", depth=1, cross_only=False)
    depth = count(shapes, f"{place}.transformer_blocks.{{}}.")
    if not depth:
        return dict(attention="none", depth=1, cross_only=False)
    block = f"{place}.transformer_blocks.0"
    tokens, width = shapes[f"{block}.attn2.to_k.weight"][1], shapes[f"{block}.attn1.to_q.weight"][1]
    return dict(attention="transformer", depth=depth, cross_only=shapes[f"{block}.attn1.to_k.weight"][1] == tokens != width)


def first_stage(shapes: Shapes, resolution: int) -> dict:
    """config.model of the autoencoder of names without prefix; resolution: of the images, in whose pixels attention is told.

    Raises:
      KeyError: a tensor that every one has.
      UserError: one that we have no word for.
    """
    width = shapes["encoder.conv_in.weight"][0]
    levels = count(shapes, "encoder.down.{}.")
    widths = [shapes[f"encoder.down.{i}.block.0.conv1.weight"][0] for i in range(levels)]
    latent, embedded = shapes["post_quant_conv.weight"][:2]
    if latent != embedded or any(w % width for w in widths):
        raise UserError(f"the first stage has levels of {', '.join(map(str, widths))} channels, a latent of {latent} and an embedding of "
                        f"{embedded}; expected multiples of {width}, and latent and embedding of equal width")
    codebook = shapes.get("quantize.embedding.weight")
    return dict(name="convolutional", width=width, multipliers=tuple(w // width for w in widths),
                blocks=count(shapes, "encoder.down.0.block.{}."),
                attention=tuple(resolution // 2**i for i in range(levels) if f"encoder.down.{i}.attn.0.norm.weight" in shapes),
                middle_attention="encoder.mid.attn_1.norm.weight" in shapes, latent_channels=latent, dropout=0.0, dtype="float32",
                groups=GROUPS, bottleneck=dict(name="vq", codes=codebook[0], beta=0.25, form="legacy") if codebook else dict(name="kl"))


def clip_of(shapes: Shapes, form: str) -> dict:
    """The numbers of a CLIP text encoder: "hf" names (text_model.encoder..., or flat) or "openclip" names, without prefix."""
    if form == "openclip":
        (vocabulary, width), length = shapes["token_embedding.weight"], shapes["positional_embedding"][0]
        layers, projection = count(shapes, "transformer.resblocks.{}."), shapes.get("text_projection", (0, 0))[1]
    else:
        root = "text_model." if "text_model.embeddings.token_embedding.weight" in shapes else ""
        (vocabulary, width), length = (shapes[f"{root}embeddings.token_embedding.weight"],
                                       shapes[f"{root}embeddings.position_embedding.weight"][0])
        layers, projection = count(shapes, f"{root}encoder.layers.{{}}."), shapes.get("text_projection.weight", (0,))[0]
    return dict(width=width, layers=layers, heads=max(1, width // 64), projection=projection, vocabulary=vocabulary, length=length,
                bos=vocabulary - 2, eos=vocabulary - 1, pad=0 if form == "openclip" else vocabulary - 1)


def bert_of(shapes: Shapes) -> dict:
    """The numbers of LDM's text encoder, of names without prefix."""
    (vocabulary, width), length = shapes["token_emb.weight"], shapes["pos_emb.emb.weight"][0]
    return dict(width=width, layers=count(shapes, "attn_layers.layers.{}.") // 2, vocabulary=vocabulary, length=length,
                logits="to_logits.weight" in shapes)
