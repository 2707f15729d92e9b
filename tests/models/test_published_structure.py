"""The published networks, counted: parameters and tensors (shared/reference/compvis.md, tables 2.1 to 2.3).

Mistake these catch: any block, skip, attention or bias too many or too few, at any level. Shapes only, nothing is run.
"""

import jax
import jax.numpy as jnp
import pytest

from ldm_jax.core.trees import count
from ldm_jax.core.types import Condition
from ldm_jax.models.autoencoder import Autoencoder
from ldm_jax.models.bottleneck import KL, VectorQuantiser
from ldm_jax.models.levels import LevelSpec, MiddleSpec
from ldm_jax.models.unet import UNet


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


FIRST_STAGES = {
    "kl-f4": ((1, 2, 4), (), 3, KL(), True, 55.31, 204),
    "kl-f8": ((1, 2, 4, 4), (), 4, KL(), True, 83.65, 248),
    "kl-f16": ((1, 1, 2, 2, 4), (16,), 16, KL(), True, 69.61, 342),
    "kl-f32": ((1, 1, 2, 2, 4, 4), (16, 8), 64, KL(), True, 103.88, 436),
    "vq-f4": ((1, 2, 4), (), 3, VectorQuantiser(codes=8192), True, 55.32, 205),
    "vq-f4-noattn": ((1, 2, 4), (), 3, VectorQuantiser(codes=8192), False, 53.22, 185),
    "vq-f8": ((1, 2, 2, 4), (32,), 4, VectorQuantiser(codes=16384), True, 67.72, 299),
    "vq-f16": ((1, 1, 2, 2, 4), (16,), 8, VectorQuantiser(codes=16384), True, 69.59, 343),
}


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_first_stage(name):
    multipliers, attention, latent, bottleneck, middle, millions, tensors = FIRST_STAGES[name]
    model = Autoencoder(channels=3, resolution=256, width=128, multipliers=multipliers, blocks=2, latent_channels=latent,
                        bottleneck=bottleneck, attention=attention, middle_attention=middle)
    params = jax.eval_shape(model.init, jax.random.key(0), shape(1, 256, 256, 3))
    assert (round(count(params) / 1e6, 2), len(jax.tree.leaves(params))) == (millions, tensors)


NO = ("none",)


def plain(heads):
    return "plain", heads


def trans(heads, depth=1):
    return "transformer", heads, depth


# first width, multipliers, attention by level, of the middle, channels in and out, width of tokens, of the vector, other fields
UNETS = {
    "celeba256": (224, (1, 2, 3, 4), (NO, plain(14), plain(21), plain(28)), plain(28), 3, 3, 0, 0, {}, 274.06, 368),
    "lsun_churches256": (192, (1, 2, 2, 4, 4), (plain(8),) * 4 + (NO,), plain(8), 4, 4, 0, 0,
                         dict(scale_shift=True, down="residual"), 294.97, 520),
    "cin256-v2": (192, (1, 2, 3, 5), (NO, trans(1), trans(1), trans(1)), trans(1), 3, 3, 512, 0, {}, 400.92, 688),
    "semantic_synthesis": (128, (1, 4, 8), (NO,) * 3, plain(8), 6, 3, 0, 0, {}, 215.23, 216),
    "layout2img": (128, (1, 2, 3, 4), (NO, trans(8, 3), trans(12, 3), trans(16, 3)), trans(16, 3), 3, 3, 512, 0, {}, 246.28, 1328),
    "inpainting_big": (256, (1, 2, 3, 4), (NO, plain(8), plain(8), plain(8)), plain(8), 7, 3, 0, 0, dict(down="residual"), 387.25, 416),
    "SD 1": (320, (1, 2, 4, 4), (trans(8),) * 3 + (NO,), trans(8), 4, 4, 768, 0, {}, 859.52, 686),
    "SD 2": (320, (1, 2, 4, 4), (trans(5), trans(10), trans(20), NO), trans(20), 4, 4, 1024, 0, {}, 865.91, 686),
    "SDXL": (320, (1, 2, 4), (NO, trans(10, 2), trans(20, 10)), trans(20, 10), 4, 4, 2048, 2816, {}, 2567.46, 1680),
}


@pytest.mark.parametrize("name", UNETS)
def test_unet(name):
    width, multipliers, attention, middle, given, out, tokens, vector, more, millions, tensors = UNETS[name]
    down = more.pop("down", "conv") if (more := dict(more)) else "conv"
    last = len(multipliers) - 1
    levels = tuple(LevelSpec(width * m, 2, *kind, down="none" if i == last else down)
                   for i, (m, kind) in enumerate(zip(multipliers, attention)))
    model = UNet(levels, out, 4 * width, middle=MiddleSpec(*middle), **more)
    condition = Condition(tokens=shape(1, 2, tokens) if tokens else None, vector=shape(1, vector) if vector else None)
    params = jax.eval_shape(model.init, jax.random.key(0), shape(1, 16, 16, given), shape(1), condition)
    assert (round(count(params) / 1e6, 2), len(jax.tree.leaves(params))) == (millions, tensors)
