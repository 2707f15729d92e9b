"""Models of several conditions, guided part by part, and samples by windows. Each test says which mistake it catches.

All of one tiny model of the shapes world in pixels, with random parameters, told a label and a map, each dropped apart.
"""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import choices, launch, output, parted, pipeline
from ldm_jax import experiment as ex
from ldm_jax.asked import prepare
from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import base_key
from ldm_jax.data.shapes_world import Shapes
from ldm_jax.diffusion.guidance import Guided, Partials
from ldm_jax.diffusion.guiding import choice
from ldm_jax.diffusion.sample import advance, image_keys, start
from ldm_jax.diffusion.windows import Window
from ldm_jax.models.condition import ClassConditioner
from ldm_jax.models.several_condition import Several
from ldm_jax.models.size_condition import Sizes
from ldm_jax.pipeline import Model
from ldm_jax.sampling import parts_of
from ldm_jax.sizes import parse_window, window_of
from ldm_jax.train.sharding import make_mesh

EACH = {"name": "each", "weights": (3.0, 1.5)}
PARTS = (dict(name="class", width=8, drop=0.2), dict(name="semantic_map", classes=25, halvings=0, channels=3, drop=0.1))
SEEDS = [0, 1]
RECORDS = [Shapes("test", 16)[i] for i in range(2)]
LABELS, MAPS = [r["label"] for r in RECORDS], np.stack([r["segmentation"] for r in RECORDS]).astype(np.int32)
WIDE = np.concatenate([MAPS, MAPS], axis=2)


@pytest.fixture(scope="module")
def model(make_ldm_config):
    sampling = dict(sampler=dict(name="ddim"), grid=dict(name="trailing"), steps=3, guidance=EACH, threshold=dict(name="none"))
    config = make_ldm_config("pixels", **{
        "data.resolution": 16, "sampling": sampling, "conditioner": dict(name="several", drops="apart", all_drop=0.1, parts=PARTS),
        "network.levels": (dict(width=8, blocks=1, attention="none", heads=1, depth=1, down="none"),)})
    experiment, rng = ex.build(config, choices.Facts(channels=3, resolution=16, classes=24)), np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(0.3 * np.float32(rng.standard_normal(x.shape))), ex.parameter_shapes(experiment))
    manifest = types.SimpleNamespace(weights="ema", first_stage=None, config=config)
    return Model(experiment, experiment.first_stage, params, {}, manifest, "", make_mesh())


@pytest.fixture(scope="module")
def told(model):
    return model.condition(labels=LABELS, map=MAPS)


def latents(model, condition, **asked) -> np.ndarray:
    """What a sample ends with."""
    seen = []
    model.sample(condition, seeds=SEEDS, callback=seen.append, every=99, **asked)
    return seen[-1].latents


def test_what_the_program_is_told(model, told):
    """Catches parts in another order, a sum that is told as a chain, negatives that are not stepped away from."""
    maker = model.experiment.conditioner
    fields, variables = {"label": np.asarray(LABELS), "map": MAPS}, {"params": model.params["conditioner"]}
    (label, no_label), (of_map, no_map) = maker.apply(variables, 2, fields, method="pairs")
    for form, some in (("chain", [(label, no_map), (label, of_map)]), ("sum", [(label, no_map), (no_label, of_map)])):
        job = prepare(model, told, 2, {"guidance": EACH | {"form": form}})
        assert isinstance(job.inputs.told, Partials) and not np.asarray(job.inputs.told.null.image).any()
        np.testing.assert_allclose(job.inputs.told.null.vector, no_label.vector, atol=1e-6)
        for found, (first, second) in zip(job.inputs.told.told, some, strict=True):
            np.testing.assert_allclose(found.vector, first.vector, atol=1e-6)
            np.testing.assert_allclose(found.image, second.image, atol=1e-6)
    negative = model.condition(labels=LABELS, map=MAPS, negative_labels=[7])
    null = prepare(model, negative, 2, {}).inputs.told.null
    of_7 = maker.apply(variables, {"label": np.asarray([7]), "map": MAPS[:1]}).vector
    np.testing.assert_allclose(null.vector, of_7.repeat(2, 0), atol=1e-6)


def test_what_is_not_said_is_the_null(model, told):
    """Catches a map that must be told although training drops it, and a null of the trained size beside a larger sample."""
    for number, said in ((1, {}), (2, {"labels": LABELS})):
        found = model.condition(**said)
        assert found.given.image.shape == (number, 16, 16, 3) and not np.asarray(found.given.image).any()
    np.testing.assert_allclose(found.given.vector, told.given.vector, atol=1e-6)
    assert model.condition(labels=LABELS, size=(32, 16)).given.image.shape == (2, 16, 32, 3)
    with pytest.raises(UserError, match="size 0x16: this model makes"):
        model.condition(labels=LABELS, size=(0, 16))


def test_weights_reach_the_samples(model, told):
    """Catches weights that are exchanged or not read, and a preview that is another sample."""
    own = latents(model, told)
    job = types.SimpleNamespace(label=np.asarray(LABELS), map=MAPS, image=np.zeros((2, 16, 16, 3)))
    preview = launch.preview_samples(model.experiment, model.params, {"first_stage": {}}, vars(job), base_key(0))
    np.testing.assert_allclose(preview, own, atol=1e-4)
    turned = latents(model, told, guidance=EACH | {"weights": [1.5, 3.0]})
    assert np.abs(own - turned).max() > 0.05


