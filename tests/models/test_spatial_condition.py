"""What spatial conditioners, sizes and several parts tell, against torch and diffusers as they run."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionDepth2ImgPipeline
from diffusers.models.embeddings import Timesteps

from ldm_jax.core.errors import UserError
from ldm_jax.core.types import Condition
from ldm_jax.models.condition import ClassConditioner, dropped, first_condition
from ldm_jax.models.conditioners import conditioner
from ldm_jax.models.several_condition import Several, joined
from ldm_jax.models.size_condition import Sizes
from ldm_jax.models.spatial_condition import Depth, Inpainting, LowResolution, SemanticMap
from ldm_jax.models.text_condition import ClipText
from ldm_jax.ops.resample import bicubic
from tests.nn.parity import agree

RNG = np.random.default_rng(0)
IMAGE = RNG.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
MASK = (RNG.uniform(size=(2, 16, 16)) > 0.5).astype(np.float32)


def pooled(image):
    """A first stage of factor 4: two channels, the mean and the last pixel of each square."""
    squares = image.reshape(image.shape[0], 4, 4, 4, 4, -1)
    return jnp.stack([squares.mean((2, 4, 5)), squares[:, :, -1, :, -1, 0]], -1)


def nchw(x):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)))


@pytest.mark.parametrize("order, hole", [(("mask", "masked"), 0.0), (("masked", "mask"), -1.0)])
def test_inpainting(order, hole):
    """Mistakes: channels in the other family's order, a grey hole where it is black, a mask turned around, or one that is averaged
    where torch takes the nearest."""
    told = Inpainting(order, hole).apply({}, {"image": IMAGE, "mask": MASK}, None, pooled)
    mask = torch.nn.functional.interpolate(torch.from_numpy(MASK)[:, None], size=(4, 4))
    if hole == 0.0:  # Stable Diffusion: in [-1, 1]
        masked = IMAGE * (MASK < 0.5)[..., None]
    else:  # latent diffusion: in [0, 1], then both to [-1, 1]
        masked, mask = (IMAGE + 1) / 2 * (1 - MASK)[..., None] * 2 - 1, mask * 2 - 1
    parts = {"mask": np.moveaxis(mask.numpy(), 1, -1), "masked": np.asarray(pooled(masked))}
    agree("told", np.asarray(told.image), np.concatenate([parts[name] for name in order], -1))
    assert told.tokens is None and told.vector is None
    with pytest.raises(UserError, match="mask: this model is always told it"):
        Inpainting().null(2, {"image": IMAGE}, pooled)


@pytest.mark.parametrize("old, new", [((48, 32), (6, 4)), ((7, 5), (13, 9))])
def test_bicubic_is_torchs(old, new):
    """Mistake: the cubic of jax, of another parameter and with a low pass before it."""
    x = RNG.normal(size=(2, *old, 3)).astype(np.float32)
    wanted = torch.nn.functional.interpolate(nchw(x), size=new, mode="bicubic", align_corners=False)
    agree("told", np.asarray(bicubic(jnp.asarray(x), *new)), np.moveaxis(wanted.numpy(), 1, -1))


def test_depth():
    """Mistakes: the range taken before the resampling, over the batch, or turned around; a flat map that is 0 / 0."""
    depth = RNG.uniform(3, 900, (2, 32, 48)).astype(np.float32)
    pipeline = types.SimpleNamespace(vae_scale_factor=8)
    wanted = StableDiffusionDepth2ImgPipeline.prepare_depth_map(
        pipeline, torch.zeros(2, 3, 32, 48), torch.from_numpy(depth), 2, False, torch.float32, "cpu")
    told = Depth(8).apply({}, {"depth": depth})
    agree("told", np.asarray(told.image), np.moveaxis(wanted.numpy(), 1, -1))
    assert np.asarray(Depth(8).apply({}, {"depth": np.ones((1, 16, 16), np.float32)}).image).tolist() == np.full((1, 2, 2, 1), -1).tolist()


def test_low_resolution():
    """Mistakes: the schedule linear in beta, a level beside the given one, a vector of another level, noise that is drawn anew."""
    plain = LowResolution().apply({}, {"low_res": IMAGE})
    assert np.array_equal(plain.image, IMAGE) and plain.vector is None
    module = LowResolution(levels=1000, width=8)
    fields = {"low_res": IMAGE, "noise_level": np.int32([20, 350]), "low_res_noise": RNG.normal(size=IMAGE.shape).astype(np.float32)}
    told, variables = module.init_with_output(jax.random.key(0), fields)
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=1e-4, beta_end=0.02)
    wanted = scheduler.add_noise(nchw(IMAGE), nchw(fields["low_res_noise"]), torch.tensor([20, 350]))
    agree("told", np.asarray(told.image), np.moveaxis(wanted.numpy(), 1, -1))
    assert np.array_equal(told.vector, variables["params"]["embedding"][np.int32([20, 350])]) and module.tells == ("vector", "image")


def test_semantic_map():
    """Mistakes: classes mixed before the halving in another order, a bias, a nearest halving; a null that is a map of class 0."""
    module, found = SemanticMap(classes=5, halvings=2, channels=3, drop=0.2), RNG.integers(0, 5, (2, 16, 8)).astype(np.int32)
    told, variables = module.init_with_output(jax.random.key(0), {"map": found})
    kernel = variables["params"]["channel_mapper"]["kernel"]
    assert list(variables["params"]["channel_mapper"]) == ["kernel"] and kernel.shape == (5, 3)
    x = nchw(np.eye(5, dtype=np.float32)[found])
    for _ in range(2):
        x = torch.nn.functional.interpolate(x, scale_factor=0.5, mode="bilinear")
    wanted = torch.nn.functional.conv2d(x, torch.from_numpy(np.array(kernel).T.copy())[:, :, None, None])
    agree("told", np.asarray(told.image), np.moveaxis(wanted.numpy(), 1, -1))
    some = module.apply(variables, {"map": found}, np.array([True, False])).image
    null = module.apply(variables, 2, {"map": found}, method="null").image
    assert not np.asarray(some[0]).any() and np.array_equal(some[1], told.image[1]) and not np.asarray(null).any()
    assert null.shape == told.image.shape


def test_sizes():
    """Mistakes: sines before cosines, the numbers' axis taken for the features', and sizes that guidance forgets."""
    sizes = np.float32([[1024, 768, 0, 3, 512, 512], [600, 600, 8, 0, 1024, 1024]])
    module = Sizes()
    wanted = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)(torch.from_numpy(sizes).flatten()).reshape(2, -1)
    agree("told", np.asarray(module.apply({}, {"sizes": sizes}).vector), wanted.numpy(), 1e-4)  # cos of 1024 in float32
    assert module.vector_width == 1536
    assert np.array_equal(module.apply({}, 2, {"sizes": sizes}, method="null").vector, module.apply({}, {"sizes": sizes}).vector)
    forgets = Sizes(drop=0.1)
    assert not np.asarray(forgets.apply({}, {"sizes": sizes}, np.array([True, False])).vector[0]).any()
    assert not np.asarray(forgets.apply({}, 2, method="null").vector).any()


SECTIONS = ({"name": "class", "width": 6, "drop": 0.5}, {"name": "inpainting"}, {"name": "sizes", "count": 2, "width": 4},
            {"name": "class", "width": 3, "drop": 0.2})


@pytest.fixture(scope="module")
def several():
    """Four parts, their fields, parameters, and the condition of no dropped example."""
    made = conditioner({"name": "several", "parts": SECTIONS}, "config.conditioner", classes=4, factor=4)
    fields = {"label": np.int32([1, 3]), "image": IMAGE, "mask": MASK, "sizes": np.float32([[3, 4], [5, 6]])}
    _, params = first_condition(made, (16, 16, 3), (4, 4, 2), jax.random.key(0))
    return made, fields, {"params": params}, made.apply({"params": params}, fields, None, pooled)


def test_several_parts_stand_in_their_order(several):
    """Mistakes: parts in another order, parameters that are shared, a field read by one part alone."""
    made, fields, variables, told = several
    assert made.fields == ("label", "image", "mask", "sizes") and made.tells == ("vector", "image") and made.vector_width == 6 + 8 + 3
    assert set(variables["params"]) == {"parts_0", "parts_3"}
    rows = [variables["params"][f"parts_{i}"]["embedding"][fields["label"]] for i in (0, 3)]
    assert np.array_equal(told.vector, np.concatenate([rows[0], Sizes(2, 4).apply({}, fields).vector, rows[1]], -1))
    assert told.image.shape == (2, 4, 4, 3) and told.tokens is None
    alone = Condition(tokens=jnp.ones((2, 3, 5))), Condition(tokens=jnp.zeros((2, 2, 5)), token_mask=jnp.zeros((2, 2), bool))
    both = joined(list(alone))
    assert both.tokens.shape == (2, 5, 5) and both.token_mask.tolist() == [[True] * 3 + [False] * 2] * 2


def test_each_part_is_dropped_at_its_own_rate(several):
    """Mistakes: a masked image that is dropped with the label, a null that forgets it, draws of the parts that never fall together."""
    made, fields, variables, told = several
    drop = dropped(made, {"drop": np.float32([0.3, 0.1])}.get)  # below 0.5; below 0.5 and 0.2
    found = made.apply(variables, fields, drop, pooled)
    null = made.apply(variables, 2, fields, pooled, method="null")
    assert np.array_equal(found.image, told.image) and np.array_equal(null.image, told.image)
    assert np.array_equal(found.vector[0, 14:], told.vector[0, 14:]) and np.array_equal(found.vector[0, :6], null.vector[0, :6])
    assert np.array_equal(found.vector[1], null.vector[1]) and np.array_equal(null.vector[:, 6:14], told.vector[:, 6:14])
    assert not np.array_equal(null.vector[:, :6], told.vector[:, :6]) and made.drop == 0.5
    everything = made.apply(variables, fields, np.array([True, True]), pooled)
    assert np.array_equal(everything.vector, null.vector)
    assert dropped(ClassConditioner(4, 6, 0.2), {"drop": np.float32([0.1, 0.2])}.get).tolist() == [True, False]


def test_a_part_that_is_never_dropped_is_never_asked_for_its_null():
    """Mistake: a text of rate 0 that guidance replaces by the empty text."""
    text = ClipText(width=4, layers=1, heads=1, vocabulary=9, length=4, bos=7, eos=8, pad=0, final_norm=False, drop=0.0)
    both, fields = Several((text, Sizes(2, 4, drop=0.5))), {"tokens": np.int32([[[7, 3, 8, 0]]]), "sizes": np.float32([[3, 4]])}
    told, variables = both.init_with_output(jax.random.key(0), fields)
    null = both.apply(variables, 1, fields, method="null")
    assert np.array_equal(null.tokens, told.tokens) and not np.asarray(null.vector).any()
    with pytest.raises(UserError, match="tokens: this model is always told it"):
        both.apply(variables, 1, method="null")


@pytest.mark.parametrize("module, fields, words", [
    (Inpainting(), {"image": IMAGE}, "mask: the conditioner 'inpainting' needs it"),
    (Inpainting(), {"image": IMAGE, "mask": MASK[:, :8]}, "mask: expected .* of the image's size"),
    (Inpainting(), {"image": IMAGE, "mask": 255 * MASK}, "from|expected 0 .stays. to 1"),
    (Depth(8), {"depth": np.zeros((1, 20, 16))}, "multiples of 8"),
    (Depth(8), {"depth": np.full((1, 16, 16), np.inf)}, "expected finite numbers"),
    (LowResolution(), {"low_res": 127 * IMAGE}, r"in \[-1, 1\]"),
    (LowResolution(1000, 8), {"low_res": IMAGE, "noise_level": np.int32([0, 351]), "low_res_noise": IMAGE}, "from 0 to 350"),
    (LowResolution(1000, 8), {"low_res": IMAGE, "noise_level": np.int32([0, 1]), "low_res_noise": IMAGE[:, :8]}, "the shape of low_res"),
    (SemanticMap(5, 2, 3), {"map": np.full((1, 8, 8), 5)}, "map 0: class 5 in 64 of 64 pixels: expected 0 to 4"),
    (SemanticMap(5, 2, 3), {"map": np.zeros((1, 8, 6), int)}, "multiples of 4"),
    (Sizes(5), {"sizes": np.zeros((1, 6))}, "height, width, top, left, rating")])
def test_what_the_fields_hold_is_checked(module, fields, words):
    """Mistake: a wrong size, range or number that becomes another picture without a word."""
    with pytest.raises(UserError, match=words):
        module.check(fields)


@pytest.mark.parametrize("section, words", [
    ({"name": "inpainting", "order": ("mask", "mask")}, "expected .'mask', 'masked'."), ({"name": "inpainting", "hole": 0.5}, "hole=0.5"),
    ({"name": "low_resolution", "levels": 1000}, "both above 0"),
    ({"name": "semantic_map", "classes": 0, "halvings": 1, "channels": 3}, "classes=0"),
    ({"name": "sizes", "width": 3}, "an even width"), ({"name": "several", "parts": SECTIONS[:1]}, "two or more sections"),
    ({"name": "several", "parts": ({"name": "depht"}, {"name": "depth"})}, r"parts\[0\].name='depht': expected one of depth"),
    ({"name": "class", "width": 3, "classes": 4}, "does not take classes")])
def test_sections_are_checked(section, words):
    """Mistake: a part of a part whose typo is not told, or told without its place."""
    with pytest.raises(UserError, match=words):
        conditioner(section, "config.conditioner", classes=4, factor=4)
    assert isinstance(conditioner({"name": "several", "parts": SECTIONS}, "config.conditioner", classes=4, factor=4), Several)
