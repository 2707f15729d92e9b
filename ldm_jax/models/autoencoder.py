"""The first stage whole: encoder, bottleneck, decoder.

Parameters: encoder/..., quant_conv, bottleneck/codebook (VQ only), post_quant_conv, decoder/...
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_jax.core.errors import UserError
from ldm_jax.core.shapes import expect
from ldm_jax.core.types import struct
from ldm_jax.models.bottleneck import Bottled
from ldm_jax.models.decoder import Decoder
from ldm_jax.models.encoder import Encoder, Trunk
from ldm_jax.models.levels import shared_groups
from ldm_jax.nn.layers import Dense
from ldm_jax.ops.resample import expect_divisible

LAST_KERNEL = ("decoder", "conv_out", "kernel")


@struct
class Reconstruction:
    """image [B, H, W, C] float32, not clamped; features [B, H, W, D], the last convolution's input; what the bottleneck says."""

    image: jax.Array
    features: jax.Array
    bottleneck: Bottled


class Autoencoder(nn.Module):
    """Images [B, H, W, C] in [-1, 1] to raw latents [B, H/f, W/f, c] and back, f = 2^(len(multipliers) - 1).

    Fields: `attention` holds the resolutions, in pixels of an image of side `resolution`, at which blocks are followed by
    attention; other image sizes keep attention at the same levels. `groups` is that of every GroupNorm (see
    `levels.shared_groups`). `bottleneck` is one of BOTTLENECKS. Latents are raw:
    `models.units` brings them to unit variance.

    Raises:
      UserError: a resolution that f does not divide, or an attention resolution that no level has.
    """

    channels: int
    resolution: int
    width: int
    multipliers: tuple[int, ...]
    blocks: int
    latent_channels: int
    bottleneck: Any
    attention: tuple[int, ...] = ()
    middle_attention: bool = True
    dropout: float = 0.0
    dtype: str = "float32"
    groups: int = 0

    def __post_init__(self):
        if self.channels < 1 or self.latent_channels < 1:
            raise UserError(f"channels={self.channels}, latent_channels={self.latent_channels}: expected numbers of 1 and above")
        self._trunk()
        super().__post_init__()

    def _trunk(self) -> Trunk:
        if self.resolution < 1 or self.resolution % self.factor:
            below = max(1, self.resolution // self.factor) * self.factor
            raise UserError(f"resolution={self.resolution}: expected a multiple of {self.factor}, the factor f of "
                            f"{len(self.multipliers)} multipliers; nearest: {below}, {below + self.factor}")
        sides = [self.resolution // 2**i for i in range(len(self.multipliers))]
        unknown = [side for side in self.attention if side not in sides]
        if unknown:
            raise UserError(f"attention={self.attention}: no level has the resolution {unknown[0]}; "
                            f"the levels have {', '.join(map(str, sides))}")
        levels = tuple(side in self.attention for side in sides)
        groups = shared_groups(self.groups, [self.width * m for m in (1, *self.multipliers)])
        return Trunk(self.width, tuple(self.multipliers), self.blocks, levels, self.middle_attention, self.dropout, self.dtype,
                     groups)

    @property
    def factor(self) -> int:
        """f: image pixels a latent position, on a side."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of the latent of an image of side `resolution`."""
        return (self.resolution // self.factor,) * 2 + (self.latent_channels,)

    def setup(self):
        trunk, packed = self._trunk(), self.bottleneck.channels(self.latent_channels)
        self.encoder = Encoder(trunk, packed)
        self.quant_conv = Dense(packed, dtype=self.dtype)
        self.post_quant_conv = Dense(self.latent_channels, dtype=self.dtype)
        self.decoder = Decoder(trunk, self.channels)

    def _packed(self, image, train: bool = False):
        expect("image", image, "B H W C", C=self.channels)
        expect_divisible("image", image, self.factor)
        return self.quant_conv(self.encoder(image, train)).astype(jnp.float32)

    def encode(self, image, keys=None):
        """Images -> raw latents [B, h, w, c] float32. KL: the mean, or a draw with keys [B]; VQ: before quantisation."""
        return self.bottleneck.latent(self._packed(image), keys)

    def moments(self, image):
        """Images -> {name: [B, h, w, c] float32}, what the raw latents are drawn from; see `bottleneck`."""
        return self.bottleneck.moments(self._packed(image))

    def draw(self, moments, keys=None):
        """What `moments` gave -> raw latents [B, h, w, c], as `encode` gives them for the same keys. It needs no parameters."""
        return self.bottleneck.draw(moments, keys)

    def decode(self, latent):
        """Raw latents [B, h, w, c] -> images [B, f h, f w, C] float32, not clamped. VQ quantises first."""
        expect("latent", latent, "B h w c", c=self.latent_channels)
        return self.decoder(self.post_quant_conv(self.bottleneck.absorb(latent)))

    def reconstruct(self, image, keys=None, train: bool = False) -> Reconstruction:
        """Encodes and decodes, with all that a loss needs. keys [B]: per example, for the KL draw; None takes the mean."""
        latent, bottled = self.bottleneck(self._packed(image, train), keys)
        features = self.decoder.features(self.post_quant_conv(latent), train)
        return Reconstruction(self.decoder.last(features), features, bottled)

    def last_layer(self, features):
        """The decoder's last convolution alone: features -> image [B, H, W, C] float32. Its kernel stands at LAST_KERNEL."""
        return self.decoder.last(features)

    def __call__(self, image, keys=None):
        return self.reconstruct(image, keys)


class Identity(nn.Module):
    """No first stage: the latent is the image, for diffusion in pixels. f = 1, no parameters, the doors of `Autoencoder`."""

    channels: int
    resolution: int

    @property
    def factor(self) -> int:
        return 1

    @property
    def latent_channels(self) -> int:
        return self.channels

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.resolution, self.resolution, self.channels

    def encode(self, image, keys=None):
        expect("image", image, "B H W C", C=self.channels)
        return image.astype(jnp.float32)

    def decode(self, latent):
        expect("latent", latent, "B h w c", c=self.channels)
        return latent.astype(jnp.float32)

    def reconstruct(self, image, keys=None, train: bool = False) -> Reconstruction:
        image = self.encode(image)
        return Reconstruction(image, image, Bottled(latent=image, kl=jnp.zeros(image.shape[:1], jnp.float32)))

    def last_layer(self, features):
        return features.astype(jnp.float32)

    def __call__(self, image, keys=None):
        return self.reconstruct(image, keys)


AUTOENCODERS = {"convolutional": Autoencoder, "identity": Identity}
