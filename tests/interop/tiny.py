"""Small random pipelines of diffusers, whole: networks, text encoders, tokenizers and schedulers, as stock diffusers writes them."""

import functools
import tempfile
from pathlib import Path

import diffusers
import torch
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
from transformers import BertTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tests.data.vocabularies import clip_folder
from tests.nn.parity import randomise

SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
LDM = dict(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear")
QUIET = dict(set_alpha_to_one=False, clip_sample=False)
WORDS = ("[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "red", "dog", "##s", ",")
LENGTH = 16  # of a window; the published ones have 77


def vae(scale, widths=(32, 64)):
    return randomise(diffusers.AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=widths, layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * len(widths), up_block_types=("UpDecoderBlock2D",) * len(widths), sample_size=32,
        scaling_factor=scale), seed=10)


def unet(tokens, channels=4, **more):
    options = dict(attention_head_dim=4, layers_per_block=1) | more
    return randomise(diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=channels, out_channels=4, block_out_channels=(32, 64), norm_num_groups=8, cross_attention_dim=tokens,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **options), seed=11)


@functools.cache
def tokenizer(pad: str = ""):
    folder = clip_folder(Path(tempfile.mkdtemp()), pad)
    return CLIPTokenizer.from_pretrained(folder, model_max_length=LENGTH, **({"pad_token": pad} if pad else {}))


def clip(width, layers=2, act="quick_gelu", projection=0, seed=12):
    size = len(tokenizer())
    config = CLIPTextConfig(vocab_size=size, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
                            num_attention_heads=width // 16, max_position_embeddings=LENGTH, hidden_act=act, bos_token_id=size - 2,
                            eos_token_id=size - 1, pad_token_id=size - 1, **({"projection_dim": projection} if projection else {}))
    return randomise((CLIPTextModelWithProjection if projection else CLIPTextModel)(config), seed)


def stable(network, text, scheduler, kind="StableDiffusionPipeline", **more):
    return getattr(diffusers, kind)(vae=vae(0.18215), text_encoder=text, tokenizer=tokenizer(), unet=network, scheduler=scheduler,
                                    safety_checker=None, feature_extractor=None, requires_safety_checker=False, **more)


def sd1():
    return stable(unet(32), clip(32), diffusers.PNDMScheduler(**SD, skip_prk_steps=True, set_alpha_to_one=False))


def sd2():
    return stable(unet(48, use_linear_projection=True, attention_head_dim=(2, 4)), clip(48, act="gelu"),
                  diffusers.DDIMScheduler(**SD, **QUIET, prediction_type="v_prediction"))


def sd1_inpainting():
    """Its first stage's posterior has hardly a variance, so that what stock pipelines draw from it is its mean."""
    pipe = stable(unet(32, channels=9), clip(32), diffusers.DDIMScheduler(**SD, **QUIET), "StableDiffusionInpaintPipeline")
    with torch.no_grad():
        pipe.vae.quant_conv.weight[4:], pipe.vae.quant_conv.bias[4:] = 0.0, -30.0
    return pipe


def sdxl_unet(tokens, pooled, sizes):
    return unet(tokens, use_linear_projection=True, attention_head_dim=(2, 4), addition_embed_type="text_time", addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=pooled + 8 * sizes, transformer_layers_per_block=(2, 1))


def sdxl():
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(0.13025), text_encoder=clip(32), text_encoder_2=clip(48, act="gelu", projection=40, seed=13), tokenizer=tokenizer(),
        tokenizer_2=tokenizer("!"), unet=sdxl_unet(80, 40, 6), add_watermarker=False,
        scheduler=diffusers.EulerDiscreteScheduler(**SD, timestep_spacing="leading"))


def ldm_text():
    config = LDMBertConfig(vocab_size=len(WORDS), max_position_embeddings=77, encoder_layers=2, encoder_ffn_dim=128,
                           encoder_attention_heads=8, head_dim=64, d_model=32, pad_token_id=0)
    bert = randomise(LDMBertModel(config), 14)
    words = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, model_max_length=77)
    return diffusers.LDMTextToImagePipeline(vqvae=vae(0.18215, (32, 32, 32, 32)), bert=bert, tokenizer=words, unet=unet(32),
                                            scheduler=diffusers.DDIMScheduler(**SD, **QUIET))


def vq():
    """Its codes are as far apart as the latents of `ldm`: nearer ones would give the same image whatever the latents' scale."""
    model = randomise(diffusers.VQModel(
        in_channels=3, out_channels=3, latent_channels=3, vq_embed_dim=3, num_vq_embeddings=32, block_out_channels=(32, 64),
        layers_per_block=1, norm_num_groups=8, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=32, scaling_factor=1.0), seed=15)
    with torch.no_grad():
        model.quantize.embedding.weight *= 60
    return model


def ldm():
    network = randomise(diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8, norm_eps=1e-5,
        attention_head_dim=16, down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        flip_sin_to_cos=True, freq_shift=0), seed=16)
    return diffusers.LDMPipeline(vqvae=vq(), unet=network, scheduler=diffusers.DDIMScheduler(**LDM, clip_sample=False))


PIPELINES = {"sd1": sd1, "sd2": sd2, "sdxl": sdxl, "ldm_text": ldm_text, "ldm": ldm, "sd1_inpainting": sd1_inpainting}
