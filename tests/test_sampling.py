"""What `Model.sample` can be asked for beside sampler and steps: images to start from, masks, guides, what is steered away from. Each
test says which mistake it catches.
"""

import dataclasses
import json
import types

import flax.linen as nn
import numpy as np
import pytest

import ldm_jax as ldm
from ldm_jax import launch, output
from ldm_jax.asked import keep_of, prepare
from ldm_jax.core.errors import UserError
from ldm_jax.data.digits import Digits
from ldm_jax.diffusion.sample import image_keys, start
from ldm_jax.ops.images import to_uint8, write_png
from ldm_jax.sampling import parts_of, way_of
from tests.untrained import save_untrained

SEEDS, FEW = [5, 6, 7], {"steps": 3, "sampler": "ddim"}
DIGITS = Digits("test").images[:3]
MASK = np.zeros((32, 32), bool)
MASK[:, 18:] = True


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_autoencoder_config, make_ldm_config):
    """Runs with random parameters: a first stage, two diffusion models on it, and one of another schedule."""
    folder = tmp_path_factory.mktemp("runs")
    save_untrained(make_autoencoder_config(), folder / "first", noise=0.3)
    config = make_ldm_config(folder / "first")
    save_untrained(config, folder / "ldm", noise=0.1)
    save_untrained(config | {"seed": 1}, folder / "weaker", noise=0.1)
    save_untrained(config | {"schedule": {"name": "cosine"}}, folder / "cosine")
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return ldm.load(folder / "ldm")


@pytest.fixture(scope="module")
def weaker(folder):
    return ldm.load(folder / "weaker")


@pytest.fixture(scope="module")
def pixels(tmp_path_factory, make_ldm_config):
    """Diffusion in pixels, without a condition."""
    run = tmp_path_factory.mktemp("pixels") / "run"
    save_untrained(make_ldm_config("pixels", **{"conditioner": {"name": "none"}, "sampling.guidance": 1.0}), run, noise=0.3)
    return ldm.load(run)


@pytest.fixture(scope="module")
def told(model):
    return model.condition(labels=[1, 2, 3])


def apart(a, b) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_image_to_image(model, told):
    """Catches an init that is not noised to the level of its first step, and images that share one start."""
    seen = []
    made = model.sample(told, seeds=SEEDS, init=DIGITS, strength=0.67, callback=seen.append, guidance=1.0, **FEW)
    assert [(glimpse.row, glimpse.rows, glimpse.first) for glimpse in seen] == [(1, 2, 0), (2, 2, 0)]
    way = way_of(parts_of(model.experiment), model.sampling(guidance=1.0, **FEW), strength=0.67)
    state = start(way.table, image_keys(SEEDS), model.experiment.latent_shape, model.encode(DIGITS))
    from ldm_jax.diffusion.sample import advance
    wanted = advance(parts_of(model.experiment).denoise(), model.params, way.table, state, told.given).x
    np.testing.assert_allclose(seen[-1].latents, wanted, atol=1e-4)
    assert apart(made, model.decode(seen[-1].latents)) <= 1
    alone = model.sample(model.condition(labels=[3]), seeds=SEEDS[2:], init=DIGITS[2:], strength=0.67, guidance=1.0, **FEW)
    assert apart(made[2:], alone) <= 1
    assert apart(made, model.sample(told, seeds=SEEDS, guidance=1.0, **FEW)) > 1


