"""`cli.evaluate --measure=likelihood`: the page of a latent model, of a pixel model, of a first stage; and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ldm_jax as ldm
from ldm_jax import data_choices, evaluate
from ldm_jax.config_tree import from_json
from ldm_jax.core.errors import NumbersWentBad, UserError
from ldm_jax.core.keys import base_key, key_for
from ldm_jax.evals.likelihood import likelihood
from ldm_jax.likelihood import Likely
from tests.untrained import save_untrained

RNG = np.random.default_rng(0)


def test_rows_are_means_with_their_errors():
    """Catches padding that is counted, bits that are nats, an error that is a deviation, and variances that are averaged, not added."""
    nats, variance = RNG.normal(100, 7, 30), RNG.uniform(1, 2, 30)
    batches = [{"weight": np.ones(16), "rows": slice(0, 16)}, {"weight": np.arange(16) < 14, "rows": slice(16, 32)}]
    padded = {"bound": np.append(nats, [1e9, 1e9]), "bound_variance": np.append(variance, [1e9, 1e9])}
    found = likelihood(lambda batch: {name: x[batch["rows"]] for name, x in padded.items()}, batches, {"bound": 50})
    row = found["bound"]
    assert found["images"] == 30 and row["dimensions"] == 50
    np.testing.assert_allclose([row["nats"], row["nats_per_dimension"]], [nats.mean(), nats.mean() / 50])
    np.testing.assert_allclose(row["bits_per_dimension"], np.log2(np.exp(nats.mean() / 50)))
    np.testing.assert_allclose(row["error_images"], np.std(nats, ddof=1) / 30**0.5)
    np.testing.assert_allclose(row["error_draws"], variance.sum() ** 0.5 / 30)


def test_bad_numbers_are_not_averaged():
    """Catches a mean that is NaN, or one over the images that were finite."""
    with pytest.raises(NumbersWentBad, match="latent bound is not finite for 1 of 2"):
        likelihood(lambda batch: {"latent_bound": np.array([1, np.nan])}, [{"weight": np.ones(2)}], {"latent_bound": 1})
    with pytest.raises(UserError, match="no images"):
        likelihood(lambda batch: {"latent_bound": np.zeros(2)}, [{"weight": np.zeros(2)}], {"latent_bound": 1})


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_autoencoder_config, make_ldm_config):
    """Untrained runs: a KL first stage with random parameters, a diffusion model on it; and, asked for by name, others."""
    place = tmp_path_factory.mktemp("runs")
    save_untrained(make_autoencoder_config(**{"loss.kl": 0.25, "loss.pixel": "l2"}), place / "autoencoder", 3, noise=0.1)
    save_untrained(make_ldm_config(place / "autoencoder"), place / "ldm", 3, noise=0.1)
    return place


@pytest.fixture(scope="module")
def model(folder):
    return ldm.load(folder / "ldm")


@pytest.fixture(scope="module")
def page(model):
    """Of the first 20 images, 6 of them by the probability flow, in batches of 16."""
    return evaluate.evaluate(model, Likely(times=4, images=20, ode_images=6, ode_steps=2, ode_probes=2, batch_size=16))


def test_the_page_of_a_latent_model(page, tmp_path):
    """Catches terms that do not add up to the bound, and a number without saying of what."""
    parts = [page["latent_" + name]["nats"] for name in ("prior", "transitions", "reconstruction")]
    assert abs(sum(parts) / page["latent_bound"]["nats"] - 1) < 1e-5
    assert page["latent_bound"]["error_draws"] > 0 and page["latent_probability_flow"]["error_draws"] > 0
    assert page["latent_bound"]["dimensions"] == 128 and page["autoencoder_negative_elbo"]["dimensions"] == 1024
    told = evaluate.told(page, "tiny", str(tmp_path / "likelihood.json"))
    for word in ("latent bound", "bits per dimension", "of the latent in its units, 128 dimensions", "times 4 of 999 transitions",
                 "6 images, 2 steps of rk4, 2 Hutchinson probes", "beta 0.25", "images 20", "test of digits"):
        assert word in told, f"{word!r} is missing:\n{told}"
    assert json.loads((tmp_path / "likelihood.json").read_text())["latent_bound"] == page["latent_bound"]


def test_the_numbers_do_not_depend_on_the_batch(page, model):
    """Catches draws by place in the batch, and conditions or weights of the wrong rows."""
    request = Likely(times=4, images=20, batch_size=5)
    seen = []
    other = evaluate.evaluate(model, request, seen.append)
    assert seen[-1] == evaluate.total(model, request) == 40 and seen == sorted(seen)
    for name in page.keys() - {"settings", "latent_probability_flow"}:
        np.testing.assert_allclose(other[name]["nats"], page[name]["nats"], rtol=2e-4, err_msg=name)


def test_the_elbo_is_the_trained_loss(page, model):
    """Catches a Gaussian of another scale than the loss, beta left out, and the posterior's mean in the place of a draw: for L2 the ELBO
    is the sum of squares, beta KL, and the constant that makes exp(-d^2) a density."""
    source = data_choices.open_source(from_json(model.manifest.config), "test")
    image = jnp.asarray(np.stack([source[i]["image"] for i in range(20)]) / 127.5 - 1, jnp.float32)
    keys = key_for(base_key(0), "likelihood", example=jnp.arange(20))
    keys = jax.vmap(lambda key: key_for(key, "posterior"))(keys)
    out = model.experiment.autoencoder.apply({"params": model.first_params}, image, keys, method="reconstruct")
    squares = float(jnp.sum(jnp.square(out.image - image)) / 20)
    kl = float(jnp.mean(out.bottleneck.kl))
    wanted = {"autoencoder_reconstruction": squares + 1024 * np.log(np.sqrt(np.pi)), "autoencoder_beta_kl": 0.25 * kl}
    for name, value in wanted.items():
        np.testing.assert_allclose(page[name]["nats"], value, rtol=1e-4)
    np.testing.assert_allclose(page["autoencoder_negative_elbo"]["nats"], sum(wanted.values()), rtol=1e-4)


@pytest.mark.slow
def test_pixels_are_measured_as_pixels(make_ldm_config, tmp_path):
    """Catches a density in the place of a probability: a fresh network ends in zeros, and v = 0 is a flow that stands still, so that
    -ln P is that of the image itself under N(0, 1) from its smallest level on, with the intervals' ln 127.5 a dimension."""
    save_untrained(make_ldm_config("pixels"), tmp_path / "run")
    model = ldm.load(tmp_path / "run")
    found = evaluate.evaluate(model, Likely(times=2, images=4, ode_images=2, ode_steps=2, ode_probes=2))
    assert found["settings"]["of"] == "the uint8 image, 1024 dimensions" and "autoencoder" not in found["settings"]
    assert "discretised Gaussian" in found["settings"]["decoder"] and found["image_bound"]["dimensions"] == 1024
    assert found["image_reconstruction"]["nats"] > 0
    source, schedule = data_choices.open_source(from_json(model.manifest.config), "test"), model.experiment.objective.schedule
    image = np.stack([source[i]["image"] for i in range(2)]) / 127.5 - 1
    begin = schedule.alphas[0]
    wanted = np.sum((begin * image) ** 2) / 4 + 1024 * (np.log(2 * np.pi) / 2 - np.log(begin) + np.log(127.5))
    np.testing.assert_allclose(found["image_probability_flow"]["nats"], wanted, rtol=2e-4)