@pytest.mark.slow
def test_equal_weights_are_plain_guidance(model, told):
    """Catches a condition of all parts that is not the whole condition."""
    same, plain = latents(model, told, guidance=EACH | {"weights": (2.0, 2.0)}), latents(model, told, guidance=2.0)
    np.testing.assert_allclose(same, plain, atol=1e-3)


def test_windows_reach_the_samples(model):
    """Catches a window that is not read, and a map that is not cut with the sample."""
    wide = model.condition(labels=LABELS, map=WIDE)
    asked = {"guidance": 1.0, "size": (32, 16)}
    found, way = latents(model, wide, window=(16, 0.25), **asked), prepare(model, wide, 2, asked).way
    wanted = advance(parts_of(model.experiment, None, Window(16, 0.25)).denoise(), model.params, way.table,
                     start(way.table, image_keys(SEEDS), (16, 32, 3)), model.spread(wide, 2)).x
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.slow
def test_a_known_part_stays_under_windows(model):
    """Catches windows over what is known, for images that are larger than trained."""
    wide, asked = model.condition(labels=LABELS, map=WIDE), {"guidance": 1.0, "size": (32, 16)}
    init, mask = np.zeros((2, 16, 32, 3), np.uint8), np.zeros((16, 32), bool)
    mask[:, 16:] = True
    made = model.sample(wide, seeds=SEEDS, window=(16, 0.25), init=init, mask=mask, **asked)
    assert not made[:, :, :16].any() and made[:, :, 16:].any() and made.shape == init.shape


SIZES, LABEL = Sizes(2, 4), ClassConditioner(4, 6, 0.2)
MORE = ClassConditioner(4, 6, 0.4)


@pytest.mark.parametrize("conditioner, section, says", [
    (LABEL, EACH, "this model has no parts; write a number"), (Several((LABEL, SIZES)), EACH, "this model has 1; write"),
    (Several((LABEL, MORE), "apart"), EACH | {"weights": (2.0,)}, r"weights=\(2.0,\): expected 2 numbers, for label, label"),
    (Several((LABEL, MORE)), EACH | {"form": "sum"}, "together, at the rates .* train with config.conditioner.drops='apart'"),
    (Several((MORE, LABEL)), EACH, "never told some without the others")], ids=str)
def test_models_that_cannot_be_guided_so_get_a_line(conditioner, section, says, make_ldm_config):
    """Catches weights for parts that are not there, and nulls that training never showed."""
    parted.check_parts(Several((LABEL, MORE)), choice(EACH))
    with pytest.raises(UserError, match=says):
        parted.check_guidance({"sampling": {"guidance": section}}, conditioner)


def test_wishes_that_do_not_go_together_get_a_line(model, told):
    """Catches wishes that would be ignored."""
    for condition, asked, says in (
            (told.given, {}, "expected what model.condition"), (Guided(told.given, told.null), {}, "expected what model.cond"),
            (told, {"negative": told}, "steps away from each part's own"),
            (told, {"guidance": EACH | {"weights": (1.0, 2.0, 3.0)}}, "expected 2 numbers, for label, map"),
            (told, {"window": (8, 2)}, "overlap=2"),
            (told, {"window": (8, 0.5, 1, 1)}, "window=.*expected the side"), (told, {"window": "8"}, "side='8'"),
            (told, {"refiner": model}, "refiner: guidance 'each'")):
        with pytest.raises(UserError, match=says):
            prepare(model, condition, 2, asked)
    boxes = types.SimpleNamespace(experiment=types.SimpleNamespace(conditioner=types.SimpleNamespace(fields=("boxes_tokens",))))
    with pytest.raises(UserError, match="told boxes in the whole image's coordinates"):
        window_of(16, boxes)
    guide = types.SimpleNamespace(experiment=types.SimpleNamespace(task="classifier"))
    with pytest.raises(UserError, match="a classifier guides by the whole image"):
        window_of(16, model, guide)


def test_the_command_tells_all_of_it(model, tmp_path, monkeypatch):
    """Catches weights or windows that are not read from the command line, or are missing from samples.json."""
    section = output.parse_guidance('{"name":"each","weights":[3,1.5]}')
    request = output.Request(2, labels=(3, 4), sampling={"guidance": section},
                             making={"size": (32, 16), "window": parse_window("16,0.5")})
    asked = []
    monkeypatch.setattr(pipeline, "generate", lambda experiment, way, params, inputs, *rest: asked.append(way) or inputs.told.null.image)
    monkeypatch.setattr(pipeline, "decoded", lambda stage, params, latent, share, place: np.asarray(latent))
    images = output.sample_to(model, request, str(tmp_path / "out"))
    assert asked[0].window == Window(16) and asked[0].choice.weights == (3, 1.5)
    page = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert images.shape == (2, 16, 32, 3) and page["guidance"] == {"name": "each", "weights": [3, 1.5]} and page["window"] == [16, 0.5]
    assert parse_window("32") == (32,) and parse_window("") is None
    for text in ("a", "32,", "32;0.5", "-4"):
        with pytest.raises(UserError, match="expected the side in latents"):
            parse_window(text)
