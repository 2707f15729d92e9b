"""Samples at other sizes, by tiles, in another precision and with a refiner. Each test says which mistake it catches.

All of one tiny model with random parameters: f = 4, and a network that halves once, so that sides are multiples of 8 pixels.
"""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ldm_jax as ldm
from ldm_jax import output, pipeline, tiles
from ldm_jax.asked import given_of, prepare
from ldm_jax.core.errors import UserError
from ldm_jax.core.trees import paths
from ldm_jax.core.types import Condition
from ldm_jax.data.digits import Digits
from ldm_jax.diffusion.guidance import Guided
from ldm_jax.diffusion.sample import advance, image_keys, start
from ldm_jax.models.condition import ClassConditioner
from ldm_jax.ops.images import write_png
from ldm_jax.precision import computing_in, in_dtype
from ldm_jax.sampling import parts_of, way_of
from ldm_jax.sizes import latent_shape, parse_size

SEEDS, SHAPE = [5, 6], (6, 14, 2)
FEW = {"steps": 3, "sampler": "ddim", "guidance": 1.0, "size": (56, 24)}
TRAINED = FEW | {"size": None}
WIDE = np.tile(Digits("test").images[:2], (1, 1, 2, 1))[:, 4:28, 4:60]  # 24 high, 56 wide
CALM = {"steps": 10, "grid": "trailing", "sampler": "dpmpp_2m", "size": (56, 24)}


def copied(tree, noise: float = 0.0, seed: int = 0):
    """The same arrays again, or with noise added: untrained networks end in zeros, and then no input reaches the output."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jax.device_put(np.float32(np.asarray(x) + noise * rng.standard_normal(x.shape)), x.sharding), tree)


@pytest.fixture(scope="module")
def model(trained_ldm):
    loaded = ldm.load(trained_ldm)
    return dataclasses.replace(loaded, params=copied(loaded.params, 0.1), first_params=copied(loaded.first_params, 0.2))


@pytest.fixture(scope="module")
def refiner(model):
    return dataclasses.replace(model, params=copied(model.params, 0.1, 1))


@pytest.fixture(scope="module")
def told(model):
    return model.condition(labels=[1, 2])


def apart(a, b) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def way_for(model, asked):
    return way_of(parts_of(model.experiment), model.sampling(**{name: value for name, value in asked.items() if name != "size"}))


def last_of(model, told, **asked) -> np.ndarray:
    """The latents that a sample ends with."""
    seen = []
    model.sample(told, seeds=SEEDS, callback=seen.append, every=99, **asked)
    return seen[-1].latents


def test_a_size_is_width_and_height(model, told):
    """Catches the two exchanged, and draws or a start of the trained size."""
    seen = []
    made = model.sample(told, seeds=SEEDS, callback=seen.append, every=3, **FEW)
    assert made.shape == (2, 24, 56, 1) and seen[-1].latents.shape == (2, 6, 14, 2)
    way = way_for(model, FEW)
    state = start(way.table, image_keys(SEEDS), SHAPE)
    wanted = advance(parts_of(model.experiment).denoise(), model.params, way.table, state, model.spread(told, 2)).x
    np.testing.assert_allclose(seen[-1].latents, wanted, atol=1e-4)
    assert apart(made, model.decode(seen[-1].latents)) <= 1


def test_pictures_have_the_size_too(model, told):
    """Catches an init or a mask held against the trained size, and a kept part that is not the original to the pixel."""
    mask = np.zeros((24, 56), bool)
    mask[:, 40:] = True
    job = prepare(model, told, 2, FEW | {"init": WIDE, "mask": mask})
    assert job.inputs.shape == SHAPE == job.inputs.clean.shape[1:] and job.inputs.keep.shape == (2, 6, 14, 1)
    np.testing.assert_array_equal(job.finished(np.zeros_like(WIDE), np.arange(2)), np.where(mask[..., None], 0, WIDE))
    for asked, says in ((TRAINED | {"init": WIDE, "strength": 0.5}, r"init: expected images \[N, 32, 32, 1\], got \[2, 24, 56, 1\]"),
                        (FEW | {"noise": np.zeros((2, 14, 6, 2))}, r"noise: expected \[N, 6, 14, 2\]")):
        with pytest.raises(UserError, match=says):
            model.sample(told, seeds=SEEDS, **asked)


SMALL = types.SimpleNamespace(latent_shape=(8, 8, 2), autoencoder=types.SimpleNamespace(factor=4), network=types.SimpleNamespace(factor=2))
REFUSED = [((60, 24), "size 60x24: this model makes sides that are multiples of 8; nearest: 64x24"), ((0, 8), "nearest: 8x8"),
           ((8, 8, 8), r"expected \(width, height\)"), ("8x8", r"expected \(width"), ((8.0, 8), r"expected \(width"), (32, "width")]


@pytest.mark.parametrize("size, says", REFUSED, ids=[says for _, says in REFUSED])
def test_a_size_that_does_not_fit_names_the_nearest(size, says):
    """Catches a size that only breaks inside the compiled network, or is rounded in silence."""
    with pytest.raises(UserError, match=says):
        latent_shape(SMALL, size)


def test_where_a_size_comes_from():
    """Catches an image condition of another size that is met as a shape error in the network, and a refiner that halves more often."""
    told = np.zeros((1, 6, 14, 5))
    assert latent_shape(SMALL) == (8, 8, 2) and latent_shape(SMALL, None, told) == (6, 14, 2) == latent_shape(SMALL, (56, 24), told)
    with pytest.raises(UserError, match="size 32x32: the condition's image was made for 56x24"):
        latent_shape(SMALL, (32, 32), told)
    with pytest.raises(UserError, match="multiples of 16; nearest: 64x32"):
        latent_shape(SMALL, (56, 24), divisor=4)
    assert parse_size("512x768") == (512, 768) and parse_size("") is None
    with pytest.raises(UserError, match="--size=512: expected WIDTHxHEIGHT"):
        parse_size("512")


def test_a_size_of_a_condition_reaches_the_sample(model, told):
    """Catches a sample that starts at the trained size although its condition's image has another: the network would refuse it."""
    image = Condition(vector=given_of(told).vector, image=np.zeros((1, 6, 14, 3), np.float32))
    for one in (image, Guided(image, None)):
        with pytest.raises(UserError, match="size 32x32: the condition's image was made for 56x24"):
            model.sample(one, seeds=SEEDS, **FEW | {"size": (32, 32)})


