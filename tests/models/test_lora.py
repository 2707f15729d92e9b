"""The arithmetic of LoRAs, against numpy in float64 and by exact equality."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import base_key
from ldm_jax.core.trees import paths
from ldm_jax.core.types import Condition
from ldm_jax.models.levels import LevelSpec
from ldm_jax.models.lora import Lora, by_kernel, merge, nested
from ldm_jax.models.unet import UNet

KEY = base_key(0)
KERNELS = {"network/a/to_q/kernel": (6, 4), "network/a/qkv/kernel": (6, 12), "network/b/conv/kernel": (3, 3, 4, 8),
           "network/b/conv/bias": (8,)}


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    tree = nested({path.rsplit("/", 1)[0]: {} for path in KERNELS})
    for path, shape in KERNELS.items():
        *parents, last = path.split("/")
        place = tree
        for name in parents:
            place = place[name]
        place[last] = draw(*shape)
    tree["network"]["b"]["conv"]["bias"][0] = -0.0
    return tree


def merge_one(params, lora, scale):
    return merge(params, [(lora, scale)])


def lora(seed):
    """One of each form: linear, three joined of which the second is none, convolution without alpha."""
    return nested({
        "network/a/to_q/kernel": {"down": draw(6, 2, seed=seed), "up": draw(2, 4, seed=seed), "alpha": np.float32(3)},
        "network/a/qkv/kernel": {"down": draw(3, 6, 2, seed=seed), "up": draw(3, 2, 4, seed=seed), "alpha": np.float32([1, 0, 5])},
        "network/b/conv/kernel": {"down": draw(3, 3, 4, 5, seed=seed), "up": draw(5, 8, seed=seed)}})


def test_merging_is_w_plus_scale_alpha_over_rank_up_times_down(params):
    """Mistakes: alpha without the rank, blocks of q, k and v exchanged or interleaved, a convolution's axes exchanged, two LoRAs of
    which the last alone counts, a product at a low precision."""
    one, two = by_kernel(lora(1)), by_kernel(lora(2))
    merged = dict(paths(jax.jit(lambda p, a, b, s: merge(p, [(a, s), (b, -2.0)]))(params, lora(1), lora(2), 0.7)))
    for path, kernel in paths(params):
        wanted = np.asarray(kernel, np.float64)
        for entries, scale in ((one, 0.7), (two, -2.0)):
            if path in entries:
                down, up = (np.asarray(entries[path][name], np.float64) for name in ("down", "up"))
                if up.ndim == 3:
                    parts = [alpha / 2 * d @ u for alpha, d, u in zip(entries[path]["alpha"], down, up)]
                    wanted = wanted + scale * np.concatenate(parts, axis=1)
                elif down.ndim == 4:
                    wanted = wanted + scale * np.einsum("hwir,ro->hwio", down, up)
                else:
                    wanted = wanted + scale * 3 / 2 * down @ up
        np.testing.assert_allclose(merged[path], wanted, rtol=0, atol=3e-6)


def test_a_scale_of_0_and_what_is_not_adapted_keep_their_bits(params):
    """Mistakes: -0 that becomes 0, an infinite LoRA that is not off at scale 0, bfloat16 that is widened."""
    wild = jax.tree.map(lambda x: np.full_like(x, np.inf), lora(1))
    for kind in (jnp.float32, jnp.bfloat16):
        given = jax.tree.map(lambda x, kind=kind: np.where(np.abs(x) < 0.5, -0.0, x).astype(kind), params)
        off = jax.jit(merge_one)(given, wild, 0.0)
        for (path, before), (_, after) in zip(paths(given), paths(off)):
            assert before.dtype == after.dtype and np.asarray(before).tobytes() == np.asarray(after).tobytes(), path
    assert merge_one(params, lora(1), 1.0)["network"]["b"]["conv"]["bias"].tobytes() == params["network"]["b"]["conv"]["bias"].tobytes()


@pytest.mark.parametrize("entries, told", [
    ({"network/c/kernel": {"down": draw(6, 2), "up": draw(2, 4)}}, r"network/c/kernel \[6, 4\] is not in this model"),
    ({"network/a/to_q/kernel": {"down": draw(5, 2), "up": draw(2, 4)}}, r"is \[6, 4\], the LoRA's \[5, 4\]"),
    ({"network/a/to_q/kernel": {"down": draw(6, 2), "up": draw(3, 4)}}, "do not go together"),
    ({"network/a/to_q/kernel": {"down": draw(6, 2)}}, "expected down, up"),
    ({"network/a/to_q/kernel": {"down": draw(6, 2), "up": draw(2, 4), "dora_scale": draw(4)}}, "is none of down, up, alpha"),
])
def test_what_does_not_fit_is_refused(params, entries, told):
    """Mistake: a LoRA of another model that is left out in silence, or one of another kind that is taken for one."""
    with pytest.raises(UserError, match=told):
        merge(params, [(nested(entries), 1.0)])


def test_a_new_lora_adapts_its_targets_and_changes_nothing_yet():
    """Mistakes: a target that is missed or too many, a transformer's outer projection taken for attention, a start that moves the
    model, one draw for every kernel."""
    network = UNet((LevelSpec(8, 1, "plain", 2), LevelSpec(16, 1, "transformer", 2, down="none")), 4, 16)
    told = Condition(tokens=jnp.zeros((1, 3, 5)))
    shapes = {"network": jax.eval_shape(network.init, KEY, jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), told)["params"],
              "conditioner": {"attention_0": {"to_q": {"kernel": jnp.zeros((3, 3))}}}}
    every = {path for path, leaf in paths(shapes["network"]) if path.endswith("kernel")}
    names = ("attention", "transformers", "all")
    started = jax.jit(lambda key: {name: Lora(2, 1.0, name).start(shapes, key) for name in names})(KEY)
    found = {name: {path.removeprefix("network/") for path in by_kernel(tree)} for name, tree in started.items()}
    assert found["all"] == every
    assert found["transformers"] == {path for path in every if "attention_" in path}
    plain = {f"{place}/{name}/kernel" for place in ("down_0/attention_0", "up_0/attention_0", "up_0/attention_1")
             for name in ("qkv", "proj_out")}
    inner = {path for path in every if "/attn" in path}
    assert len(inner) == 4 * 8 and found["attention"] == plain | inner
    for _, entry in by_kernel(started["all"]).items():
        down, up = entry["down"], entry["up"]
        assert not up.any() and up.shape[0] == down.shape[-1] == 2
        bound = np.prod(down.shape[:-1]) ** -0.5
        assert 0.5 * bound < np.abs(down).max() <= bound
    downs = [np.asarray(entry["down"]).tobytes() for entry in by_kernel(started["all"]).values()]
    assert len(set(downs)) == len(downs)
    with pytest.raises(UserError, match="no such kernel"):
        Lora(2).start({"network": {"conv": {"kernel": jnp.zeros((2, 2))}}}, KEY)
