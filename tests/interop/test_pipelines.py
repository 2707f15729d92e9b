"""Whole pipelines against stock diffusers, live: tokenise, encode, sample, decode, from the same noise and the same folder."""

import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import ldm_jax as ldm  # noqa: E402
from ldm_jax.core.errors import UserError  # noqa: E402
from ldm_jax.core.trees import paths  # noqa: E402
from ldm_jax.publishing import publish  # noqa: E402
from tests.interop import tiny  # noqa: E402
from tests.nn.parity import agree, from_torch, to_torch  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS, WEIGHT = 10, 3.0
# a list for one number, the name of a default
EQUAL_IN_MEANING = ("attention_head_dim", "transformer_layers_per_block", "only_cross_attention", "layers_per_block", "act_fn",
                    "mid_block_only_cross_attention", "dropout", "norm_eps", "sample_size")
PROMPTS = ["a red cat", "dog, dogs"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """name -> (the pipeline, the folder that it wrote), each made when it is asked for."""
    made = {}

    def one(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("pipelines") / name
            made[name] = tiny.PIPELINES[name](), folder
            made[name][0].set_progress_bar_config(disable=True)
            made[name][0].save_pretrained(folder)
        return made[name]

    return one


def ours(model, noise, condition, **more):
    """(latents, images in [0, 1]) of our sampler on the noise."""
    seen = []
    model.sample(condition, seeds=range(len(noise)), noise=noise, every=1000, callback=seen.append, steps=STEPS, **more)
    latents = seen[-1].latents
    images = model.first_stage.decode(model.first_params, jnp.asarray(latents))
    return latents, np.clip(np.asarray(images) / 2 + 0.5, 0, 1)


def stock_ldm(pipe, options):
    """(noise, latents, images) of LDMPipeline, which takes no latents: it draws them, and keeps those that it decodes to itself."""
    noise, kept, decode = torch.randn((2, 3, 8, 8), generator=torch.Generator().manual_seed(0)), [], pipe.vqvae.decode
    pipe.vqvae.decode = lambda latents: (kept.append(latents), decode(latents))[1]
    images = pipe(batch_size=2, generator=torch.Generator().manual_seed(0), **options).images
    return from_torch(noise), from_torch(kept[0]), images


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "ldm_text", "ldm"])
def test_a_whole_pipeline(folders, name):
    """Mistake: a token id, a pad, a hidden state, a size, a scale factor or a sampler's row that is not the pipeline's.

    The folder of "ldm" tells scaling_factor=1.0: without one, stock diffusers divides by 0.18215 and we do not
    (test_diffusers_configs.py).
    """
    pipe, folder = folders(name)
    model = ldm.load(folder)
    side, _, channels = model.experiment.latent_shape
    noise = np.random.default_rng(0).standard_normal((2, side, side, channels)).astype(np.float32)
    options = dict(num_inference_steps=STEPS, output_type="np")
    if name == "ldm":
        condition, guidance = None, 1.0
        noise, sampled, theirs = stock_ldm(pipe, options)
    else:
        condition, guidance = model.condition(prompts=PROMPTS), WEIGHT
        theirs = pipe(PROMPTS, latents=to_torch(noise), guidance_scale=WEIGHT, **options,
                      **({} if name == "ldm_text" else dict(height=16, width=16))).images
    latents, images = ours(model, noise, condition, guidance=guidance)
    if name == "ldm":  # its codes hide small differences
        assert np.abs(latents - sampled).max() < 1e-4 * np.abs(sampled).max()
    held = dict(paths({"model": model.params, "first_stage": model.first_params}))
    agree(f"{name}, pixels", images, theirs, limit=1e-4, of=held)


