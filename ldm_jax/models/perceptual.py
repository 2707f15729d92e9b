"""LPIPS (Zhang et al. 2018): a distance between images in the features of a VGG16 that was trained on ImageNet.

The parameters are a frozen input, never trained: {"vgg": {"conv{stage}_{i}": {kernel, bias}}, "lin{stage}": {kernel}}.
They are read from a local safetensors file with the names "vgg/conv1_1/kernel" ... "lin5/kernel", which `cli.convert
lpips` writes; nothing is downloaded.
"""

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.core.shapes import expect
from ldm_jax.core.trees import paths

# VGG16's stages: the width and the number of convolutions; the features are each stage's last ReLU.
STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
# Images in [-1, 1] are brought to the statistics that VGG16 was trained with.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
SMALLEST = 2 ** (len(STAGES) - 1)


class Vgg(nn.Module):
    """Images [B, H, W, 3] -> the features relu1_2, relu2_2, relu3_3, relu4_3, relu5_3."""

    @nn.compact
    def __call__(self, image):
        features, h = [], image
        for stage, (width, convolutions) in enumerate(STAGES, start=1):
            if stage > 1:
                h = nn.max_pool(h, (2, 2), (2, 2))
            for i in range(1, convolutions + 1):
                h = nn.relu(nn.Conv(width, (3, 3), padding=((1, 1), (1, 1)), name=f"conv{stage}_{i}")(h))
            features.append(h)
        return features


class Lpips(nn.Module):
    """Two batches of images in [-1, 1] -> their distances [B] float32, 0 (up to rounding) for equal images; differentiable everywhere.

    No dropout before the linear heads (in training the published code leaves it on). Products follow
    `jax.default_matmul_precision`; a metric asks for "highest".
    """

    @nn.compact
    def __call__(self, a, b):
        """a, b: [B, H, W, C], C = 3, or 1, which is repeated; H and W at least 16.

        Raises:
          UserError: other channels, different shapes, or images that are too small.
        """
        sizes = expect("image", a, "B H W C")
        expect("other image", b, "B H W C", **sizes)
        if sizes["C"] not in (1, 3):
            raise UserError(f"perceptual: expected images of 1 or 3 channels, got {sizes['C']}; set its weight to 0")
        if min(sizes["H"], sizes["W"]) < SMALLEST:
            raise UserError(f"perceptual: {sizes['H']}x{sizes['W']} images are too small; expected sides of at least {SMALLEST}")
        both = jnp.broadcast_to(jnp.concatenate([a, b]).astype(jnp.float32), (2 * sizes["B"], sizes["H"], sizes["W"], 3))
        both = (both - jnp.asarray(SHIFT)) / jnp.asarray(SCALE)
        distance = jnp.zeros((sizes["B"],), jnp.float32)
        for stage, features in enumerate(Vgg(name="vgg")(both), start=1):
            first, second = jnp.split(unit_features(features), 2)
            weighted = nn.Dense(1, use_bias=False, name=f"lin{stage}")(jnp.square(first - second))
            distance = distance + jnp.mean(weighted, axis=(1, 2, 3))
        return distance


def unit_features(features):
    """Features divided by (their norm over channels + 1e-10); the gradient is finite where all are 0."""
    square = jnp.sum(jnp.square(features), axis=-1, keepdims=True)
    norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    return features / (norm + 1e-10)


def lpips_shapes():
    """The parameter tree of `Lpips` as shapes."""
    image = jax.ShapeDtypeStruct((1, SMALLEST, SMALLEST, 3), jnp.float32)
    return jax.eval_shape(Lpips().init, jax.random.key(0), image, image)["params"]


def load_lpips(path) -> dict:
    """Reads the parameters of `Lpips` from a local safetensors file: float32 numpy arrays, every one and no other.

    Raises:
      UserError: no such file, a file that is not safetensors, or names, shapes or values that do not fit.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    how = "make it with `python -m ldm_jax.cli.convert lpips`, or set the perceptual weight to 0"
    if not pathlib.Path(path).is_file():
        raise UserError(f"{path}: no such file; {how}")
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); {how}") from None
    shapes = lpips_shapes()
    expected = dict(paths(shapes))
    missing, unknown = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or unknown:
        raise UserError(f"{path}: not LPIPS parameters: {len(missing)} missing ({', '.join(missing[:3])}), "
                        f"{len(unknown)} unknown ({', '.join(unknown[:3])}); {how}")
    for name, shape in expected.items():
        if found[name].shape != shape.shape or not np.isfinite(found[name].astype(np.float32)).all():
            raise UserError(f"{path}: {name} is {list(found[name].shape)}, expected {list(shape.shape)} finite numbers; {how}")
    return jax.tree.unflatten(jax.tree.structure(shapes), [found[name].astype(np.float32) for name in expected])