def test_a_mask_keeps_every_pixel_that_is_black(model, told):
    """Catches a mask turned around, a decoded picture where the original was promised, and a hole that is not made anew."""
    made = model.sample(told, seeds=SEEDS, init=DIGITS, mask=MASK, **FEW)
    np.testing.assert_array_equal(made[:, ~MASK], DIGITS[:, ~MASK])
    assert all(apart(a[MASK], b[MASK]) > 1 for a, b in zip(made, DIGITS))
    one = model.sample(told, seeds=SEEDS, init=DIGITS[:1], mask=MASK[None].repeat(3, 0), **FEW)
    np.testing.assert_array_equal(one[:, ~MASK], DIGITS[:1].repeat(3, 0)[:, ~MASK])
    hole = DIGITS.copy()
    hole[:, MASK] = 255
    clean = [model.sample(told, seeds=SEEDS, init=image, mask=np.ones((32, 32)), **FEW) for image in (DIGITS, hole)]
    np.testing.assert_array_equal(*clean)  # what is all made anew reads nothing of init


def test_what_is_pasted_changes_nothing_else(model, told):
    """Mistakes: the known pixels of an inpainting model left as its decoder has them; the hole pasted; paste taken for init."""
    job = prepare(model, told, 3, {"paste": (DIGITS, MASK), **FEW})
    images = np.full_like(DIGITS[1:], 7)
    found = job.finished(images, np.arange(1, 3))
    assert np.array_equal(found[:, ~MASK], DIGITS[1:][:, ~MASK]) and (found[:, MASK] == 7).all()
    assert job.inputs.clean is None and job.inputs.keep is None
    one = prepare(model, told, 3, {"paste": (DIGITS[:1] / np.float32(127.5) - 1, MASK), **FEW}).finished(images, np.arange(1, 3))
    assert np.array_equal(one[:, ~MASK], DIGITS[[0, 0]][:, ~MASK])


def test_latents_are_kept_where_all_their_pixels_are():
    """Catches a latent that is kept for one of its pixels, which would show the hole's content."""
    anew = np.zeros((1, 8, 8), bool)
    anew[0, 3, 3] = True
    assert keep_of(anew, 4)[0, :, :, 0].tolist() == [[0, 1], [1, 1]]


def test_inversion_brings_the_image_back(model, told):
    """Catches noise that is not read, another condition on the way up, and times that do not match the way down."""
    noise = model.invert(DIGITS, told, steps=100)
    assert noise.shape == (3, *model.experiment.latent_shape)
    way = {"sampler": "ddim", "steps": 100, "guidance": 1.0}
    wanted = model.decode(model.encode(DIGITS)).astype(int)
    error, other = (np.abs(model.sample(told, seeds=SEEDS, **way, **start) - wanted).mean() for start in ({"noise": noise}, {}))
    print(f"mean {error:.2f} levels away, {other:.1f} from another noise")
    assert error < 0.2 * other
    assert np.abs(noise - model.invert(DIGITS, steps=100)).max() > 1e-3, "the condition is not read"


def test_what_equals_no_guidance(model, weaker, told):
    """Stepping away from oneself goes nowhere. Catches a guide with the model's parameters, a null that is not replaced by the negative
    condition, and a program that does not know weight 1."""
    plain = model.sample(told, seeds=SEEDS, guidance=1.0, **FEW)
    same = {"negative": {"negative": told, "guidance": 3.0}, "itself": {"guide": model, "guide_condition": told, "guidance": 3.0},
            "weight 1": {"guide": weaker, "guide_condition": weaker.condition([1, 2, 3]), "guidance": 1.0}}
    for name, asked in same.items():
        assert apart(model.sample(told, seeds=SEEDS, **asked, **FEW), plain) <= 1, name
    away = ({"negative": model.condition([4, 5, 6])}, {"guide": model, "guide_condition": model.condition([4, 5, 6])})
    assert apart(*(model.sample(told, seeds=SEEDS, guidance=3.0, **asked, **FEW) for asked in away)) <= 1, "sides exchanged"
    other = [model.sample(told, seeds=SEEDS, **asked, **FEW) for asked in (
        {"guide": weaker, "guide_condition": told, "guidance": 3.0},
        {"guide": weaker, "guide_condition": weaker.condition([1, 2, 3]), "guidance": 3.0}, {"guidance": 3.0},
        {"negative": model.condition([4]), "guidance": 3.0}, {"guidance": {"name": "perturbed", "weight": 3.0}},
        {"guidance": {"name": "classifier_free", "weight": 3.0, "rescale": 0.7, "high": 2.0, "ramp": "linear"}})]
    for i, images in enumerate(other):
        assert all(apart(images, before) > 1 for before in [plain, *other[:i]]), i


