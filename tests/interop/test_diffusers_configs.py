"""diffusers' JSON files: the published ones read as the zoo's rows, ours made into live models, and both ways."""

import dataclasses
import json

import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.interop.described import autoencoder_of, autoencoder_shapes, unet_of, unet_shapes
from ldm_jax.interop.diffusers_configs import describe_folder
from ldm_jax.interop.diffusers_nets import read_unet, write_unet
from ldm_jax.interop.diffusers_plan import plan_folder
from ldm_jax.interop.diffusers_scheduler import read_scheduler, write_scheduler
from ldm_jax.interop.diffusers_texts import read_bert, read_clip
from ldm_jax.interop.families import Heads, Net
from ldm_jax.interop.first_stage_names import first_stage_places
from ldm_jax.interop.unet_names import unet_places
from ldm_jax.interop.zoo import ZOO
from tests.interop.zoo_files import smaller

STORED = dict(_class_name="PNDMScheduler", beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000,
              trained_betas=None, clip_sample=False, set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1)
SD15_UNET = dict(
    _class_name="UNet2DConditionModel", _diffusers_version="0.6.0", act_fn="silu", attention_head_dim=8, center_input_sample=False,
    block_out_channels=[320, 640, 1280, 1280], cross_attention_dim=768, downsample_padding=1, flip_sin_to_cos=True, freq_shift=0,
    down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], in_channels=4, layers_per_block=2, mid_block_scale_factor=1,
    norm_eps=1e-05, norm_num_groups=32, out_channels=4, sample_size=64, up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3)
SD15_VAE = dict(_class_name="AutoencoderKL", act_fn="silu", block_out_channels=[128, 256, 512, 512], in_channels=3, latent_channels=4,
                down_block_types=["DownEncoderBlock2D"] * 4, layers_per_block=2, norm_num_groups=32, out_channels=3, sample_size=512,
                up_block_types=["UpDecoderBlock2D"] * 4)
CLIP_L = dict(architectures=["CLIPTextModel"], bos_token_id=0, eos_token_id=2, hidden_act="quick_gelu", hidden_size=768,
              intermediate_size=3072, layer_norm_eps=1e-05, max_position_embeddings=77, model_type="clip_text_model",
              num_attention_heads=12, num_hidden_layers=12, pad_token_id=1, projection_dim=768, vocab_size=49408)
BIG_G = CLIP_L | dict(architectures=["CLIPTextModelWithProjection"], hidden_act="gelu", hidden_size=1280, intermediate_size=5120,
                      num_attention_heads=20, num_hidden_layers=32, projection_dim=1280)
