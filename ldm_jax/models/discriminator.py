"""The patch discriminator of the first stage's adversarial loss (Isola et al. 2017, section 3.2; Esser et al. 2021)."""

import flax.linen as nn
import jax.numpy as jnp

from ldm_jax.core.errors import UserError
from ldm_jax.core.shapes import expect
from ldm_jax.nn.layers import compute_dtype

NORMAL = nn.initializers.normal(0.02)


def _scale(key, shape, dtype=jnp.float32):
    return 1.0 + NORMAL(key, shape, dtype)


class PatchDiscriminator(nn.Module):
    """Images [B, H, W, C] in [-1, 1] -> one logit a patch [B, h, w, 1] float32; high is real.

    conv_0 (4x4, stride 2), then conv_i and norm_i, i = 1 .. layers, of which the last has stride 1, then conv_out; leaky
    ReLUs of slope 0.2. Width doubles up to 8 times the first. Kernels start as N(0, 0.02), norm scales as N(1, 0.02).

    BatchNorm is over the whole batch that it is given, over every device's share of it (collection "batch_stats": call
    with `mutable=["batch_stats"]` when train is True), so that real and fake must be given apart, and an example's logits
    do depend on its neighbours. With train False the running statistics are used. The running variance is of the biased
    kind (torch's is unbiased); statistics are float32 with momentum 0.9 and eps 1e-5.

    Raises:
      UserError: fewer than 1 layer, a width below 1, or images too small to leave a patch.
    """

    width: int = 64
    layers: int = 3
    dtype: str = "float32"

    def __post_init__(self):
        compute_dtype(self.dtype)
        if self.width < 1 or self.layers < 1:
            raise UserError(f"discriminator width={self.width}, layers={self.layers}: expected numbers of 1 and above")
        super().__post_init__()

    def _conv(self, width: int, stride: int, bias: bool, name: str) -> nn.Conv:
        return nn.Conv(width, (4, 4), (stride, stride), ((1, 1), (1, 1)), use_bias=bias, dtype=compute_dtype(self.dtype),
                       param_dtype=jnp.float32, kernel_init=NORMAL, name=name)

    @nn.compact
    def __call__(self, image, train: bool = True):
        expect("image", image, "B H W C")
        least = 3 * 2**self.layers
        if min(image.shape[1:3]) < least:
            raise UserError(f"discriminator: {image.shape[1]}x{image.shape[2]} images are too small for layers={self.layers}; "
                            f"expected sides of at least {least}, or fewer layers")
        h = nn.leaky_relu(self._conv(self.width, 2, True, "conv_0")(image), 0.2)
        for i in range(1, self.layers + 1):
            h = self._conv(self.width * min(2**i, 8), 2 if i < self.layers else 1, False, f"conv_{i}")(h)
            h = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=jnp.float32, param_dtype=jnp.float32,
                             scale_init=_scale, use_fast_variance=False, name=f"norm_{i}")(h)
            h = nn.leaky_relu(h, 0.2)
        return self._conv(1, 1, True, "conv_out")(h).astype(jnp.float32)