class Columns(nn.Module):
    """A classifier that asks whether a latent's left or right half is larger."""

    @nn.compact
    def __call__(self, noisy, time, train=False):
        scale = self.param("scale", nn.initializers.ones, ())
        half = noisy.shape[2] // 2
        return scale * nn.tanh(noisy).sum((1, 3)).reshape(len(noisy), 2, half).sum(-1)


def classifier_for(model, **changes):
    experiment = types.SimpleNamespace(task="classifier", network=Columns(), latent_shape=model.experiment.latent_shape,
                                       facts=types.SimpleNamespace(classes=2))
    fields = {"experiment": experiment, "params": {"network": {"scale": np.float32(1.0)}}, "manifest": model.manifest, "digest": "c" * 64,
              "mesh": model.mesh}
    return types.SimpleNamespace(**fields | changes)


def test_a_classifier_guides_to_its_class(model, told):
    """Catches labels that do not reach the gradient, a scale of 0 that pushes, and one that pushes away."""
    def halves(scale, **more):
        seen = []
        section = {"name": "classifier", "weight": scale, **more}
        model.sample(told, seeds=SEEDS, guide=classifier_for(model), guide_condition=[0, 1, 1], guidance=section, callback=seen.append,
                     every=99, **FEW)
        latents = seen[-1].latents
        half = latents.shape[2] // 2
        return latents, (latents[:, :, :half].sum((1, 2, 3)) - latents[:, :, half:].sum((1, 2, 3))) * np.asarray([1, -1, -1])

    off, before = halves(0.0)
    pushed, after = halves(2.0)
    assert (after > before + 0.1).all(), (before, after)
    both, _ = halves(0.0, free=3.0)
    seen = []
    for guidance, wanted in ((1.0, off), (3.0, both)):
        model.sample(told, seeds=SEEDS, guidance=guidance, callback=seen.append, every=99, **FEW)
        np.testing.assert_allclose(seen[-1].latents, wanted, atol=1e-3)


def test_thresholds_are_for_pixels(model, pixels):
    """Catches latents clipped to a range that they do not have, and a threshold that is not read."""
    with pytest.raises(UserError, match="threshold=clip: the latents of a first stage have no range"):
        model.sample(seeds=SEEDS, threshold="clip")
    seen = {}
    for threshold in ("none", "clip", {"name": "dynamic", "limit": 0.5}):
        pixels.sample(seeds=SEEDS, threshold=threshold, callback=lambda g, t=str(threshold): seen.update({t: g.latents}), every=99, **FEW)
    sizes = [np.abs(latents).max() for latents in seen.values()]
    assert sizes[0] > 1.05 and sizes[1] <= 1 + 1e-6 and sizes[2] <= 0.5 + 1e-6, sizes


