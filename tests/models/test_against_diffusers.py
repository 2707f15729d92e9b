"""Whole networks against diffusers' implementation, live on the same random weights (shapes differ in height and width).

The weights go through the name tables that read published files, and back again, bit for bit.
"""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from ldm_jax.core.types import Condition  # noqa: E402
from ldm_jax.interop.first_stage_names import first_stage_places  # noqa: E402
from ldm_jax.interop.unet_names import unet_options, unet_places  # noqa: E402
from ldm_jax.models.autoencoder import Autoencoder  # noqa: E402
from ldm_jax.models.bottleneck import KL, VectorQuantiser  # noqa: E402
from ldm_jax.models.unet import LevelSpec, MiddleSpec, UNet  # noqa: E402
from ldm_jax.ops.embedding import sinusoidal  # noqa: E402
from tests.interop.placed import there_and_back  # noqa: E402
from tests.nn.parity import agree, from_torch, randomise, shapes_of, to_torch  # noqa: E402


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
    params = there_and_back(first_stage_places(model, "diffusers"), shapes_of(model, image), theirs.state_dict())
    ours = jax.jit(model.apply)({"params": params}, image)
    with torch.no_grad():
        posterior = theirs.encode(to_torch(image)).latent_dist
        agree("mean", ours.bottleneck.latent, from_torch(posterior.mean), of=theirs)
        agree("KL", ours.bottleneck.kl, posterior.kl())
        agree("decoded", ours.image, from_torch(theirs.decode(posterior.mean).sample), of=theirs)


def test_first_stage_with_a_codebook():
    """Mistake: quantised when encoding, or not at all; the codebook's axes exchanged; a decoder that counts levels from the finest."""
    torch.manual_seed(3)  # its own start, which decides how many codes are used
    theirs = randomise(diffusers.VQModel(
        in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"), block_out_channels=(128, 256), layers_per_block=1, latent_channels=3,
        num_vq_embeddings=24, norm_num_groups=32, sample_size=16), seed=3)
    with torch.no_grad():  # codes as far from each other as the latents are, or one of them is nearest everywhere
        theirs.quantize.embedding.weight.mul_(3.0)
    model = Autoencoder(channels=3, resolution=16, width=128, multipliers=(1, 2), blocks=1, latent_channels=3,
                        bottleneck=VectorQuantiser(codes=24))
    image = draw(2, 16, 12, 3)
    params = there_and_back(first_stage_places(model, "diffusers"), shapes_of(model, image), theirs.state_dict())
    def both(module, image):
        latent = module.encode(image)
        return latent, module.bottleneck.quantise(latent)[1], module.decode(latent)

    latent, codes, decoded = jax.jit(lambda params: model.apply({"params": params}, image, method=both))(params)
    assert len(np.unique(codes)) > 4
    with torch.no_grad():
        agree("latent", latent, from_torch(theirs.encode(to_torch(image)).latents), of=theirs)
        agree("decoded", decoded, from_torch(theirs.decode(to_torch(latent)).sample))


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
    places = unet_places(model, "diffusers", proj="conv", vector="projection")
    params = there_and_back(places, shapes_of(model, noisy, time, condition), theirs.state_dict())
    ours = jax.jit(model.apply)({"params": params}, noisy, time, condition)
    with torch.no_grad():
        out = theirs(to_torch(np.concatenate([noisy, image], axis=-1)), torch.from_numpy(time),
                     encoder_hidden_states=to_torch(condition.tokens), class_labels=to_torch(condition.vector)).sample
    agree("unet, transformers", ours, from_torch(out), of=theirs)


def test_unet_that_attends_to_tokens_only():
    """Mistake: the first attention to the positions where it is to the tokens, or in the middle too, or in another level; linear

    projections read as convolutions; SDXL's vector under unCLIP's name.
    """
    theirs = randomise(diffusers.UNet2DConditionModel(
        in_channels=4, out_channels=4, down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), block_out_channels=(128, 128), layers_per_block=1,
        cross_attention_dim=24, attention_head_dim=(2, 4), norm_num_groups=32, use_linear_projection=True,
        only_cross_attention=(True, False), addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=26), seed=4)
    model = UNet((LevelSpec(128, 1, "transformer", 2, cross_only=True), LevelSpec(128, 1, "transformer", 4, down="none")), 4, 512)
    assert model.places == ("down_1", "middle", "up_1")
    noisy, time, pooled, sizes = draw(2, 6, 4, 4), np.float32([3.0, 981.0]), draw(2, 10, seed=3), np.float32([[512, 0], [640, 96]])
    vector = np.concatenate([pooled, sinusoidal(sizes.reshape(-1), 8).reshape(2, 16)], axis=-1)
    condition = Condition(tokens=draw(2, 5, 24, seed=2), vector=vector)
    state = theirs.state_dict()
    options = unet_options({name: tuple(leaf.shape) for name, leaf in state.items()})
    assert options == {"proj": "linear", "vector": "text_time"}
    params = there_and_back(unet_places(model, "diffusers", **options), shapes_of(model, noisy, time, condition), state)
    ours = jax.jit(model.apply)({"params": params}, noisy, time, condition)
    with torch.no_grad():
        out = theirs(to_torch(noisy), torch.from_numpy(time), encoder_hidden_states=to_torch(condition.tokens),
                     added_cond_kwargs={"text_embeds": to_torch(pooled), "time_ids": torch.from_numpy(sizes)}).sample
    agree("unet, tokens only", ours, from_torch(out), of=theirs)


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
    params = there_and_back(unet_places(model, "diffusers"), shapes_of(model, noisy, time, Condition()), theirs.state_dict())
    ours = jax.jit(model.apply)({"params": params}, noisy, time, Condition())
    with torch.no_grad():
        agree("unet, plain", ours, from_torch(theirs(to_torch(noisy), torch.from_numpy(time)).sample), of=theirs)
