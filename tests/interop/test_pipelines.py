"""Whole pipelines against stock diffusers, live: tokenise, encode, sample, decode, from the same noise and the same folder."""

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import ldm_jax as ldm  # noqa: E402
from ldm_jax.core.trees import paths  # noqa: E402
from tests.interop import tiny  # noqa: E402
from tests.nn.parity import agree, from_torch, to_torch  # noqa: E402

STEPS, WEIGHT = 10, 3.0
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


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "ldm_text", "ldm"])
def test_a_whole_pipeline(folders, name):
    """Mistake: a token id, a pad, a hidden state, a size, a scale factor or a sampler's row that is not the pipeline's."""
    pipe, folder = folders(name)
    model = ldm.load(folder)
    side, _, channels = model.experiment.latent_shape
    noise = np.random.default_rng(0).standard_normal((2, side, side, channels)).astype(np.float32)
    options = dict(num_inference_steps=STEPS, output_type="np")
    if name == "ldm":
        condition, guidance = None, 1.0
        latents = to_torch(noise)
        with torch.no_grad():
            pipe.scheduler.set_timesteps(STEPS)
            for t in pipe.scheduler.timesteps:
                latents = pipe.scheduler.step(pipe.unet(latents, t).sample, t, latents, eta=0.0).prev_sample
            theirs = from_torch((pipe.vqvae.decode(latents).sample / 2 + 0.5).clamp(0, 1))
    else:
        condition, guidance = model.condition(prompts=PROMPTS), WEIGHT

        theirs = pipe(PROMPTS, latents=to_torch(noise), guidance_scale=WEIGHT, **options,
                      **({} if name == "ldm_text" else dict(height=16, width=16))).images
    latents, images = ours(model, noise, condition, guidance=guidance)
    held = dict(paths({"model": model.params, "first_stage": model.first_params}))
    agree(f"{name}, pixels", images, theirs, limit=1e-4, of=held)
