"""Transforms: uint8 in and out, antialiased, deterministic without a generator."""

import numpy as np
import pytest

from ldm_jax.core.choose import choose
from ldm_jax.core.errors import UserError
from ldm_jax.data.transforms import TRANSFORMS, CropResize, Flip, RandomResizedCrop, describe, to_float

NOISE = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)


def test_reducing_is_antialiased():
    """Stripes finer than the result must become grey. Catches point sampling, which keeps black and white."""
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[:, ::2] = 255
    for filter in ("bicubic", "lanczos", "bilinear", "box"):
        reduced = CropResize(16, filter=filter)(stripes, None)
        assert reduced.shape == (16, 16, 1) and reduced.dtype == np.uint8
        assert np.abs(reduced[:, 2:-2].astype(int) - 127).max() <= 4


def test_centre_crop_is_the_centre():
    """Catches a crop from the corner, and swapped axes."""
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 200
    assert (CropResize(10)(image, None) == 200).all()
    assert (CropResize(10)(image.swapaxes(0, 1), None) == 200).all()


def test_random_crops_reach_both_ends():
    image = np.repeat(np.arange(30, dtype=np.uint8)[None, :, None], 10, axis=0)
    crop = CropResize(10, crop="random")
    starts = {int(crop(image, np.random.default_rng(seed))[0, 0, 0]) for seed in range(500)}
    assert starts == set(range(21))
    assert int(crop(image, None)[0, 0, 0]) == 10


def test_box_filter_is_the_block_mean():
    """Oracle: the mean of blocks, on a whole reduction."""
    reduced = CropResize(16, filter="box")(NOISE[:, :48], None)
    assert np.abs(reduced - NOISE[:, :48].reshape(16, 3, 16, 3, 3).mean((1, 3))).max() <= 1


def test_random_resized_crop():
    crop = RandomResizedCrop(16, smallest=0.2)
    outs = [crop(NOISE, np.random.default_rng(seed)) for seed in range(20)]
    assert all(o.shape == (16, 16, 3) and o.dtype == np.uint8 for o in outs) and len({o.tobytes() for o in outs}) == 20
    assert np.array_equal(crop(NOISE, None), CropResize(16)(NOISE[:, 16:64], None))


def test_flip_by_its_probability():
    draws = [np.array_equal(Flip(0.25)(NOISE, np.random.default_rng(seed)), NOISE[:, ::-1]) for seed in range(2000)]
    assert 0.2 < np.mean(draws) < 0.3
    assert np.array_equal(Flip(1.0)(NOISE, None), NOISE)


def test_to_float_ends():
    out = to_float(np.array([0, 255], np.uint8))
    assert out.dtype == np.float32 and out.tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("section, message", [
    (dict(name="crop_resize", crop="center"), "crop"), (dict(name="crop_resize", filter="spline"), "filter"),
    (dict(name="flip", probability=1.5), "0 to 1"), (dict(name="random_resized_crop", smallest=0.0), "smallest"),
    (dict(name="flip", p=0.5), "does not take p"), (dict(name="crop_resize", resolution=0), "1 to 16384"),
    (dict(name="rotate"), "expected one of"),
])
def test_bad_sections(section, message):
    given = {} if "resolution" in section else {"resolution": 32}
    with pytest.raises(UserError, match=message):
        choose(TRANSFORMS, section, "data.transforms", **given)


def test_small_images_are_refused_unless_asked():
    with pytest.raises(UserError, match="80x48, smaller than resolution 64"):
        CropResize(64)(NOISE, None)
    assert CropResize(64, enlarge=True)(NOISE, None).shape == (64, 64, 3)
    with pytest.raises(UserError, match="more than"):
        CropResize(64, enlarge=True)(np.zeros((1, 65535, 1), np.uint8), None)


def test_descriptions_hold_every_field():
    for transform in (CropResize(32), RandomResizedCrop(32), Flip()):
        assert {"name", "version"} | set(transform.__dataclass_fields__) == set(describe(transform))
