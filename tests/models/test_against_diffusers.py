"""Whole networks against diffusers' implementation, live on the same random weights (shapes differ in height and width)."""

import re

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from ldm_jax.core.types import Condition  # noqa: E402
from ldm_jax.models.autoencoder import Autoencoder  # noqa: E402
from ldm_jax.models.bottleneck import KL  # noqa: E402
from ldm_jax.models.unet import LevelSpec, MiddleSpec, UNet  # noqa: E402
from tests.nn.parity import agree, filled, from_torch, randomise, shapes_of, to_torch  # noqa: E402

LEAF = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def renamer(rules, levels):
    """Our path -> torch names. Rules are (pattern, replacement); `up_i` counts from the other end there."""

    def rename(path):
        *stem, leaf = path.split("/")
        name = ".".join(stem)
        name = re.sub(r"up_(\d+)", lambda m: f"up_blocks.{levels - 1 - int(m[1])}", name)
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        if name.endswith("qkv"):
            return [f"{name[:-3]}to_{part}.{LEAF[leaf]}" for part in "qkv"]
        return [f"{name}.{LEAF[leaf]}"]

    return rename


COMMON = [(r"down_(\d+)", r"down_blocks.\1"), (r"downsample", "downsamplers.0"), (r"upsample", "upsamplers.0"),
          (r"norm_out", "conv_norm_out")]
FIRST_STAGE = COMMON + [
    (r"mid\.block_1", "mid_block.resnets.0"), (r"mid\.block_2", "mid_block.resnets.1"), (r"mid\.attn_1", "mid_block.attentions.0"),
    (r"\.block_", ".resnets."), (r"attn_(\d)", r"attentions.\1"), (r"(attentions\.\d)\.norm", r"\1.group_norm"),
    (r"(attentions\.\d)\.([qkv])$", r"\1.to_\2"), (r"(attentions\.\d)\.proj_out", r"\1.to_out.0"), ("nin_shortcut", "conv_shortcut")]
UNET = COMMON + [
    (r"time_0", "time_embedding.linear_1"), (r"time_2", "time_embedding.linear_2"),
    (r"vector_0", "class_embedding.linear_1"), (r"vector_2", "class_embedding.linear_2"),
    (r"(attention_\d)\.block_", r"\1.transformer_blocks."), (r"to_out", "to_out.0"),
    (r"ff\.proj", "ff.net.0.proj"), (r"ff\.out", "ff.net.2"),
    (r"middle\.block_1", "mid_block.resnets.0"), (r"middle\.block_2", "mid_block.resnets.1"),
    (r"middle\.attention_1", "mid_block.attentions.0"),
    (r"\.block_", ".resnets."), (r"attention_(\d)", r"attentions.\1"), (r"\.time$", ".time_emb_proj"), (r"\.skip$", ".conv_shortcut")]
# diffusers' plain attention has other names than its transformer
PLAIN = UNET + [(r"(attentions\.\d)\.norm", r"\1.group_norm"), (r"(attentions\.\d)\.proj_out", r"\1.to_out.0")]


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_first_stage():
    """Mistake: blocks in another order, a level's attention or extra block misplaced, mean and log-variance exchanged."""
    theirs = randomise(diffusers.AutoencoderKL(
        in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "AttnUpDecoderBlock2D", "UpDecoderBlock2D"), block_out_channels=(128, 256, 256),
        layers_per_block=1, latent_channels=4, norm_num_groups=32), seed=0)
    model = Autoencoder(channels=3, resolution=32, width=128, multipliers=(1, 2, 2), blocks=1, latent_channels=4, bottleneck=KL(),
                        attention=(16,))
    image = draw(2, 32, 24, 3)
    params = filled(shapes_of(model, image), theirs.state_dict(), renamer(FIRST_STAGE, 3))
    ours = jax.jit(model.apply)({"params": params}, image)
    with torch.no_grad():
        posterior = theirs.encode(to_torch(image)).latent_dist
        agree("mean", ours.bottleneck.latent, from_torch(posterior.mean))
        agree("KL", ours.bottleneck.kl, posterior.kl())
        agree("decoded", ours.image, from_torch(theirs.decode(posterior.mean).sample))


def test_unet_with_transformers():
    """Mistake: skips in another order, [sin, cos], the vector after the SiLU, tokens into the wrong attention."""
    theirs = randomise(diffusers.UNet2DConditionModel(
        in_channels=5, out_channels=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn", up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(128, 160, 192), layers_per_block=1, cross_attention_dim=24, attention_head_dim=(4, 4, 8), norm_num_groups=32,
        transformer_layers_per_block=(1, 2, 1), class_embed_type="projection", projection_class_embeddings_input_dim=10), seed=1)
    model = UNet((LevelSpec(128, 1), LevelSpec(160, 1, "transformer", 4, 2), LevelSpec(192, 1, "transformer", 8, down="none")), 4, 512)
    noisy, image, time = draw(2, 12, 8, 4), draw(2, 12, 8, 1, seed=1), np.float32([3.0, 981.0])
    condition = Condition(tokens=draw(2, 5, 24, seed=2), vector=draw(2, 10, seed=3), image=image)
    params = filled(shapes_of(model, noisy, time, condition), theirs.state_dict(), renamer(UNET, 3))
    ours = jax.jit(model.apply)({"params": params}, noisy, time, condition)
    with torch.no_grad():
        out = theirs(to_torch(np.concatenate([noisy, image], axis=-1)), torch.from_numpy(time),
                     encoder_hidden_states=to_torch(condition.tokens), class_labels=to_torch(condition.vector)).sample
    agree("unet, transformers", ours, from_torch(out))


def test_unet_with_plain_attention_and_residual_resampling():
    """Mistake: resampling blocks of the wrong width or level, heads in another order, scale and shift exchanged."""
    theirs = randomise(diffusers.UNet2DModel(
        in_channels=4, out_channels=4, down_block_types=("AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("ResnetUpsampleBlock2D", "AttnUpBlock2D"),
        block_out_channels=(128, 192), layers_per_block=2, attention_head_dim=16, norm_num_groups=32, norm_eps=1e-5, freq_shift=0,
        flip_sin_to_cos=True, downsample_type="resnet", upsample_type="resnet", resnet_time_scale_shift="scale_shift",
        attn_norm_num_groups=32), seed=2)
    model = UNet((LevelSpec(128, 2, "plain", 8, down="residual"), LevelSpec(192, 2, down="none")), 4, 512,
                 middle=MiddleSpec("plain", 12), scale_shift=True)
    noisy, time = draw(2, 8, 6, 4), np.float32([0.0, 500.0])
    params = filled(shapes_of(model, noisy, time, Condition()), theirs.state_dict(), renamer(PLAIN, 2))
    ours = jax.jit(model.apply)({"params": params}, noisy, time, Condition())
    with torch.no_grad():
        agree("unet, plain", ours, from_torch(theirs(to_torch(noisy), torch.from_numpy(time)).sample))