def test_tiles_of_a_first_stage(model, monkeypatch):
    """Catches tiles that differ where there is one, and corners in the wrong unit or order. Norms see a tile, so that it is only near."""
    latents = model.encode(WIDE)
    assert latents.shape == (2, 6, 14, 2)
    np.testing.assert_array_equal(model.encode(WIDE, tile=14), latents)
    whole = model.decode(latents)
    np.testing.assert_array_equal(model.decode(latents, tile=14), whole)
    for made, wanted in ((model.encode(WIDE, tile=8), latents), (model.decode(latents, tile=8).astype(float), whole.astype(float))):
        error = np.linalg.norm(made - wanted) / np.linalg.norm(wanted - wanted.mean())
        print(f"relative to the spread: {error:.3f}")
        assert made.shape == wanted.shape and 0 < error < 0.6
    seen, plain = [], tiles.decode
    monkeypatch.setattr(tiles, "decode", lambda stage, params, latent: seen.append(len(latent)) or plain(stage, params, latent))
    assert apart(model.decode(latents, batch_size=1), whole) <= 1 and seen == [1, 1]


def test_a_sample_is_decoded_in_shares(model, told, monkeypatch):
    """Catches a tile, or a number of images at a time, that is read by `decode` alone."""
    made, seen = [], []
    for tile in (8, None):
        made.append(model.sample(told, seeds=SEEDS, tile=tile, callback=seen.append, every=99, **FEW))
    np.testing.assert_array_equal(made[0], model.decode(seen[0].latents, tile=8))
    assert apart(*made) > 0
    parts, plain = [], tiles.decode
    monkeypatch.setattr(tiles, "decode", lambda stage, params, latent: parts.append(len(latent)) or plain(stage, params, latent))
    assert apart(model.sample(told, seeds=SEEDS, decode_batch=1, **FEW), made[1]) <= 1 and parts == [1, 1]
    for asked in ({"tile": 2}, {"decode_batch": 0}, {"tile": 8.5}):
        with pytest.raises(UserError, match="tile=|images at a time"):
            model.sample(told, seeds=SEEDS, **asked, **FEW)