END, EXCLAMATION = dict(pad_token="<|endoftext|>"), dict(pad_token="!")
SD15 = dict(model_index=dict(_class_name="StableDiffusionPipeline", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"]),
            unet=SD15_UNET, vae=SD15_VAE, text_encoder=CLIP_L, tokenizer=END, scheduler=STORED, feature_extractor={})
SDXL_UNET = SD15_UNET | dict(
    attention_head_dim=[5, 10, 20], block_out_channels=[320, 640, 1280], cross_attention_dim=2048, sample_size=128, class_embed_type=None,
    down_block_types=["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2, up_block_types=["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
    transformer_layers_per_block=[1, 2, 10], addition_embed_type="text_time", addition_time_embed_dim=256, num_class_embeds=None,
    projection_class_embeddings_input_dim=2816, use_linear_projection=True, upcast_attention=None, mid_block_only_cross_attention=None)
SDXL = dict(
    model_index=dict(_class_name="StableDiffusionXLPipeline", force_zeros_for_empty_prompt=True), unet=SDXL_UNET, text_encoder=CLIP_L,
    vae=SD15_VAE | dict(sample_size=1024, scaling_factor=0.13025, force_upcast=True), text_encoder_2=BIG_G, tokenizer=END,
    tokenizer_2=EXCLAMATION, scheduler=STORED | dict(_class_name="EulerDiscreteScheduler", timestep_spacing="leading",
                                                     prediction_type="epsilon", interpolation_type="linear", use_karras_sigmas=False))
KEPT = ("sd1", "sd1-inpainting", "sdxl", "sdxl-refiner", "bsr-sr")  # what their folders say is all that their rows say


def test_stable_diffusion_1():
    """Catches attention_head_dim read as the width of a head, a scale or an offset that an old file leaves out, padding with id 1, and
    another number of groups passed over."""
    assert describe_folder(SD15) == ZOO["sd1"]
    assert describe_folder(SD15 | dict(unet=SD15_UNET | dict(norm_num_groups=16))).sections["network"]["groups"] == 16


def test_sdxl():
    """Catches sizes counted without the pooled text, the final norm on the penultimate layer, and the wrong padding of either text."""
    assert describe_folder(SDXL) == ZOO["sdxl"]


@pytest.mark.parametrize("levels, middle, crossed", [(True, None, True), (True, False, False), (False, None, False), (False, True, True),
                                                     ([True] * 4, None, False), ([True] * 4, True, True)])
def test_the_middle_of_a_network_that_attends_to_tokens_only(levels, middle, crossed):
    """Catches a null read as no: stock diffusers writes null, and takes it as `only_cross_attention` where that is one bool."""
    found = read_unet(SD15_UNET | dict(only_cross_attention=levels, mid_block_only_cross_attention=middle))
    assert found.section["middle"].get("cross_only", False) is crossed
    assert [level.get("cross_only", False) for level in found.section["levels"]] == [bool(levels)] * 3 + [False]
    again = read_unet(write_unet(found.section, found))
    assert again.section == found.section


def test_the_v_model():
    """Catches v read as noise; Stable Diffusion 2 keeps its scheduler in DDIM's words, and 23 of the text encoder's 24 layers."""
    text = CLIP_L | dict(hidden_act="gelu", hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=23)
    unet = SD15_UNET | dict(attention_head_dim=[5, 10, 20, 20], cross_attention_dim=1024, use_linear_projection=True, sample_size=96)
    scheduler = STORED | dict(_class_name="DDIMScheduler", prediction_type="v_prediction")
    found = describe_folder(SD15 | dict(unet=unet, text_encoder=text, tokenizer=EXCLAMATION, scheduler=scheduler))
    row = ZOO["sd2"]
    assert (found.kind, found.resolution, found.scale_factor, found.first_stage) == ("sd2", 768, 0.18215, row.first_stage)
    assert all(found.sections[key] == row.sections[key] for key in ("network", "schedule", "prediction", "time_input"))
    clip = found.sections["conditioner"]
    assert (clip["layers"], clip["skip"], clip["final_norm"], clip["pad"], clip["projection"]) == (23, 0, True, 0, 0)


@pytest.mark.parametrize("kind", [kind for kind, row in ZOO.items() if row.sections])
def test_a_row_goes_out_and_comes_back(kind):
    """Catches a setting that is written and read in two ways; kinds that no pipeline runs are refused by what they are told."""
    row, told = ZOO[kind], ("class", "semantic_map", "tokens", "inpainting", "bert_text")
    conditioner = row.sections["conditioner"]["name"]
    if kind == "lsun-churches256" or conditioner in told and not kind.startswith(("text2img", "sd")):
        with pytest.raises(UserError, match="CompVis layout"):
            plan_folder(row)
        return
    plan = plan_folder(row)
    found = describe_folder(json.loads(json.dumps(plan.jsons | {"model_index": plan.index})))
    assert found.kind == ("" if kind in ("celeba256", "ffhq256", "lsun-beds256") else kind)
    if kind in KEPT:
        assert found == row
    keys = ("network", "schedule", "prediction", "time_input")
    assert [found.sections[key] for key in keys] == [row.sections[key] for key in keys]
    sampler = {key: value for key, value in row.sections["sampling"]["sampler"].items() if key != "eta"}
    assert found.sections["sampling"]["sampler"] == sampler
    assert plan.jsons["unet"].get("use_linear_projection", False) == kind.startswith(("sd2", "sdxl"))
    if kind.startswith("sd2"):  # stock pipelines take the last layer of what they find
        assert (plan.texts["text_encoder"]["layers"], plan.jsons["text_encoder"]["num_hidden_layers"]) == (23, 23)
    assert (found.first_stage, found.scale_factor, found.resolution) == (row.first_stage, row.scale_factor, row.resolution)


def plain(kind, net, **stage):
    row = ZOO[kind]
    return dataclasses.replace(row, kind="", resolution=32, sections=row.sections | {"network": net.section()},
                               first_stage=row.first_stage | dict(width=128, multipliers=(1, 2), blocks=1) | stage)


def wide(kind, *net, **options):
    """A relative wide enough for diffusers' 32 groups."""
    described = smaller(kind, *net, **options)
    return dataclasses.replace(described, first_stage=described.first_stage | dict(width=128), resolution=64)


LIVE = {
    "sd1": wide("sd1", 128, (1, 2), (1,)),
    "inpainting, linear": wide("sd2-inpainting", 128, (1, 2), (2,)),
    "sdxl": wide("sdxl", 128, (1, 2), (2,), depth=(1, 2)),
    "upscaler": wide("sd2-x4-upscaler", 128, (1, 2), (1, 2), text=64),
    "plain, VQ": plain("celeba256", Net(128, (1, 2), (2,), "plain", Heads("width", 32), blocks=1), attention=(16,)),
    "plain, residual": plain("celeba256", Net(128, (1, 1), (1,), "plain", Heads("width", 64), blocks=1, down="residual", scale_shift=True)),
}


@pytest.mark.parametrize("name", LIVE)
def test_live_models_of_our_configs(name):
    """Catches a config.json of which diffusers makes another network, and a key that its own config.json has and ours misread."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    described = LIVE[name]
    if name == "upscaler":
        low = dict(name="low_resolution", levels=20, width=512)
        parts = (described.sections["conditioner"]["parts"][0], low)
        described = dataclasses.replace(described, sections=described.sections | {"conditioner": dict(name="several", parts=parts)})
    plan, found = plan_folder(described), {}
    for part in ("unet", "vae", "vqvae"):
        if part in plan.jsons:
            with torch.device("meta"):
                found[part] = getattr(diffusers, plan.jsons[part]["_class_name"]).from_config(plan.jsons[part])
    jsons = plan.jsons | {part: dict(json.loads(live.to_json_string())) for part, live in found.items()}
    again = describe_folder(jsons | {"model_index": plan.index})
    assert again.sections["network"] == described.sections["network"]
    assert (again.first_stage, again.scale_factor) == (described.first_stage, described.scale_factor)
    read = "text_time" if "sdxl" in name else ""
    proj = "linear" if plan.jsons["unet"].get("use_linear_projection") else "conv"
    names = named(unet_places(unet_of(described), "diffusers", proj, read), unet_shapes(described))
    names |= {"class_embedding.weight": (20, 512)} if name == "upscaler" else {}
    assert names == shapes(found.pop("unet"))
    stage = named(first_stage_places(autoencoder_of(described), "diffusers"), autoencoder_shapes(described))
    assert stage == shapes(found.popitem()[1])


def named(places, ours):
    return {name: shape for place in places for name, shape in place.shapes(ours[place.ours]).items()}


def shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("part, change, said", [
    ("unet", dict(flip_sin_to_cos=False), "flip_sin_to_cos=False has no equal here"),
    ("unet", dict(up_block_types=["UpBlock2D"] * 4), "expected the same on the way up as on the way down"),
    ("unet", dict(in_channels=8), "in_channels=8 with a latent of 4: expected 4, 9, 5"),
    ("unet", dict(class_embed_type="projection", projection_class_embeddings_input_dim=2048), "is told a vector (projection)"),
    ("vae", dict(shift_factor=0.1), "shift_factor=0.1 has no equal here"),
    ("vae", dict(latent_channels=16), "the U-Net gives 4 channels, and the first stage's latent has 16"),
    ("scheduler", dict(_class_name="DEISMultistepScheduler"), "expected one of DDPMScheduler"),
    ("scheduler", dict(_class_name="DDIMScheduler", clip_sample=True), "clip_sample=True clips latents"),
    ("scheduler", dict(skip_prk_steps=False), "skip_prk_steps=False has no equal here"),
    ("text_encoder", dict(hidden_act="relu"), "hidden_act='relu'"),
    ("controlnet", dict(_class_name="ControlNetModel"), "controlnet has no equal here"),
])
def test_what_has_no_equal_is_refused(part, change, said):
    """Catches a setting that is passed over in silence and makes another model."""
    with pytest.raises(UserError) as error:
        describe_folder(SD15 | {part: SD15.get(part, {}) | change})
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("change, sampler, grid", [
    ({}, dict(name="plms"), dict(name="leading", end="lowest")),
    (dict(_class_name="DDIMScheduler", set_alpha_to_one=True, steps_offset=0), dict(name="ddim"), dict(name="leading", offset=0)),
    (dict(_class_name="DDIMScheduler", timestep_spacing="trailing", rescale_betas_zero_snr=True, set_alpha_to_one=True), dict(name="ddim"),
     dict(name="trailing")),
    (dict(_class_name="EulerDiscreteScheduler"), dict(name="euler"), dict(name="linspace", levels="linear")),
    (dict(_class_name="EulerAncestralDiscreteScheduler"), dict(name="euler_ancestral"), dict(name="linspace", levels="linear")),
    (dict(_class_name="DPMSolverMultistepScheduler", use_karras_sigmas=True), dict(name="dpmpp_2m"), dict(name="karras", rounded=True)),
    (dict(_class_name="UniPCMultistepScheduler"), dict(name="unipc"), dict(name="linspace", rounded=True, drop_lowest=True)),
    (dict(_class_name="HeunDiscreteScheduler", use_karras_sigmas=True, timestep_spacing="leading"), dict(name="heun"),
     dict(name="karras", low=1.0, high=981.0))])
def test_schedulers(change, sampler, grid):
    """Catches times of another spacing or offset and another end; what they equal in numbers: tests/diffusion/test_parity_*.py."""
    sections = read_scheduler(STORED | change, 50, 7.5)
    assert (sections["sampling"]["sampler"], sections["sampling"]["grid"]) == (sampler, grid)
    assert sections["schedule"].get("zero_terminal", False) == ("rescale_betas_zero_snr" in change)
    again = read_scheduler(write_scheduler(sections), 50, 7.5)
    heun = sampler["name"] == "heun"  # its span is of 50 leading times: written as DDIM on trailing ones
    assert again | ({"sampling": 0} if heun else {}) == sections | ({"sampling": 0} if heun else {})


def test_noise_of_a_sampler_is_not_in_a_folder():
    """Catches a model sampled with eta 1 that is written with other times than its own, since no scheduler's JSON tells eta."""
    without, sections = ZOO["celeba256"].sections, ZOO["ffhq256"].sections
    assert sections["sampling"]["sampler"] == dict(name="ddim", eta=1.0) and write_scheduler(sections) == write_scheduler(without)
    assert read_scheduler(write_scheduler(sections), 200)["sampling"] == without["sampling"]


def test_ids_of_tokenizers():
    """Catches the end of a text taken from old configs as they are, where it is 2, and a beginning beside it."""
    new = CLIP_L | dict(vocab_size=1000, bos_token_id=998, eos_token_id=999)
    assert [read_clip(new, {})[key] for key in ("bos", "eos", "pad")] == [998, 999, 999]
    assert [read_clip(CLIP_L, {"pad_token": {"content": "!"}})[key] for key in ("bos", "eos", "pad")] == [49406, 49407, 0]


def test_lone_components():
    """Catches a lone first stage without its scale, and one that no row has named after a row."""
    found = describe_folder({"": SD15_VAE | dict(sample_size=256)})
    assert (found.kind, found.sections, found.scale_factor) == ("sd-vae", {}, 0.18215)
    assert describe_folder({"vae": SD15_VAE | dict(scaling_factor=0.2)}).kind == ""
    assert describe_folder({"unet": SD15_UNET}).sections == {"network": ZOO["sd1"].sections["network"]}


def test_a_codebook_without_a_factor_has_factor_one():
    """Catches 0.18215, diffusers' own default, for latents that CompVis trained as they are: the published JSON of a VQModel says none."""
    vq = {key: value for key, value in SD15_VAE.items() if key != "sample_size"}
    vq |= dict(_class_name="VQModel", block_out_channels=[128, 256, 512], latent_channels=3, num_vq_embeddings=8192, vq_embed_dim=3,
               sample_size=256, down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3)
    found = describe_folder({"": vq})
    assert (found.kind, found.scale_factor) == ("vq-f4", 1.0) and found.first_stage == ZOO["celeba256"].first_stage
    assert describe_folder({"": vq | dict(scaling_factor=0.18215)}).scale_factor == 0.18215


@pytest.mark.parametrize("part, key, values, said", [
    ("unet", "block_out_channels", (5, [], [0], [320.5] * 4, ["x"] * 4, None), "a list, each a whole number from 1 to"),
    ("unet", "layers_per_block", (10**9, 0, "2", None, [2, 2, 2, 10**9], [[2]] * 4), "a whole number from 1 to 1000, or a list of such"),
    ("unet", "layers_per_block", ([2],), "expected 4, one for each level, or one for all"),
    ("unet", "transformer_layers_per_block", ([1, 1], [1] * 5), "expected 4, one for each level"),
    ("unet", "attention_head_dim", (None, 0, True, [8, 8, 8, None]), "a whole number from 1 to"),
    ("unet", "attention_head_dim", ([8],), "expected 4, one for each level"),
    ("unet", "cross_attention_dim", ("768", None, -1), "a whole number from 1 to"), ("unet", "cross_attention_dim", ([768],), "expected 4"),
    ("unet", "only_cross_attention", (1, "x"), "true or false"), ("unet", "only_cross_attention", ([True],), "expected 4"),
    ("unet", "dropout", ("x", 2, float("nan"), None), "a number from 0 to 1"), ("unet", "sample_size", ("x", 10**12, -4), "or null"),
    ("unet", "down_block_types", (3, [3], {}), "a list, each a text"), ("unet", "in_channels", (4.0, "4"), "a whole number"),
    ("unet", "num_class_embeds", ("x", [1]), "or null"), ("unet", "norm_num_groups", (0, None, "32"), "a whole number from 1 to"),
    ("vae", "block_out_channels", ([0], 5, [10**9]), "a list, each a whole number from 1 to"),
    ("vae", "scaling_factor", (0, -1, "x", float("inf"), float("nan")), "a number above 0 to 1e+06 or null"),
    ("vae", "layers_per_block", (10**9, [2], None), "a whole number from 1 to 1000"), ("vae", "latent_channels", (10**9, None), "to 4096"),
    ("vae", "mid_block_add_attention", ("no", None), "true or false"), ("vae", "down_block_types", (3,), "a list"),
    ("scheduler", "beta_start", ("x", 0, 2, None), "a number above 0 to 1"),
    ("scheduler", "num_train_timesteps", (10**9, 0, 10.5), "a whole number from 1 to"),
    ("scheduler", "trained_betas", (["x"], 3, []), "a list, each a number from 0 to 1 or null"),
    ("scheduler", "beta_schedule", ([], {}), "a text"), ("scheduler", "prediction_type", ([],), "a text"),
    ("scheduler", "steps_offset", ("x", None), "a whole number"), ("scheduler", "clip_sample", ("no",), "true or false"),
    ("text_encoder", "hidden_size", ("x", 0), "a whole number"), ("text_encoder", "num_hidden_layers", (10**9,), "from 1 to 1000"),
    ("text_encoder", "eos_token_id", ("x", [2]), "or null"), ("text_encoder", "architectures", (3, {"a": 1}), "a list, each a text"),
    ("text_encoder", "vocab_size", (None, 0), "a whole number from 4"), ("model_index", "max_noise_level", ("x", None), "a whole number"),
])
def test_a_value_of_another_type_or_size_is_told_by_its_key(part, key, values, said):
    """Catches a traceback, and modules without end, of a JSON file that was edited, cut or forged."""
    for value in values:
        with pytest.raises(UserError) as error:
            describe_folder(SD15 | {part: SD15[part] | {key: value}})
        assert f"{key}=" in str(error.value) and said in str(error.value) and "\n" not in str(error.value), (value, str(error.value))


@pytest.mark.parametrize("key, values, said", [
    ("d_model", ("x", 0), "a whole number"), ("encoder_layers", (10**9, None), "from 1 to 1000"), ("pad_token_id", (None,), "from 0 to"),
])
def test_a_value_of_another_type_in_ldmberts_file(key, values, said):
    """Catches a traceback of a JSON file that was edited."""
    for value in values:
        with pytest.raises(UserError, match=f"bert: {key}=.*{said}"):
            read_bert(dict(architectures=["LDMBertModel"]) | {key: value})
