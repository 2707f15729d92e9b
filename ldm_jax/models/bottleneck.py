"""What stands between encoder and decoder: a Gaussian with a KL penalty, or a codebook.

Both are linen modules with one door: `channels(c)`, what the encoder must give for c latent channels; `moments(packed)`, all
that is to be known of the raw latents, by the names of batch fields, so that it may be kept; `draw(moments, keys)`, the raw
latent that the diffusion side sees; `latent(packed, keys)`, the two in one; `absorb(latent)`, what the decoder is given for a
latent; and the call, (packed, keys) -> (decoder's input, Bottled), for training. `common_unit` says whether a latent may be
rescaled channel by channel (KL) or only as a whole (VQ: a scale per channel changes which code is nearest).
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_jax.core.errors import UserError
from ldm_jax.core.types import struct
from ldm_jax.ops import gaussian

FORMS = ("corrected", "legacy")
KL_MOMENTS, PLAIN_LATENT = ("latent_mean", "latent_log_variance"), "latent"
MOMENTS = (*KL_MOMENTS, PLAIN_LATENT)  # the batch fields that stand in the place of images


@struct
class Bottled:
    """What a bottleneck says of one batch; parts that it has not are None.

    latent [B, h, w, c] float32: the raw latent (KL: the draw or the mean; VQ: before quantisation).
    kl [B]: nats, summed over h, w, c.
    codebook, commitment [B]: squared distances, mean over h, w, c, with the weights of the form in them already.
    indices [B, h, w] int32: the codes that were chosen.
    """

    latent: jax.Array
    kl: jax.Array | None = None
    codebook: jax.Array | None = None
    commitment: jax.Array | None = None
    indices: jax.Array | None = None


class KL(nn.Module):
    """A diagonal Gaussian per position (Kingma and Welling 2014); log-variance clamped to [-30, 20]. No parameters."""

    common_unit: ClassVar[bool] = False

    def channels(self, latent_channels: int) -> int:
        return 2 * latent_channels

    def moments(self, packed):
        """[B, h, w, 2c] -> {"latent_mean", "latent_log_variance"}: float32 [B, h, w, c] each."""
        return dict(zip(KL_MOMENTS, gaussian.moments(packed)))

    def draw(self, moments, keys=None):
        """Moments -> [B, h, w, c] float32: a draw from per-example keys [B], or the mean where keys is None."""
        mean, log_variance = (moments[name] for name in KL_MOMENTS)
        return mean if keys is None else gaussian.draw(mean, log_variance, keys)

    def latent(self, packed, keys=None):
        """[B, h, w, 2c] -> [B, h, w, c] float32, drawn as `draw` says."""
        return self.draw(self.moments(packed), keys)

    def absorb(self, latent):
        return latent

    def __call__(self, packed, keys=None):
        latent = self.latent(packed, keys)
        return latent, Bottled(latent=latent, kl=gaussian.kl_to_standard(*gaussian.moments(packed)))


class VectorQuantiser(nn.Module):
    """The nearest of `codes` vectors in squared distance (van den Oord et al. 2017, equations 2 and 3), gradients straight through.

    Form "corrected" is the paper's: codebook ||sg(z) - e||^2 with weight 1 and commitment ||z - sg(e)||^2 with weight
    beta. Form "legacy" has them exchanged, as the published VQ models were trained. Parameter: codebook [n, c] float32,
    uniform in +-1/n at the start.

    Raises:
      UserError: fewer than 2 codes, a negative beta, an unknown form.
    """

    codes: int
    beta: float = 0.25
    form: str = "corrected"
    common_unit: ClassVar[bool] = True

    def __post_init__(self):
        if self.codes < 2 or self.beta < 0:
            raise UserError(f"codes={self.codes}, beta={self.beta}: expected at least 2 codes and a beta of 0 or above")
        if self.form not in FORMS:
            raise UserError(f"form={self.form!r}: expected one of {', '.join(FORMS)}")
        super().__post_init__()

    def channels(self, latent_channels: int) -> int:
        return latent_channels

    def moments(self, packed):
        """[B, h, w, c] -> {"latent"}: the latent before quantisation [B, h, w, c] float32."""
        return {PLAIN_LATENT: packed.astype(jnp.float32)}

    def draw(self, moments, keys=None):
        """The latent before quantisation [B, h, w, c] float32; it is not random, so keys are not used."""
        return moments[PLAIN_LATENT]

    def latent(self, packed, keys=None):
        return self.draw(self.moments(packed), keys)

    def absorb(self, latent):
        return self.quantise(latent)[0]

    @nn.compact
    def quantise(self, latent):
        """Latent [B, h, w, c] -> (nearest code vectors [B, h, w, c] float32, their indices [B, h, w] int32)."""
        bound = 1.0 / self.codes

        def uniform(key, shape):
            return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

        codebook = self.param("codebook", uniform, (self.codes, latent.shape[-1]))
        indices = nearest(codebook, latent)
        return codebook[indices], indices

    def __call__(self, packed, keys=None):
        latent = self.latent(packed)
        chosen, indices = self.quantise(latent)
        codebook = jnp.mean(jnp.square(jax.lax.stop_gradient(latent) - chosen), axis=(1, 2, 3))
        commitment = jnp.mean(jnp.square(latent - jax.lax.stop_gradient(chosen)), axis=(1, 2, 3))
        if self.form == "corrected":
            commitment = self.beta * commitment
        else:
            codebook = self.beta * codebook
        # Adds an exact zero, so that the value is the code and the gradient the latent's.
        through = jax.lax.stop_gradient(chosen) + (latent - jax.lax.stop_gradient(latent))
        return through, Bottled(latent=latent, codebook=codebook, commitment=commitment, indices=indices)


def nearest(codebook: jax.Array, latent: jax.Array) -> jax.Array:
    """The index of the nearest code [n, c] in squared distance for latents [..., c], in full float32; the first of equals."""
    products = jnp.einsum("...c,nc->...n", latent.astype(jnp.float32), codebook, precision=jax.lax.Precision.HIGHEST)
    return jnp.argmin(jnp.sum(jnp.square(codebook), axis=-1) - 2.0 * products, axis=-1).astype(jnp.int32)


def code_counts(indices: jax.Array, codes: int) -> jax.Array:
    """How often each code was chosen [n] float32, for indices of any shape."""
    return jnp.zeros((codes,), jnp.float32).at[indices.reshape(-1)].add(1.0)


def usage_start(codes: int) -> jax.Array:
    """The codes' shares before the first step: 1/n each [n] float32."""
    return jnp.full((codes,), 1.0 / codes, jnp.float32)