def test_tiles_take_less_memory(model):
    """Catches a tile that is cut out of what the whole decoder made. As the compiler counts it: 64 x 64 latents, tiles of 16."""
    latent = jax.ShapeDtypeStruct((1, 64, 64, 2), jnp.float32)
    whole = tiles.decode.lower(model.first_stage, model.first_params, latent).compile().memory_analysis()
    tile = tiles.decode_tile.lower(model.first_stage, (16, 16), model.first_params, latent, np.int32([0, 0])).compile().memory_analysis()
    print(f"{whole.temp_size_in_bytes:,} and {tile.temp_size_in_bytes:,} bytes")
    assert tile.temp_size_in_bytes < whole.temp_size_in_bytes / 8


def test_bfloat16(model, told, trained_ldm, monkeypatch):
    """Half the kernels' memory, and the numbers of a bfloat16 network with float32 parameters, bit for bit. Catches a rounded kernel of
    a layer that computes in float32, a network that still computes in float32, and a digest of the rounded ones."""
    half = in_dtype(dataclasses.replace(model, params=copied(model.params), first_params=copied(model.first_params)), "bfloat16")
    kinds = {path: leaf.dtype.name for path, leaf in paths(half.params) + paths(half.first_params)}
    assert kinds["network/conv_in/kernel"] == kinds["decoder/conv_in/kernel"] == kinds["network/middle/block_1/conv1/kernel"] == "bfloat16"
    assert {kinds[name] for name in ("network/time_0/kernel", "network/vector_2/kernel", "network/conv_in/bias",
                                     "network/middle/block_1/time/kernel", "conditioner/embedding")} == {"float32"}
    way, made = way_for(model, FEW), []
    for experiment, params in ((half.experiment, half.params), (half.experiment, model.params), (model.experiment, model.params)):
        state = start(way.table, image_keys(SEEDS), SHAPE)
        made.append(np.asarray(advance(parts_of(experiment).denoise(), params, way.table, state, model.spread(told, 2)).x))
    np.testing.assert_array_equal(made[0], made[1])
    assert 1e-4 < np.linalg.norm(made[0] - made[2]) / np.linalg.norm(made[2]) < 0.05
    assert half.first_stage.module.dtype == half.experiment.autoencoder.dtype == "bfloat16"
    assert jax.eval_shape(half.first_stage.decode, half.first_params, state.x).dtype == jnp.float32
    again = in_dtype(half, "float32")
    assert (again.experiment.network, again.first_stage, again.digest) == (model.experiment.network, model.first_stage, model.digest)
    monkeypatch.setattr(pipeline, "in_dtype", lambda model, dtype: (model.digest, dtype))
    assert ldm.load(trained_ldm, dtype="bfloat16") == (model.digest, "bfloat16")
    with pytest.raises(UserError, match="dtype='half': expected one of float32, bfloat16"):
        ldm.load(trained_ldm, dtype="half")


def test_every_part_computes_in_it(model):
    """Catches networks inside others, as the parts of several conditioners, that are passed over."""
    import flax.linen as nn

    class Whole(nn.Module):
        parts: tuple
        inner: nn.Module
        other: int = 3

    made = computing_in(Whole((model.experiment.network, ClassConditioner(10, 8)), model.experiment.network), "bfloat16")
    assert made.parts[0].dtype == made.inner.dtype == "bfloat16" and made.parts[1] == ClassConditioner(10, 8) and made.other == 3


def test_a_refiner_that_is_the_model_changes_nothing(model, told):
    """Catches a state, a memory, draws or guidance that start anew at the handover. Both samplers remember; one draws noise."""
    for asked in (CALM | {"guidance": 2.0}, CALM | {"sampler": "dpmpp_2m_sde", "guidance": 1.0}):
        plain = last_of(model, told, **asked)
        for handover in (None, 0.35):
            found = last_of(model, told, refiner=model, refiner_condition=told, handover=handover, **asked)
            np.testing.assert_allclose(found, plain, atol=2e-5)


