"""The first stage's doors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import base_key, key_for
from ldm_jax.models.autoencoder import AUTOENCODERS, LAST_KERNEL, Autoencoder, Identity
from ldm_jax.models.bottleneck import KL, VectorQuantiser
from tests.nn.parity import random_like, shapes_of

FIELDS = dict(channels=1, resolution=16, width=16, multipliers=(1, 2, 2), blocks=1, latent_channels=3)
IMAGE = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16, 1)).astype(np.float32)
KEYS = key_for(base_key(3), "posterior", example=jnp.arange(3))


@pytest.fixture(scope="module", params=["kl", "vq"])
def stage(request):
    model = Autoencoder(**FIELDS, bottleneck=KL() if request.param == "kl" else VectorQuantiser(codes=8))
    params = random_like(shapes_of(model, IMAGE), 0)

    @functools.cache
    def program(method):
        return jax.jit(lambda p, *a: model.apply({"params": p}, *a, method=method))

    def apply(method, *args, params=params):
        return program(method)(params, *args)

    return request.param, model, params, apply


def test_reconstruction_is_decode_of_encode(stage):
    """Mistake: the diffusion side encodes or decodes otherwise than stage 1 was trained (VQ not quantised, KL drawn twice)."""
    kind, model, _, apply = stage
    latent = apply("encode", IMAGE, KEYS)
    whole = apply("reconstruct", IMAGE, KEYS)
    assert latent.shape == (3, *model.latent_shape) == (3, 4, 4, 3) and whole.image.shape == IMAGE.shape
    np.testing.assert_allclose(latent, whole.bottleneck.latent, atol=1e-6)
    np.testing.assert_allclose(apply("decode", latent), whole.image, atol=1e-5)
    same = np.allclose(latent, apply("encode", IMAGE))
    assert same == (kind == "vq"), "KL draws with keys, VQ has nothing to draw"
    if kind == "vq":
        assert not np.allclose(apply("decode", latent), apply("decode", 2.0 * latent + 0.1), atol=1e-6)


def test_last_layer_is_the_decoders_last_convolution(stage):
    """Mistake: features from before the norm or the activation, or LAST_KERNEL naming another kernel."""
    _, model, params, apply = stage
    whole = apply("reconstruct", IMAGE, KEYS)
    np.testing.assert_array_equal(apply("last_layer", whole.features), whole.image)
    kernel = params
    for name in LAST_KERNEL:
        kernel = kernel[name]
    moved = jax.tree.map(lambda x: x, params)
    moved["decoder"]["conv_out"]["kernel"] = jnp.zeros_like(kernel)
    blank = apply("reconstruct", IMAGE, KEYS, params=moved).image
    np.testing.assert_array_equal(blank, jnp.broadcast_to(params["decoder"]["conv_out"]["bias"], blank.shape))


def test_an_example_has_no_neighbours(stage):
    """Mistake: a statistic or a draw over the batch."""
    _, _, _, apply = stage
    np.testing.assert_allclose(apply("reconstruct", IMAGE, KEYS).image[1:2], apply("reconstruct", IMAGE[1:2], KEYS[1:2]).image, atol=1e-5)


def test_bfloat16_is_inside_only():
    """Mistake: bfloat16 parameters, latents or images outside of the network."""
    model = Autoencoder(**FIELDS, bottleneck=KL(), dtype="bfloat16")
    params = jax.eval_shape(model.init, jax.random.key(0), IMAGE)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    whole = jax.eval_shape(model.apply, params, IMAGE)
    assert (whole.image.dtype, whole.bottleneck.latent.dtype, whole.features.dtype) == (jnp.float32, jnp.float32, jnp.bfloat16)


def test_what_does_not_fit_is_named():
    """Mistake: attention that silently never happens, or a size that fails deep inside a convolution."""
    with pytest.raises(UserError, match="no level has the resolution 6; the levels have 16, 8, 4"):
        Autoencoder(**FIELDS, bottleneck=KL(), attention=(6,))
    with pytest.raises(UserError, match="resolution=18: expected a multiple of 4"):
        Autoencoder(**FIELDS | dict(resolution=18), bottleneck=KL())
    model = Autoencoder(**FIELDS, bottleneck=KL())
    with pytest.raises(UserError, match="16x18 .* not divisible by 4; .* 16x16 and 16x20"):
        jax.eval_shape(model.init, jax.random.key(0), IMAGE.repeat(2, axis=2)[:, :, :18])
    with pytest.raises(UserError, match="C is 3, not 1"):
        jax.eval_shape(model.init, jax.random.key(0), IMAGE.repeat(3, axis=3))
    with pytest.raises(UserError, match="float32, bfloat16"):
        Autoencoder(**FIELDS, bottleneck=KL(), dtype="fp16")


def test_identity_changes_nothing():
    """Mistake: pixel diffusion that clamps, scales or needs parameters."""
    model = Identity(channels=1, resolution=16)
    assert AUTOENCODERS["identity"] is Identity and model.factor == 1 and model.latent_shape == (16, 16, 1)
    assert not jax.tree.leaves(model.init(jax.random.key(0), IMAGE))
    image = 3 * IMAGE
    assert np.array_equal(model.apply({}, model.apply({}, image, method="encode"), method="decode"), image)
    assert np.array_equal(model.apply({}, image, method="reconstruct").image, image)
