"""Perturbed attention: the map is the identity in the places named, nowhere else, and no parameter changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.core.types import Condition
from ldm_jax.models.unet import LevelSpec, UNet
from ldm_jax.nn import attention as blocks
from ldm_jax.nn.attention import PlainAttention, TokenAttention
from tests.untrained import shaken


def test_the_identity_map_gives_each_position_its_own_value():
    """Catches a uniform map, and values of another third of qkv: attention whose logits are huge on the diagonal says the same."""
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 8))
    params = shaken(PlainAttention(2).init(jax.random.key(1), x)["params"], 1.0, 2)
    got = PlainAttention(2, identity=True).apply({"params": params}, x)
    h = blocks.GroupNorm(1e-5).apply({"params": params["norm"]}, x).reshape(2, 9, 8)
    value = h @ params["qkv"]["kernel"][:, 16:] + params["qkv"]["bias"][16:]
    np.testing.assert_allclose(got, x + (value @ params["proj_out"]["kernel"] + params["proj_out"]["bias"]).reshape(x.shape), atol=1e-4)
    assert not np.allclose(got, PlainAttention(2).apply({"params": params}, x), atol=1e-2)


def test_the_identity_map_of_tokens():
    """The same for the transformers' self-attention."""
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    params = TokenAttention(2).init(jax.random.key(1), x, x)["params"]
    got = TokenAttention(2, identity=True).apply({"params": params}, x, x)
    np.testing.assert_allclose(got, x @ params["to_v"]["kernel"] @ params["to_out"]["kernel"] + params["to_out"]["bias"], atol=1e-5)


@pytest.mark.parametrize("attention", ["plain", pytest.param("transformer", marks=pytest.mark.slow)])
def test_places_of_a_network(attention):
    """Catches a place that is not read, one that reaches its neighbours, attention to tokens disturbed too, and new parameters."""
    levels = (LevelSpec(8, 1), LevelSpec(16, 1, attention, 2, down="none"))
    network = UNet(levels, out_channels=2, time_width=16)
    assert network.places == ("down_1", "middle", "up_1")
    x, time = jax.random.normal(jax.random.key(0), (2, 4, 4, 2)), jnp.asarray([3.0, 700.0])
    told = Condition(tokens=jax.random.normal(jax.random.key(5), (2, 3, 8))) if attention == "transformer" else Condition()
    params = shaken(network.init(jax.random.key(1), x, time, told)["params"], 0.3, 2)
    def run(places, told=told):
        return network.apply({"params": params}, x, time, told, identity=places)

    assert jax.tree.structure(network.init(jax.random.key(1), x, time, told, identity=("middle",))["params"]) == jax.tree.structure(params)
    images = [run(places) for places in ((), ("middle",), ("down_1",), ("up_1",), network.places)]
    for i, image in enumerate(images):
        for other in images[:i]:
            assert np.abs(image - other).max() > 1e-4
    named = network.places

    def parts(places):
        found = network.apply({"params": params}, x, time, told, identity=places, capture_intermediates=lambda m, _: m.name in named)
        return [jax.tree.leaves(found[1]["intermediates"][name]) for name in named]

    for i, place in enumerate(network.places):  # what comes before a disturbed place does not notice it
        for before, same in zip(parts((place,))[:i], parts(())):
            np.testing.assert_array_equal(before[0], same[0])
    if attention == "transformer":
        other = Condition(tokens=told.tokens + 1.0)
        assert np.abs(run(network.places) - run(network.places, other)).max() > 1e-4, "tokens are not read any more"
    with pytest.raises(UserError, match="identity='down_0': this network has self-attention in down_1"):
        run(("down_0",))
