"""What is trained here, in the layouts of others: stock diffusers loads it and agrees, and it comes back as it was."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import ldm_jax as ldm  # noqa: E402
from ldm_jax import loading, published  # noqa: E402
from ldm_jax.core.errors import UserError  # noqa: E402
from ldm_jax.core.trees import paths  # noqa: E402
from ldm_jax.publishing import publish  # noqa: E402
from tests.nn.parity import agree, from_torch, to_torch  # noqa: E402


@pytest.fixture(scope="module")
def exported(trained_ldm, tmp_path_factory):
    """(the model, its folder of diffusers)."""
    out = tmp_path_factory.mktemp("exported") / "folder"
    publish(trained_ldm, out, "diffusers")
    return ldm.load(trained_ldm), out


def images(count=2):
    return np.random.default_rng(0).uniform(-1, 1, (count, 32, 32, 1)).astype(np.float32)


def test_stock_diffusers_loads_what_was_trained_here(exported):
    """Mistake: a unit left out or folded twice, raw weights for the average, a class's row moved, groups or heads of another number."""
    model, folder = exported
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    assert type(pipe).__name__ == "LDMPipeline" and pipe.vqvae.config.scaling_factor == 1.0
    latents = model.encode(images())
    with torch.no_grad():
        agree("encoded", latents, from_torch(pipe.vqvae.encode(to_torch(images())).latent_dist.mean))
        theirs = from_torch(pipe.vqvae.decode(to_torch(latents)).sample)
        agree("decoded", model.first_stage.decode(model.first_params, latents), theirs)
        labels, null = [3, 10], model.experiment.facts.classes  # 10: told nothing
        assert pipe.unet.config.num_class_embeds == null + 1
        noisy, times = np.random.default_rng(1).standard_normal(latents.shape).astype(np.float32), np.float32([10, 900])
        condition = jax.tree.map(lambda a, b: np.concatenate([a, b]), model.condition(labels=[3]).given, model.null(1))
        ours = model.experiment.network.apply({"params": model.params["network"]}, noisy, times, condition)
        theirs = pipe.unet(to_torch(noisy), torch.from_numpy(times), class_labels=torch.tensor(labels)).sample
        agree("network", ours, from_torch(theirs))
    assert pipe.scheduler.config.prediction_type == "v_prediction"


def leaves(path):
    opened = loading.Opened(path)
    return {name: np.asarray(leaf) for name, leaf in paths(opened.trees)}


def test_it_comes_back_as_it_was_written(exported, trained_ldm, tmp_path):
    """Mistake: a tensor lost, transposed or rounded on the way out or back; settings that only our own config knew."""
    model, folder = exported
    publish(folder, tmp_path / "again", "diffusers")
    publish(folder, tmp_path / "file.safetensors", "compvis")
    publish(tmp_path / "file.safetensors", tmp_path / "again.safetensors", "compvis")
    first = leaves(folder)
    for other in (tmp_path / "again", tmp_path / "file.safetensors", tmp_path / "again.safetensors"):
        second = leaves(other)
        assert first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)
    back = ldm.load(tmp_path / "file.safetensors")
    assert back.experiment.network.levels == model.experiment.network.levels and back.experiment.facts.classes == 10
    publish(trained_ldm, tmp_path / "own.safetensors", "compvis")
    own = ldm.load(tmp_path / "own.safetensors")
    assert own.experiment.sampling == model.experiment.sampling
    labels, seeds = [3, 7], [0, 1]
    ours, theirs = (one.sample(one.condition(labels=labels), seeds=seeds).astype(int) for one in (model, own))
    assert np.abs(ours - theirs).max() <= 1


@pytest.mark.slow
def test_a_first_stage_alone(exported, trained_autoencoder, tmp_path):
    """Mistake: an autoencoder that needs its diffusion model to be written."""
    publish(trained_autoencoder, tmp_path / "stage", "diffusers")
    stage = diffusers.AutoencoderKL.from_pretrained(tmp_path / "stage")
    with torch.no_grad():
        theirs = from_torch(stage.encode(to_torch(images())).latent_dist.mean)
    agree("encoded", ldm.load(trained_autoencoder).encode(images()), theirs)
    agree("read back", ldm.load(tmp_path / "stage").encode(images()), theirs)


def test_what_cannot_be_written_is_told(exported, trained_ldm, tmp_path):
    """Mistake: a half-written folder, a file overwritten, a bundle rounded in silence."""
    (tmp_path / "there.safetensors").write_text("x")
    for out, form, options, match in (("there.safetensors", "compvis", {}, "exists already"), ("x.ckpt", "compvis", {}, "no pickles"),
                                      ("b", "bundle", {"dtype": "float16"}, "in float32"), ("c", "onnx", {}, "expected one of bundle"),
                                      ("d", "compvis", {"reading": loading.Reading("sd1")}, "says what it is")):
        with pytest.raises(UserError, match=match):
            publish(trained_ldm, tmp_path / out, form, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there.safetensors"]
    assert published.is_published(exported[1]) and not published.is_published(trained_ldm)
