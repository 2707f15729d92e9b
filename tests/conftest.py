"""Shared by every test: the CPU, one compilation cache outside the repository, and no network."""

import os
import pathlib
import tempfile

CACHE = os.environ.get("XDG_CACHE_HOME") or tempfile.gettempdir()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(CACHE) / "ldm_jax_tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")  # half the time to compile; tiny models run as fast

import pytest  # noqa: E402  (after the environment is set)


def tiny_autoencoder(**changes):
    """A stage 1 config that trains in milliseconds a step: digits, f = 4, 2 latent channels."""
    from configs.base import autoencoder

    config = autoencoder()
    config.model.update(width=8, multipliers=(1, 1, 2), blocks=1, latent_channels=2, middle_attention=False)
    config.data.batch = 8
    config.learning_rate.update(peak=1e-3, warmup=2, steps=40)
    config.latent_units.images = 64
    config.run.update(steps=6, log_every=1, evaluate_every=0, preview_every=0, save_every=3, keep_last=3)
    return updated(config, changes)


def tiny_ldm(first_stage, **changes):
    """A stage 2 config on the latents of a tiny first stage (or "pixels")."""
    from configs.base import ldm

    config = ldm()
    config.first_stage = str(first_stage)
    config.network.update(time_width=32, levels=(dict(width=8, blocks=1, attention="none", heads=1, depth=1, down="conv"),
                                                 dict(width=16, blocks=1, attention="plain", heads=2, depth=1, down="none")))
    config.conditioner.width = 8
    config.data.batch = 8
    config.learning_rate.update(peak=1e-3, warmup=2, steps=40)
    config.sampling.steps = 3
    config.run.update(steps=6, log_every=1, evaluate_every=0, preview_every=0, save_every=3, keep_last=3)
    return updated(config, changes)


def tiny_classifier(first_stage, **changes):
    """A stage 3 config on the latents of a tiny first stage (or "pixels"), of the schedule of tiny_ldm."""
    from configs.base import classifier

    config, diffusion = classifier(), tiny_ldm(first_stage)
    config.first_stage = str(first_stage)
    config.network.update(time_width=16, pool_heads=2, levels=diffusion.network.levels)
    config.data.batch = 8
    config.learning_rate = diffusion.learning_rate
    config.run = diffusion.run
    return updated(config, changes)


def tiny_embedding(**changes):
    """A config of an embedder of shapes of 8x8 pixels and their captions, by bytes."""
    from configs.base import embedding

    config = embedding()
    layers = dict(width=16, layers=1, heads=2)
    config.data.update(source=dict(name="shapes", resolution=8, records=40), resolution=8, batch=8)
    config.network.update(projection=8, image=layers | dict(patch=4),
                          text=layers | dict(vocabulary=259, length=96, bos=256, eos=257, pad=258))
    config.learning_rate.update(peak=1e-3, warmup=2, steps=40)
    config.run.update(steps=6, log_every=1, evaluate_every=0, preview_every=0, save_every=3, keep_last=3)
    return updated(config, changes)


def updated(config, changes):
    """Dotted keys to new values; a dict replaces its section whole."""
    from ml_collections import ConfigDict

    for key, value in changes.items():
        *sections, last = key.split(".")
        place = config
        for section in sections:
            place = place[section]
        place[last] = ConfigDict(value) if isinstance(value, dict) else value
    return config


@pytest.fixture(scope="session")
def make_autoencoder_config():
    from ldm_jax.config_file import plain

    return lambda **changes: plain(tiny_autoencoder(**changes))


@pytest.fixture(scope="session")
def make_ldm_config():
    from ldm_jax.config_file import plain

    return lambda first_stage, **changes: plain(tiny_ldm(first_stage, **changes))


@pytest.fixture(scope="session")
def make_classifier_config():
    from ldm_jax.config_file import plain

    return lambda first_stage, **changes: plain(tiny_classifier(first_stage, **changes))


@pytest.fixture(scope="session")
def trained_autoencoder(tmp_path_factory, make_autoencoder_config):
    """The run folder of a tiny KL first stage, trained for 6 steps."""
    from ldm_jax import launch

    folder = tmp_path_factory.mktemp("first") / "autoencoder"
    launch.train(make_autoencoder_config(), str(folder))
    return folder


@pytest.fixture(scope="session")
def trained_ldm(trained_autoencoder, make_ldm_config):
    """The run folder of a tiny diffusion model on `trained_autoencoder`, trained for 6 steps."""
    from ldm_jax import launch

    folder = trained_autoencoder.parent / "ldm"
    launch.train(make_ldm_config(trained_autoencoder), str(folder))
    return folder
