"""The U-Net of latent diffusion (Dhariwal and Nichol 2021, with the transformers of Rombach et al. 2022).

Parameters: time_{0,2}, vector_{0,2} (a projected vector), conv_in, down_{i}/{block_{j}, attention_{j}, downsample},
middle/{block_1, attention_1, block_2}, up_{i}/{block_{j}, attention_{j}, upsample}, norm_out, conv_out. Level 0 has the
finest resolution. A resampling is {conv} or, where the level says "residual", a residual block's parameters.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_jax.core.choose import nearest
from ldm_jax.core.errors import UserError
from ldm_jax.core.shapes import expect
from ldm_jax.core.types import Condition, struct
from ldm_jax.models.levels import BlockSpec, LevelSpec, MiddleSpec, check_attention, check_levels, shared_groups
from ldm_jax.nn.attention import PlainAttention
from ldm_jax.nn.layers import Conv, Dense, GroupNorm, compute_dtype
from ldm_jax.nn.resample import UNET_PADDING, Downsample, Upsample
from ldm_jax.nn.residual import TimeResBlock
from ldm_jax.nn.transformer import SpatialTransformer
from ldm_jax.ops.embedding import sinusoidal
from ldm_jax.ops.resample import expect_divisible

VECTORS = ("projected", "added")


@struct
class Told:
    """What every block is told: time [B, D] float32 (the vector is in it), tokens [B, T, E] and mask bool [B, T], or None."""

    time: jax.Array
    tokens: jax.Array | None
    mask: jax.Array | None


def _block(spec: BlockSpec, width: int, name: str, resample: str = "none") -> TimeResBlock:
    return TimeResBlock(width, resample, spec.scale_shift, spec.dropout, spec.dtype, spec.groups, name=name)


def _attend(h, told: Told, spec: LevelSpec | MiddleSpec, blocks: BlockSpec, name: str, identity: bool):
    """The attention that a spec names, made in the calling module; `identity`: see BlockSpec."""
    if spec.attention == "plain":
        return PlainAttention(spec.heads, blocks.dtype, identity, blocks.groups, name=name)(h)
    if spec.attention == "transformer":
        return SpatialTransformer(spec.heads, spec.depth, blocks.dtype, identity, spec.cross_only, blocks.groups,
                                  name=name)(h, told.tokens, told.mask)
    return h


def embedded(time, width: int):
    """The time embedding [B, width] float32 of times [B]: sinusoidal, linear, SiLU, linear, made in the calling module."""
    hidden = Dense(width, name="time_0")(sinusoidal(time, width // 4))
    return Dense(width, name="time_2")(nn.silu(hidden))


class DownLevel(nn.Module):
    """h -> (h at the next level's resolution, the maps that the way up reads, finest first)."""

    level: LevelSpec
    spec: BlockSpec

    @nn.compact
    def __call__(self, h, told: Told, train: bool):
        level, spec, kept = self.level, self.spec, []
        for j in range(level.blocks):
            h = _block(spec, level.width, f"block_{j}")(h, told.time, train)
            h = _attend(h, told, level, spec, f"attention_{j}", self.name in spec.identity)
            kept.append(h)
        if level.down == "conv":
            h = Downsample(UNET_PADDING, spec.dtype, name="downsample")(h)
        elif level.down == "residual":
            h = _block(spec, level.width, "downsample", "down")(h, told.time, train)
        return h, kept + ([] if level.down == "none" else [h])


class UpLevel(nn.Module):
    """Reads `kept`, one map a block, last first; `up` is the `down` of the level above, "none" at level 0."""

    level: LevelSpec
    up: str
    spec: BlockSpec

    @nn.compact
    def __call__(self, h, kept, told: Told, train: bool):
        level, spec = self.level, self.spec
        for j, skip in enumerate(reversed(kept)):
            h = _block(spec, level.width, f"block_{j}")(jnp.concatenate([h, skip], axis=-1), told.time, train)
            h = _attend(h, told, level, spec, f"attention_{j}", self.name in spec.identity)
        if self.up == "conv":
            h = Upsample(spec.dtype, name="upsample")(h)
        elif self.up == "residual":
            h = _block(spec, level.width, "upsample", "up")(h, told.time, train)
        return h


class Middle(nn.Module):
    """Block, attention, block at the coarsest resolution."""

    middle: MiddleSpec
    spec: BlockSpec

    @nn.compact
    def __call__(self, h, told: Told, train: bool):
        h = _block(self.spec, h.shape[-1], "block_1")(h, told.time, train)
        h = _attend(h, told, self.middle, self.spec, "attention_1", self.name in self.spec.identity)
        return _block(self.spec, h.shape[-1], "block_2")(h, told.time, train)


def middle_of(levels: tuple[LevelSpec, ...], middle: MiddleSpec | None) -> MiddleSpec:
    """The middle's attention: as given, or as the last level's."""
    return middle or MiddleSpec(levels[-1].attention, levels[-1].heads, levels[-1].depth, levels[-1].cross_only)


def way_down(noisy, levels: tuple[LevelSpec, ...], middle: MiddleSpec, spec: BlockSpec, told: Told, train: bool):
    """noisy [B, h, w, c] -> (h [B, h', w', C] after the middle, the maps that a way up reads): conv_in, down_{i} and middle,
    made in the calling module."""
    h = Conv(levels[0].width, dtype=spec.dtype, name="conv_in")(noisy)
    kept = [h]
    for i, level in enumerate(levels):
        h, more = DownLevel(level, spec, name=f"down_{i}")(h, told, train)
        kept = kept + more
    return Middle(middle, spec, name="middle")(h, told, train), kept


def check_way_down(levels: tuple[LevelSpec, ...], middle: MiddleSpec | None, time_width: int, dropout: float, dtype: str) -> None:
    """Raises UserError: specs that do not fit together, a time width that is no multiple of 8, a dropout that is no rate."""
    check_levels(levels)
    check_attention(middle_of(levels, middle), levels[-1].width, "middle")
    compute_dtype(dtype)
    if time_width < 8 or time_width % 8:
        raise UserError(f"time_width={time_width}: expected a width that is a multiple of 8")
    if not 0.0 <= dropout < 1.0:
        raise UserError(f"dropout={dropout}: expected a rate from 0 to below 1")


class UNet(nn.Module):
    """Noisy latents, a time and a condition -> the network's output, which a prediction kind gives its meaning.

    Fields:
      levels: one spec a resolution, finest first; the output halves the side len(levels) - 1 times and doubles it back.
      out_channels: c of the output.
      time_width: width of the time embedding, 4 times its sinusoidal part (the published nets: 4 times the first width).
      middle: the middle's attention; None takes the last level's.
      dropout: rate in the residual blocks, in training.
      scale_shift: whether time scales and shifts the blocks' second norm, instead of being added before it.
      vector: how a condition's vector joins the time embedding: "projected" by linear, SiLU, linear, or "added" as it is
        (it then has time_width features).
      dtype: what the blocks compute in; the time embedding, norms, softmax and the output are float32.
      groups: of every GroupNorm; -1 for one number that all widths share; 0 gives each width its own, which the layouts of
        others cannot say.

    Raises:
      UserError: specs that do not fit together.
    """

    levels: tuple[LevelSpec, ...]
    out_channels: int
    time_width: int
    middle: MiddleSpec | None = None
    dropout: float = 0.0
    scale_shift: bool = False
    vector: str = "projected"
    dtype: str = "float32"
    groups: int = 0

    def __post_init__(self):
        check_way_down(self.levels, self.middle, self.time_width, self.dropout, self.dtype)
        shared_groups(self.groups, [level.width for level in self.levels])
        if self.out_channels < 1:
            raise UserError(f"out_channels={self.out_channels}: expected at least 1")
        if self.vector not in VECTORS:
            raise UserError(f"vector={self.vector!r}: expected one of {', '.join(VECTORS)}")
        super().__post_init__()

    @property
    def factor(self) -> int:
        """The side of a latent must be a multiple of this."""
        return 2 ** (len(self.levels) - 1)

    @property
    def norm_groups(self) -> int:
        """GroupNorm's groups, as the blocks are told them."""
        return shared_groups(self.groups, [level.width for level in self.levels])

    @property
    def reads_tokens(self) -> bool:
        return any(spec.attention == "transformer" for spec in (*self.levels, middle_of(self.levels, self.middle)))

    @property
    def places(self) -> tuple[str, ...]:
        """The parts that have self-attention, by the names that `identity` takes."""
        def attends_to_itself(spec):
            return spec.attention != "none" and not spec.cross_only

        levels = [i for i, spec in enumerate(self.levels) if attends_to_itself(spec)]
        middle = ("middle",) if attends_to_itself(middle_of(self.levels, self.middle)) else ()
        return (*(f"down_{i}" for i in levels), *middle, *(f"up_{i}" for i in levels))

    @nn.compact
    def __call__(self, noisy, time, condition: Condition, train: bool = False, identity: tuple[str, ...] = ()):
        """noisy [B, h, w, c], time [B], any numbers -> [B, h, w, out_channels] float32.

        condition.image [B, h, w, k] is concatenated to the channels, tokens are attended to, the vector joins the time.
        identity: of `places`, where each position attends to itself alone, for perturbed-attention guidance; static.

        Raises:
          UserError: shapes that do not fit (the nearest sizes that do are named), tokens where no transformer reads
            them, or none where one does, or a place without self-attention.
        """
        self._check(noisy, time, condition)
        for place in set(identity) - set(self.places):
            raise UserError(f"identity={place!r}: this network has self-attention in {nearest(place, self.places) or 'no place'}")
        spec = BlockSpec(self.dropout, self.scale_shift, self.dtype, tuple(identity), self.norm_groups)
        told = Told(self._time(time, condition.vector), condition.tokens, condition.token_mask)
        if condition.image is not None:
            noisy = jnp.concatenate([noisy, condition.image.astype(noisy.dtype)], axis=-1)
        h, kept = way_down(noisy, self.levels, middle_of(self.levels, self.middle), spec, told, train)
        for i, level in reversed(list(enumerate(self.levels))):
            kept, read = kept[:-level.blocks - 1], kept[-level.blocks - 1:]
            h = UpLevel(level, self.levels[i - 1].down if i else "none", spec, name=f"up_{i}")(h, read, told, train)
        h = nn.silu(GroupNorm(1e-5, self.dtype, self.norm_groups, name="norm_out")(h))
        return Conv(self.out_channels, zero=True, dtype=self.dtype, name="conv_out")(h).astype(jnp.float32)

    def _time(self, time, vector):
        """The time embedding, with the vector [B, D] in it: [B, time_width] float32."""
        of_time = embedded(time, self.time_width)
        if vector is None:
            return of_time
        if self.vector == "projected":
            vector = Dense(self.time_width, name="vector_0")(vector)
            vector = Dense(self.time_width, name="vector_2")(nn.silu(vector))
        return of_time + vector.astype(jnp.float32)

    def _check(self, noisy, time, condition: Condition) -> None:
        batch = expect("noisy", noisy, "B h w c")["B"]
        expect("time", time, "B", B=batch)
        expect_divisible("noisy", noisy, self.factor)
        if condition.image is not None:
            expect("condition.image", condition.image, "B h w k", B=batch, h=noisy.shape[1], w=noisy.shape[2])
        if condition.vector is not None:
            expect("condition.vector", condition.vector, "B D", B=batch, **({"D": self.time_width} if self.vector == "added" else {}))
        if (condition.tokens is not None) != self.reads_tokens:
            missing = "none given, but attention='transformer' reads them: use a conditioner that gives tokens, or attention='plain'"
            unread = "given, but no level reads them: use attention='transformer', or a conditioner that gives a vector"
            raise UserError(f"condition.tokens: {missing if self.reads_tokens else unread}")
        if condition.tokens is not None:
            tokens = expect("condition.tokens", condition.tokens, "B T D", B=batch)["T"]
            if condition.token_mask is not None:
                expect("condition.token_mask", condition.token_mask, "B T", B=batch, T=tokens)