REFUSED = [
    ({"strength": 0.5}, "strength: there is no image to start from"), ({"mask": MASK}, "mask: there is no image"),
    ({"init": DIGITS}, "init: give strength too"), ({"init": DIGITS, "strength": 1.5}, "strength=1.5: expected a number above 0"),
    ({"init": DIGITS, "strength": 0.0}, "strength=0.0"), ({"init": DIGITS, "strength": 0.1}, "leaves no step"),
    ({"init": DIGITS[:, :30], "strength": 0.5}, r"init: expected images \[N, 32, 32, 1\], got \[3, 30, 32, 1\]"),
    ({"init": DIGITS[:2], "strength": 0.5}, r"init: of \[2\] examples, and 3 seeds"),
    ({"init": DIGITS, "mask": MASK[:16]}, r"mask: expected \[32, 32\]"), ({"init": DIGITS, "mask": MASK * 255}, "from 0 to 255"),
    ({"paste": DIGITS}, "paste: expected .images, mask."), ({"paste": (DIGITS[:2], MASK)}, r"paste: expected images \[3, 32, 32, 1\]"),
    ({"paste": (DIGITS, MASK * 255)}, "from 0 to 255"), ({"paste": (DIGITS, MASK), "init": DIGITS, "mask": MASK}, "no mask beside init"),
    ({"noise": np.zeros((3, 4, 4, 2))}, r"noise: expected \[N, 8, 8, 2\]"), ({"every": 0, "callback": print}, "every=0"),
    ({"negative": "told", "guidance": 1.0}, "negative: without classifier-free guidance nothing steps away"),
    ({"guide_condition": [1], "guidance": 2.0}, "guide_condition: there is no guide"),
    ({"guide": "weaker"}, "guide: say how strongly it guides"),
    ({"guide": "weaker", "guidance": 2.0}, "guide_condition: say what the guide is told"),
    ({"guide": "weaker", "guidance": {"name": "classifier_free", "weight": 2.0}}, "'classifier_free' reads none"),
    ({"guide": "weaker", "guidance": {"name": "classifier", "weight": 2.0}}, "'classifier' reads one of task classifier"),
    ({"guide": "cosine", "guidance": 2.0}, "guide: its schedule is"), ({"guide": "first", "guidance": 2.0}, "this is of task autoencoder"),
    ({"guide": "pixels", "guidance": 2.0}, "guide: its latents are 32x32x1, the model's 8x8x2"),
    ({"guide": "classifier", "guidance": 2.0}, "a classifier is told labels"),
    ({"guide": "classifier", "guidance": 2.0, "guide_condition": [0, 2, 1]}, "from 0 to 1"),
    ({"guide": "other first", "guidance": 2.0}, "trained on another first stage"),
    ({"guidance": {"name": "autoguidance", "weight": 2.0}}, "needs a guide"),
    ({"guidance": {"name": "perturbed", "weight": 2.0, "places": ("down_0",)}}, "has self-attention in down_1, middle, up_1"),
    ({"sampler": "langevine"}, "sampler.name='langevine': expected one of"), ({"threshold": "clop"}, "threshold.name='clop'"),
    ({"negativ": 1}, "negativ=1: sampling takes negative"), ({"every": 1.5}, "every=1.5: expected a whole number"),
    ({"guide": 3, "guidance": 2.0}, "guide=3: expected a loaded model"),
    ({"init": DIGITS, "mask": "white"}, "mask: expected numbers from 0 to 1, got 'white'")]


@pytest.mark.parametrize("asked, says", REFUSED, ids=[says for _, says in REFUSED])
def test_wishes_that_cannot_be_fulfilled_get_a_line(asked, says, folder, model, weaker, told, pixels):
    """Catches a wish that is silently ignored, and one that breaks inside a compiled program."""
    reference = dataclasses.replace(model.manifest.first_stage, digest="d" * 64)
    known = {"told": told, "weaker": weaker, "pixels": pixels, "classifier": classifier_for(model),
             "other first": classifier_for(model, manifest=dataclasses.replace(model.manifest, first_stage=reference))}
    asked = {key: known.get(value, value) if isinstance(value, str) else value for key, value in asked.items()}
    if isinstance(asked.get("guide"), str):
        asked["guide"] = ldm.load(folder / asked["guide"])
    with pytest.raises(UserError, match=says):
        model.sample(told, seeds=SEEDS, steps=asked.pop("steps", 3), **asked)