def usage_update(use: jax.Array, indices: jax.Array, decay: float) -> jax.Array:
    """Running shares of the codes, use * decay + shares in this batch * (1 - decay): [n] float32, summing to 1."""
    return use * decay + code_counts(indices, use.shape[0]) * ((1.0 - decay) / indices.size)


def revive(codebook: jax.Array, use: jax.Array, latents: jax.Array, key: jax.Array, threshold: float):
    """Puts random latents of the batch in the place of codes that are hardly used (Dhariwal et al. 2020, section 3.1).

    Args:
      codebook: [n, c].
      use: [n] running shares, from `usage_update`.
      latents: [..., c], before quantisation, of this batch.
      key: one key, for this step.
      threshold: a code is dead where its share is below threshold / n; 0 revives none.

    Returns:
      The codebook, the shares (1/n where a code was revived, so that it has time to be found), and how many codes were
      revived, int32 [].
    """
    codes = codebook.shape[0]
    vectors = jax.lax.stop_gradient(latents).reshape(-1, latents.shape[-1])
    drawn = vectors[jax.random.randint(key, (codes,), 0, vectors.shape[0])]
    dead = use < threshold / codes
    codebook = jnp.where(dead[:, None], drawn.astype(codebook.dtype), codebook)
    return codebook, jnp.where(dead, 1.0 / codes, use), jnp.sum(dead, dtype=jnp.int32)


def perplexity(counts: jax.Array) -> jax.Array:
    """exp of the entropy of the codes' shares [n], any scale: from 1 (one code) to n (all alike)."""
    shares = counts / jnp.maximum(jnp.sum(counts), jnp.finfo(jnp.float32).tiny)
    return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(shares, shares)))


BOTTLENECKS = {"kl": KL, "vq": VectorQuantiser}
