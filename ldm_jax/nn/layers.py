"""The layers that every network is made of.

Parameters are float32 always; a layer computes in its `dtype`. Normalisations compute in float32 and return `dtype`.
Kernels start as torch's do, uniform with variance 1 / (3 fan-in), because the published learning rates were found with
that start; biases start at 0 (torch draws them too). A layer with `zero=True` starts as the zero map.
Products follow `jax.default_matmul_precision`; nothing here fixes a precision.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_jax.core.errors import UserError
from ldm_jax.ops import normalise

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
TORCH_UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def compute_dtype(name: str):
    """The dtype that a network computes in, by name.

    Raises:
      UserError: an unknown name.
    """
    if name not in DTYPES:
        raise UserError(f"dtype={name!r}: expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _kernel_init(zero: bool):
    return nn.initializers.zeros if zero else TORCH_UNIFORM


class Conv(nn.Module):
    """A square convolution [B, H, W, C] -> [B, H', W', width] with explicit padding, ((top, bottom), (left, right))."""

    width: int
    size: int = 3
    stride: int = 1
    padding: tuple[tuple[int, int], tuple[int, int]] = ((1, 1), (1, 1))
    bias: bool = True
    zero: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x):
        x = x.astype(compute_dtype(self.dtype))
        kernel = self.param("kernel", _kernel_init(self.zero), (self.size, self.size, x.shape[-1], self.width), jnp.float32)
        y = jax.lax.conv_general_dilated(x, kernel.astype(x.dtype), (self.stride, self.stride), self.padding,
                                         dimension_numbers=("NHWC", "HWIO", "NHWC"))
        if self.bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32).astype(y.dtype)
        return y


class Dense(nn.Module):
    """A linear map of the last axis [..., C] -> [..., width]: a linear layer and a 1x1 convolution alike."""

    width: int
    bias: bool = True
    zero: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x):
        x = x.astype(compute_dtype(self.dtype))
        y = x @ self.param("kernel", _kernel_init(self.zero), (x.shape[-1], self.width), jnp.float32).astype(x.dtype)
        if self.bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32).astype(y.dtype)
        return y


class GroupNorm(nn.Module):
    """Group normalisation with scale and offset; `eps` is 1e-6 in first stages, 1e-5 in U-Nets.

    groups: their number, or 0 for what `ops.normalise.groups_for` gives the width.
    """

    eps: float
    dtype: str = "float32"
    groups: int = 0

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        normal = normalise.group_norm(x, self.groups or normalise.groups_for(x.shape[-1]), self.eps)
        return (normal * scale + bias).astype(compute_dtype(self.dtype))


class LayerNorm(nn.Module):
    """Normalisation of the last axis with scale and offset."""

    eps: float = 1e-5
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return (normalise.layer_norm(x, self.eps) * scale + bias).astype(compute_dtype(self.dtype))