def test_a_method_beside_the_table(model, told):
    """Catches a method that is not found by its name, whose guidance is not that of its levels, or that ignores where to start."""
    method = {"sampler": {"name": "predictor_corrector", "predictor": "ancestral", "corrections": 0}, "steps": 3}
    plain = model.sample(told, seeds=SEEDS, guidance=1.0, **method)
    assert apart(plain, model.sample(told, seeds=SEEDS, guidance=1.0, sampler="ddpm", steps=3)) > 1, "other draws"
    section = {"name": "classifier_free", "weight": 3.0}
    guided = model.sample(told, seeds=SEEDS, guidance=section, **method)
    assert apart(guided, plain) > 1 and apart(guided, model.sample(told, seeds=SEEDS, guidance=3.0, **method)) <= 1
    never = model.sample(told, seeds=SEEDS, guidance=section | {"low": 1e6}, **method)
    assert apart(never, plain) <= 1
    for asked in ({"init": DIGITS, "strength": 0.5}, {"init": DIGITS, "mask": MASK}, {"callback": print}):
        with pytest.raises(UserError, match="a sampler of a table, as ddim"):
            model.sample(told, seeds=SEEDS, **asked, **method)


def test_a_preview_is_what_sample_gives(model):
    """Catches previews of training with another guidance, null or seed than `sample.py --seed=0` would have."""
    batch = {"image": np.zeros((2, 32, 32, 1), np.float32), "label": np.asarray([3, 4])}
    images = launch.preview_samples(model.experiment, model.params, {"first_stage": model.first_params}, batch, None)
    assert apart(to_uint8(images), model.sample(model.condition([3, 4]), seeds=[0, 1])) <= 1


def test_guidance_needs_a_null(pixels):
    """Catches two evaluations of one thing: a model that was never told anything has nothing to step away from."""
    with pytest.raises(UserError, match="it knows no null to step away from; set guidance=1"):
        pixels.sample(seeds=SEEDS, guidance=2.0)


def test_the_command_tells_all_of_it(model, weaker, tmp_path):
    """Catches a samples.json that could not make the pictures again, files of another size, and names of folders in it."""
    write_png(tmp_path / "digit.png", DIGITS[0])
    write_png(tmp_path / "mask.png", np.uint8(MASK * 255)[..., None])
    write_png(tmp_path / "wide.png", np.zeros((16, 40, 1), np.uint8))
    init = str(tmp_path / "digit.png")
    request = output.Request(2, labels=(3, 4), negative=(5,), sampling={**FEW, "guidance": 2.0},
                             pictures=output.pictures_of(init, str(tmp_path / "mask.png"), None))
    images = output.sample_to(model, request, str(tmp_path / "out"))
    np.testing.assert_array_equal(images[:, ~MASK], DIGITS[:1].repeat(2, 0)[:, ~MASK])
    text = (tmp_path / "out" / "samples.json").read_text()
    page = json.loads(text)
    assert page["images"][1] == {"file": "000001.png", "seed": 1, "condition": {"label": 4}, "negative": {"label": 5}}
    assert page["init_image"]["file"] == "digit.png" and len(page["mask"]["sha256"]) == 64 and str(tmp_path) not in text
    assert page["guidance"] == 2.0 and page["threshold"] == {"name": "none"} and page["strength"] is None
    request = dataclasses.replace(request, pictures=None, negative=(), guide=weaker)
    output.sample_to(model, request, str(tmp_path / "out"))
    page = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert page["guide"]["digest"] == weaker.digest and page["guide"]["task"] == "diffusion"
    assert page["guidance"]["name"] == "autoguidance"
    for arguments, says in [((str(tmp_path / "wide.png"), "", 0.5), "it is 40x16; this model makes images of 32x32"),
                            ((str(tmp_path / "none.png"), "", 0.5), "no such file"),
                            ((str(tmp_path / "out" / "samples.json"), "", 0.5), "not a picture"),
                            ((init, str(tmp_path / "wide.png"), None), "--mask=.*wide.png: it is 40x16")]:
        with pytest.raises(UserError, match=says):
            pictures = output.pictures_of(*arguments)
            output.sample_to(model, dataclasses.replace(request, guide=None, pictures=pictures), str(tmp_path / "out"))