def test_the_refiner_gets_the_last_rows(model, refiner, told):
    """Catches rows on the wrong network, the base's condition or null told to the refiner, and a callback that misses rows."""
    way = way_for(model, CALM | {"guidance": 2.0})
    other, state = refiner.condition([3, 4]), start(way.table, image_keys(SEEDS), SHAPE)
    for part, condition, until in ((model, told, 8), (refiner, other, 10)):  # the times 199 and 99 are the refiner's
        guided = Guided(part.spread(condition, 2), part.spread(part.null(1), 2))
        state = advance(parts_of(part.experiment).denoise(), part.params, way.table, state, guided, way.guidance, until)
    seen = []
    model.sample(told, seeds=SEEDS, refiner=refiner, refiner_condition=other, handover=0.8, callback=seen.append, every=3, guidance=2.0,
                 **CALM)
    assert [glimpse.row for glimpse in seen] == [3, 6, 9, 10]
    np.testing.assert_allclose(seen[-1].latents, state.x, atol=1e-4)
    negative = Guided(given_of(other), given_of(refiner.condition([7])))
    changed = last_of(model, told, refiner=refiner, refiner_condition=negative, guidance=2.0, **CALM)
    assert np.abs(changed - seen[-1].latents).max() > 1e-3, "the refiner's own negative condition is not read"


def bad_refiners(model) -> list:
    reference = dataclasses.replace(model.manifest.first_stage, digest="d" * 64)
    config = dict(model.manifest.config) | {"schedule": {"name": "cosine"}}
    manifests = [dataclasses.replace(model.manifest, **change) for change in ({"first_stage": reference}, {"config": config})]
    others = dataclasses.replace(reference, latent_units={"mean": [0.0, 0.0], "std": [1.0, 2.0]})
    untold = dataclasses.replace(model.experiment, conditioner=ClassConditioner(10, 8, drop=0.0))
    first = dataclasses.replace(model, experiment=dataclasses.replace(model.experiment, task="autoencoder"))
    here = {"refiner": model, "refiner_condition": model.condition([1])}
    return [({"handover": 0.5}, "handover: there is no refiner"), ({"refiner_condition": 1}, "refiner_condition: there is no refiner"),
            ({"refiner": 3}, "refiner=3: expected a loaded model"), ({"refiner": first}, "this is of task autoencoder"),
            ({"refiner": dataclasses.replace(model, manifest=dataclasses.replace(model.manifest, first_stage=others))},
             "refiner: it was trained on another first stage"),
            # a copy of the first stage is none other: a refiner's decoder is not used
            ({"refiner": dataclasses.replace(model, manifest=manifests[0])}, "refiner_condition: say what"),
            ({"refiner": dataclasses.replace(model, manifest=manifests[1])}, "refiner: its schedule is"),
            ({"refiner": dataclasses.replace(model, mesh=None)}, "refiner: it lies on other devices"),
            ({"refiner": model}, "refiner_condition: say what the refiner is told"), (here | {"handover": 1.0}, "handover=1.0"),
            ({"refiner": dataclasses.replace(model, experiment=untold)}, "it knows no null; set guidance=1"),
            (here | {"guide": model, "guide_condition": 1}, "refiner and guide"),
            (here | {"sampler": {"name": "predictor_corrector"}}, "no rows to hand over")]


def test_refiners_that_do_not_fit_get_a_line(model, told):
    """Catches a refiner that would read other latents or other levels, and a wish that is silently ignored."""
    for asked, says in bad_refiners(model):
        with pytest.raises(UserError, match=says):
            model.sample(told, seeds=SEEDS, **{"guidance": 2.0, "steps": 5} | asked)


def test_the_command_tells_all_of_it(model, refiner, tmp_path):
    """Catches a samples.json that could not make the pictures again, and a flag that is not read."""
    write_png(tmp_path / "wide.png", WIDE[0])
    request = output.Request(2, labels=(3, 4), sampling={"steps": 5, "guidance": 1.0}, refiner=refiner,
                             making={"size": (56, 24), "tile": 8, "decode_batch": None, "handover": 0.6},
                             pictures=output.pictures_of(str(tmp_path / "wide.png"), "", 0.9))
    images = output.sample_to(model, request, str(tmp_path / "out"))
    page = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert images.shape == (2, 24, 56, 1)
    assert (page["size"], page["tile"], page["handover"], page["dtype"]) == ([56, 24], 8, 0.6, "float32") and "decode_batch" not in page
    assert page["refiner"] == {"task": "diffusion", "step": 6, "digest": refiner.digest} and "guide" not in page
    with pytest.raises(UserError, match="it is 56x24; this model makes images of 32x32, and others by --size"):
        output.sample_to(model, dataclasses.replace(request, making={}), str(tmp_path / "out"))
