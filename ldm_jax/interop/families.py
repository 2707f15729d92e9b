"""The published architectures in the words of our configs, derived from the few numbers in which they differ.

Levels are named by their downsampling factor (1 is the finest), as the published configs name them.
"""

import dataclasses
from typing import Literal

GROUPS = 32  # of every norm in the published code


@dataclasses.dataclass(frozen=True)
class Heads:
    """How a family chooses its attention heads: always so many ("count"), or heads of so many channels ("width")."""

    by: Literal["count", "width"]
    number: int

    def of(self, channels: int) -> int:
        """The heads of an attention over so many channels; at least 1."""
        return self.number if self.by == "count" else max(1, channels // self.number)


@dataclasses.dataclass(frozen=True)
class Net:
    """A U-Net of the published code.

    Fields:
      width: of the first level; the others have `multipliers` times that. time_width: 4 times it.
      attended: the factors with attention; the middle always has one.
      attention: its kind.
      depth: transformer blocks: one number, or one a level, of which the middle takes the last.
      down: "conv" or "residual". vector: how a vector is told. cross_only: factors whose first attention, too, is to the tokens.
    """

    width: int
    multipliers: tuple[int, ...]
    attended: tuple[int, ...]
    attention: str
    heads: Heads
    depth: int | tuple[int, ...] = 1
    blocks: int = 2
    down: str = "conv"
    scale_shift: bool = False
    vector: str = "projected"
    cross_only: tuple[int, ...] = ()

    def section(self) -> dict:
        """config.network."""
        last = len(self.multipliers) - 1
        depths = (self.depth,) * (last + 1) if isinstance(self.depth, int) else self.depth
        levels = []
        for i, multiplier in enumerate(self.multipliers):
            width, attends = self.width * multiplier, 2**i in self.attended
            level = dict(width=width, blocks=self.blocks, attention=self.attention if attends else "none",
                         heads=self.heads.of(width) if attends else 1, depth=depths[i] if attends else 1,
                         down="none" if i == last else self.down)
            levels.append(level | ({"cross_only": 2**i in self.cross_only} if self.cross_only else {}))
        middle = dict(attention=self.attention, heads=self.heads.of(levels[-1]["width"]), depth=depths[-1])
        return dict(name="unet", time_width=4 * self.width, dropout=0.0, scale_shift=self.scale_shift, vector=self.vector,
                    dtype="float32", groups=GROUPS, levels=tuple(levels), middle=middle)


def first_stage(multipliers: tuple[int, ...], latent_channels: int, attention: tuple[int, ...] = (), codes: int = 0,
                middle_attention: bool = True) -> dict:
    """config.model of an autoencoder of width 128 with 2 blocks a level; codes: above 0, of a codebook instead of a Gaussian.

    attention: sides, in pixels of an image of 256, at which levels attend.
    """
    bottleneck = dict(name="vq", codes=codes, beta=0.25, form="legacy") if codes else dict(name="kl")
    return dict(name="convolutional", width=128, multipliers=multipliers, blocks=2, attention=attention,
                middle_attention=middle_attention, latent_channels=latent_channels, dropout=0.0, dtype="float32", groups=GROUPS,
                bottleneck=bottleneck)


def clip_text(spec: dict, skip: int = 0, final_norm: bool = True, **more) -> dict:
    """config.conditioner of a CLIP text encoder; skip and final_norm: which of its hidden states is told."""
    return dict(name="clip_text") | spec | dict(skip=skip, final_norm=final_norm, drop=0.1) | more


def bert_text(width: int, layers: int, **more) -> dict:
    """config.conditioner of LDM's own text encoder; bos, eos and pad are those of bert-base-uncased."""
    return dict(name="bert_text", width=width, layers=layers, heads=8, head_width=64, vocabulary=30522, length=77, bos=101, eos=102, pad=0,
                logits=True, drop=0.1) | more


def several(*parts: dict) -> dict:
    """config.conditioner of more than one."""
    return dict(name="several", parts=parts)


def scaled_linear(start: float, end: float) -> dict:
    """config.schedule of every published model: what CompVis calls "linear"."""
    return dict(name="scaled_linear", start=start, end=end, steps=1000)


def sampling(sampler: str, steps: int, guidance: float = 1.0, eta: float = 0.0) -> dict:
    """config.sampling on the times of the published scripts, to the schedule's lowest level; eta: of ddim, whose own is 0."""
    return dict(sampler=dict(name=sampler) | ({"eta": eta} if eta else {}), grid=dict(name="leading", end="lowest"), steps=steps,
                guidance=guidance, threshold=dict(name="none"))


def _clip(width: int, layers: int, heads: int, activation: str, projection: int, pad: int) -> dict:
    return dict(width=width, layers=layers, heads=heads, activation=activation, projection=projection, vocabulary=49408, length=77,
                bos=49406, eos=49407, pad=pad)


CLIP_L = _clip(768, 12, 12, "quick_gelu", 0, 49407)  # of OpenAI, ViT-L/14
OPEN_CLIP_H = _clip(1024, 24, 16, "gelu", 1024, 0)
OPEN_CLIP_BIG_G = _clip(1280, 32, 20, "gelu", 1280, 0)