@pytest.mark.slow
def test_a_schedule_without_a_bound(folder, make_ldm_config, tmp_path):
    """Catches a discrete bound of a schedule of real time, and a refusal that does not say what it has instead."""
    changes = {"schedule": {"name": "flow"}, "prediction": {"name": "flow"}, "sampling.sampler": {"name": "euler"}}
    save_untrained(make_ldm_config(folder / "autoencoder", **changes), folder / "flow", noise=0.1)
    model = ldm.load(folder / "flow")
    with pytest.raises(UserError, match="time is real: take the likelihood by the probability-flow equation, with --ode_images=16"):
        evaluate.evaluate(model, Likely())


def test_first_stages(folder, make_autoencoder_config, tmp_path):
    """Catches an ELBO of a VQ autoencoder, which has no KL, and a probability flow without a diffusion model."""
    found = evaluate.evaluate(ldm.load(folder / "autoencoder"), Likely(images=4))
    assert set(found) == {"autoencoder_reconstruction", "autoencoder_beta_kl", "autoencoder_negative_elbo", "settings"}
    with pytest.raises(UserError, match="--ode_images: a first stage has no probability flow"):
        evaluate.evaluate(ldm.load(folder / "autoencoder"), Likely(images=4, ode_images=2))
    save_untrained(make_autoencoder_config(**{"model.bottleneck": {"name": "vq", "codes": 16}}), tmp_path / "vq")
    with pytest.raises(UserError, match="a VQ first stage has no KL"):
        evaluate.evaluate(ldm.load(tmp_path / "vq"), Likely())


@pytest.mark.parametrize("options, word", [({"times": 3}, "--likelihood_times=3: expected an even"), ({"images": -1}, "--images=-1"),
                                           ({"ode_probes": 1}, "--ode_probes=1"), ({"ode_steps": 0}, "--ode_steps=0"),
                                           ({"batch_size": 0}, "--batch_size=0"), ({"seed": -1}, "--seed=-1")])
def test_requests_are_checked(options, word):
    """Catches a wrong number that is found after the model was loaded, or never."""
    with pytest.raises(UserError, match=word):
        Likely(**options)
