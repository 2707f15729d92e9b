"""A classifier of noisy latents: the way down of the U-Net, pooled (Dhariwal and Nichol 2021, section 4.1 and appendix H).

Its gradient with respect to the latent guides samples. Parameters: time_{0,2}, conv_in, down_{i}/{block_{j}, attention_{j},
downsample}, middle/{block_1, attention_1, block_2} as in the U-Net, norm_out, and pool/{positions, qkv, proj_out} for attention
pooling, or head/{kernel, bias} for the mean.
"""

import flax.linen as nn
import jax.numpy as jnp

from ldm_jax.core.errors import UserError
from ldm_jax.core.shapes import expect
from ldm_jax.models.levels import BlockSpec, LevelSpec, MiddleSpec, shared_groups
from ldm_jax.models.unet import Told, check_way_down, embedded, middle_of, way_down
from ldm_jax.nn.attention import AttentionPool
from ldm_jax.nn.layers import Dense, GroupNorm
from ldm_jax.ops.resample import expect_divisible

POOLINGS = ("attention", "mean")


class NoisyClassifier(nn.Module):
    """Noisy latents and a time -> one logit a class.

    Fields:
      levels: one spec a resolution, finest first; attention is "none" or "plain", for it is told nothing but the time.
      classes: how many there are.
      time_width: width of the time embedding, 4 times its sinusoidal part.
      pooling: "attention" (of the mean to all positions, with learned positions: for one size of latent), or "mean" over the
        positions and a linear map that starts at zero.
      pool_heads: heads of attention pooling; they divide the last level's width. Not read by "mean".
      middle: the middle's attention; None takes the last level's.
      dropout: rate in the residual blocks, in training.
      scale_shift: whether time scales and shifts the blocks' second norm, instead of being added before it.
      dtype: what the blocks compute in; the time embedding, norms, softmax and the logits are float32.
      groups: of every GroupNorm, see UNet.

    Raises:
      UserError: specs that do not fit together.
    """

    levels: tuple[LevelSpec, ...]
    classes: int
    time_width: int
    pooling: str = "attention"
    pool_heads: int = 1
    middle: MiddleSpec | None = None
    dropout: float = 0.0
    scale_shift: bool = False
    dtype: str = "float32"
    groups: int = 0

    def __post_init__(self):
        check_way_down(self.levels, self.middle, self.time_width, self.dropout, self.dtype)
        width = self.levels[-1].width
        if self.classes < 2:
            raise UserError(f"classes={self.classes}: a classifier needs at least 2; does the data source have labels?")
        if self.pooling not in POOLINGS:
            raise UserError(f"pooling={self.pooling!r}: expected one of {', '.join(POOLINGS)}")
        if self.pool_heads < 1 or width % self.pool_heads:
            raise UserError(f"pool_heads={self.pool_heads}: expected a number that divides the last level's width, {width}")
        if any(spec.attention == "transformer" for spec in (*self.levels, middle_of(self.levels, self.middle))):
            raise UserError("attention='transformer' reads tokens, and a classifier is told none: expected 'plain' or 'none'")
        super().__post_init__()

    @property
    def factor(self) -> int:
        """The side of a latent must be a multiple of this."""
        return 2 ** (len(self.levels) - 1)

    @nn.compact
    def __call__(self, noisy, time, train: bool = False):
        """noisy [B, h, w, c], time [B], any numbers -> logits [B, classes] float32.

        Raises:
          UserError: shapes that do not fit.
        """
        batch = expect("noisy", noisy, "B h w c")["B"]
        expect("time", time, "B", B=batch)
        expect_divisible("noisy", noisy, self.factor)
        groups = shared_groups(self.groups, [level.width for level in self.levels])
        spec = BlockSpec(self.dropout, self.scale_shift, self.dtype, groups=groups)
        told = Told(embedded(time, self.time_width), None, None)
        h, _ = way_down(noisy, self.levels, middle_of(self.levels, self.middle), spec, told, train)
        h = nn.silu(GroupNorm(1e-5, self.dtype, groups, name="norm_out")(h))
        if self.pooling == "attention":
            return AttentionPool(self.classes, self.pool_heads, self.dtype, name="pool")(h).astype(jnp.float32)
        return Dense(self.classes, zero=True, name="head")(jnp.mean(h.astype(jnp.float32), axis=(1, 2)))