def test_an_inpainting_pipeline(folders):
    """Mistake: mask and masked image exchanged, the hole of another colour, the mask of another pixel, an unscaled latent."""
    pipe, folder = folders("sd1_inpainting")
    model = ldm.load(folder)
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((1, 8, 8, 4)).astype(np.float32)
    image, mask = rng.integers(0, 256, (16, 16, 3), np.uint8), np.zeros((16, 16), np.uint8)
    mask[3:9, 5:16] = 255
    theirs = pipe(PROMPTS[0], image=Image.fromarray(image), mask_image=Image.fromarray(mask), latents=to_torch(noise), height=16, width=16,
                  strength=1.0, num_inference_steps=STEPS, guidance_scale=WEIGHT, output_type="np").images
    told = model.condition(prompts=PROMPTS[:1], image=image[None], mask=(mask >= 128)[None])
    agree("sd1_inpainting, pixels", ours(model, noise, told, guidance=WEIGHT)[1], theirs, limit=1e-4)


def test_the_command_line_reads_the_folder(folders, tmp_path):
    """Mistake: a prompt, a tokenizer or a size that only the Python API knows."""
    _, folder = folders("sd1")
    model = ldm.load(folder)
    flags = ("--prompt=a (red:1.2) cat", "--negative_prompt=dog", "--steps=2", "--num_samples=2", "--size=24x16")
    done = subprocess.run([sys.executable, "sample.py", f"--model={folder}", *flags, f"--out={tmp_path / 'out'}"], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = model.condition(prompts=["a (red:1.2) cat"], negative_prompts=["dog"])
    wanted = model.sample(told, seeds=[0, 1], steps=2, size=(24, 16))
    found = np.load(tmp_path / "out" / "samples.npz")["arr_0"]
    assert found.shape == (2, 16, 24, 3) and np.abs(found.astype(int) - wanted).max() <= 1
    assert "a (red:1.2) cat" in (tmp_path / "out" / "samples.json").read_text()


@pytest.mark.parametrize("name", ["sd2", "sdxl"])
def test_stock_diffusers_loads_what_is_exported(folders, name, tmp_path):
    """Mistake: a component, a setting or a tensor that stock pipelines miss, or have otherwise than the model that was read."""
    pipe, folder = folders(name)
    publish(folder, tmp_path / "out", "diffusers")
    back = type(pipe).from_pretrained(tmp_path / "out")
    assert back.scheduler.config["prediction_type"] == pipe.scheduler.config["prediction_type"]
    assert type(back.scheduler) is type(pipe.scheduler) and back.tokenizer(PROMPTS).input_ids == pipe.tokenizer(PROMPTS).input_ids
    for part in ("unet", "vae", "text_encoder", *(("text_encoder_2",) if name == "sdxl" else ())):
        first, second = (getattr(one, part).state_dict() for one in (pipe, back))
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    theirs, again = ({key: list(value) if isinstance(value, tuple) else value for key, value in one.unet.config.items()}
                     for one in (pipe, back))
    different = {key: (value, again.get(key)) for key, value in theirs.items() if again.get(key) != value and not key.startswith("_")}
    assert set(different) <= set(EQUAL_IN_MEANING), different


def test_a_file_is_given_its_vocabulary(folders, tmp_path):
    """Mistake: a tokenizer that is named and not written, or a bundle of a published model that no longer reads prompts."""
    pipe, folder = folders("sd1")
    publish(folder, tmp_path / "model.safetensors", "compvis")
    with pytest.raises(UserError, match="came without its tokenizer"):
        ldm.load(tmp_path / "model.safetensors").condition(prompts=PROMPTS)
    for form in ("bundle", "diffusers"):
        publish(tmp_path / "model.safetensors", tmp_path / form, form, tokenizers=(folder / "tokenizer",))
        told = ldm.load(tmp_path / form).condition(prompts=PROMPTS).given.tokens
        agree(form, told, ldm.load(folder).condition(prompts=PROMPTS).given.tokens)
    assert type(pipe).from_pretrained(tmp_path / "diffusers").tokenizer(PROMPTS).input_ids == pipe.tokenizer(PROMPTS).input_ids
    with pytest.raises(UserError, match="no such folder"):
        publish(tmp_path / "model.safetensors", tmp_path / "other", "diffusers", tokenizers=(tmp_path / "nothing",))
