"""Small images: resizing and blurring against other people's, and what the degradations do to an image."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from ldm_jax.core.errors import UserError
from ldm_jax.data import bsr
from ldm_jax.data.bsr import FULL, LIGHT, order
from ldm_jax.data.degradations import Bicubic, Bsr, BsrLight
from ldm_jax.data.resampling import KINDS, before_steps, blurred, gaussian, resized, weights
from ldm_jax.data.shapes_world import Shapes
from ldm_jax.ops.images import to_uint8
from ldm_jax.ops.resample import bicubic

WORLD = Shapes("train", records=40, resolution=64)
IMAGE = WORLD[3]["image"]


def rng(*words):
    return np.random.default_rng([11, *words])


def test_resizing_is_that_of_the_originals():
    """Mistake: a low pass before OpenCV's cubic and linear, none in MATLAB's; a = -0.5 for -0.75; areas that are means of pixel centres."""
    x = IMAGE.astype(np.float32) / 255
    for size in ((16, 16), (27, 90)):
        np.testing.assert_allclose(resized(x, *size, "cubic"), bicubic(x[None], *size)[0], atol=2e-5)  # itself measured against torch
    np.testing.assert_allclose(resized(x, 16, 16, "area"), x.reshape(16, 4, 16, 4, 3).mean((1, 3)), atol=1e-5)
    np.testing.assert_allclose(resized(x, 16, 16, "linear"), x.reshape(16, 4, 16, 4, 3)[:, 1:3, :, 1:3].mean((1, 3)), atol=1e-5)
    reduced = np.stack([Image.fromarray(x[..., c]).resize((16, 16), Image.Resampling.BICUBIC) for c in range(3)], -1)
    np.testing.assert_allclose(resized(x, 16, 16, "antialiased")[2:-2, 2:-2], reduced[2:-2, 2:-2], atol=1e-5)
    assert all(np.allclose(weights(*sides, kind).sum(1), 1) for kind in KINDS for sides in ((4, 7), (64, 3), (1, 2), (5, 1)))
    assert weights(8, 2, "area").tolist() == [[0.25] * 4 + [0] * 4, [0] * 4 + [0.25] * 4]


def test_blurs_are_scipys():
    """Mistake: a kernel that is not turned over; edges that repeat; an image moved by the padding."""
    x, kernel = rng(1).random((9, 12, 3), np.float32), rng(2).random((7, 7))
    wanted = ndimage.convolve(x, kernel[..., None], mode="mirror")
    np.testing.assert_allclose(blurred(x, kernel), wanted, atol=1e-4)
    np.testing.assert_allclose(blurred(x[:3, :2], kernel), ndimage.convolve(x[:3, :2], kernel[..., None], mode="mirror"), atol=1e-4)


def test_kernels_have_the_variances_that_were_drawn():
    """Mistake: deviations for variances; the angle from the other axis, or to the other side; a kernel that is not of sum 1."""
    kernel, places = gaussian(41, 9.0, 2.0, 0.5), np.arange(41) - 20
    y, x = places[:, None], places[None]
    assert kernel.sum() == pytest.approx(1)
    found = [(kernel * a * b).sum() for a, b in ((x, x), (x, y), (y, y))]
    turn = np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
    wanted = turn @ np.diag([9.0, 2.0]) @ turn.T
    assert np.allclose(found, [wanted[0, 0], wanted[0, 1], wanted[1, 1]], atol=0.02)
    point = gaussian(7, 0.0, 0.0, 0.0)
    assert point[3, 3] == pytest.approx(1)  # no width at all is no blur, and not black


def centre(image):
    """(down, across) of a light blob on black, in shares of the image."""
    light = image.astype(np.float64).sum(-1)
    return [float((light.sum(1 - axis) * (np.arange(light.shape[axis]) + 0.5)).sum() / light.sum() / light.shape[axis]) for axis in (0, 1)]


def test_nothing_moves(monkeypatch):
    """Mistake: kernels of even size, every n-th pixel taken without the shift before it, or with one to the wrong side."""
    y, x = np.mgrid[:96, :96] + 0.5
    blob = np.repeat(np.exp(-((y - 55) ** 2 + (x - 37) ** 2) / 60)[..., None], 3, -1).astype(np.float32)
    for deviation in (0.2, 2.4):
        small = blurred(blob, before_steps(4, deviation))[::4, ::4]
        assert np.allclose(centre(small), centre(blob), atol=0.003)
    monkeypatch.setattr(bsr, "_noise", lambda shape, *_: np.zeros(shape, np.float32))
    monkeypatch.setattr(bsr, "_jpeg", lambda x, *_: x)
    image = (blob * 255).astype(np.uint8)
    for recipe in (FULL, LIGHT):
        found = np.array([centre(bsr.degraded(image, 4, recipe, rng(i))) for i in range(60)])
        assert np.abs(found - centre(image)).max() < 0.012 and np.abs(found.mean(0) - centre(image)).max() < 0.002


def test_small_images_are_of_the_size_and_range_that_conditioners_read():
    """Mistake: 0 .. 1, uint8 or float64; a grey image that became colour; a size that depends on the draw; levels past the highest."""
    for maker in (Bicubic(4), Bsr(4), BsrLight(8), Bsr(2), Bsr(1), BsrLight(3)):
        side = 64 // 4 if maker.factor == 3 else 64
        record = {"image": WORLD[1]["image"][:side * 3 // 4 // maker.factor * maker.factor, :side // maker.factor * maker.factor]}
        found = [maker(record, rng(i))["low_res"] for i in range(12)]
        assert {(x.shape, x.dtype.name) for x in found} == {((*(s // maker.factor for s in record["image"].shape[:2]), 3), "float32")}
        assert np.min(found) >= -1 and np.max(found) <= 1 and maker.gives == ("low_res",)
    grey = {"image": IMAGE[..., :1]}
    assert all(maker(grey, rng(0))["low_res"].shape == (16, 16, 1) for maker in (Bicubic(4), Bsr(4, poisson=1.0, speckle=1.0), BsrLight(4)))
    noisy = [Bicubic(4, max_level=3)(grey, rng(i)) for i in range(60)]
    assert {int(fields["noise_level"]) for fields in noisy} == {0, 1, 2, 3} and noisy[0]["noise_level"].dtype == np.int32
    draws = np.stack([fields["low_res_noise"] for fields in noisy])
    assert draws.dtype == np.float32 and abs(draws.std() - 1) < 0.02 and Bsr(4, 3).gives == tuple(noisy[0])


def test_bicubic_is_pillows_and_the_draw_does_not_matter():
    """Mistake: a reduction without a low pass, or by the networks' resampling."""
    wanted = np.asarray(Image.fromarray(IMAGE).resize((16, 16), Image.Resampling.BICUBIC))
    assert np.array_equal(to_uint8(Bicubic(4)({"image": IMAGE}, rng(0))["low_res"]), wanted)


def test_the_order_is_drawn_and_ends_with_the_final_size():
    """Mistake: one order for all images; the resize to the final size before the other, which leaves any size; steps lost or twice."""
    orders = [order(FULL, rng(i)) for i in range(300)]
    assert all(o.index("resize") < o.index("final") for o in orders) and len({tuple(o) for o in orders}) > 200
    assert all(sorted(o) == sorted(["blur", "blur", "resize", "final", "noise", "jpeg", "poisson", "speckle"]) for o in orders)
    assert order(LIGHT, rng(0)).count("blur") == 1
    assert 0.4 < np.mean([o.index("noise") < o.index("jpeg") for o in orders]) < 0.6


def psnr(maker, i):
    image = WORLD[i]["image"]
    found, wanted = (m({"image": image}, rng(i))["low_res"] for m in (maker, Bicubic(4)))
    return -10 * np.log10(np.mean((found - wanted) ** 2) / 4 + 1e-9)


def test_light_is_lighter_than_full_and_both_are_deterministic():
    """Mistake: the numbers of the two exchanged; a draw from numpy's own state, which no resumed run repeats."""
    full, light = (np.median([psnr(maker, i) for i in range(40)]) for maker in (Bsr(4), BsrLight(4)))
    assert 16 < full < light - 2 and light < 32
    one, two = (Bsr(4, 350)({"image": IMAGE}, rng(8)) for _ in range(2))
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_noise_and_jpeg_are_as_strong_as_published(monkeypatch):
    """Mistake: levels of 0 .. 1 for levels of 255; the full quality range for the light one; noise of one kind only."""
    levels = [np.broadcast_to(bsr._noise((32, 32, 3), FULL.noise, rng(i)), (32, 32, 3)) for i in range(300)]
    same = np.array([np.ptp(x, -1).max() < 1e-6 for x in levels])
    alone = np.array([abs(np.corrcoef(x.reshape(-1, 3).T)[0, 1]) < 0.1 for x in levels])
    assert 0.3 < same.mean() < 0.5 and 0.3 < alone.mean() < 0.55
    deviations = np.array([x.std() for x in levels])[same] * 255
    assert 1.7 < deviations.min() < 4 and 23 < deviations.max() < 27
    qualities = []
    save = Image.Image.save
    monkeypatch.setattr(Image.Image, "save", lambda self, *a, **k: (qualities.append(k["quality"]), save(self, *a, **k))[1])
    for recipe, least, most in ((FULL, 30, 95), (LIGHT, 80, 95)):
        qualities.clear()
        for i in range(60):
            bsr.degraded(IMAGE, 4, recipe, rng(i))
        assert least <= min(qualities) < least + 6 and most - 6 < max(qualities) <= most and 96 < len(qualities) < 120


def test_what_fits_no_factor_is_refused():
    """Mistake: a border that is lost without a word, so that small and large do not lie on each other."""
    for maker in (Bicubic(5), Bsr(5)):
        with pytest.raises(UserError, match="the image is 64x64, expected sides that are multiples of 5"):
            maker({"image": IMAGE}, rng(0))
    for make, told in ((lambda: Bicubic(0), "factor=0"), (lambda: Bsr(4, -1), "max_level=-1"),
                       (lambda: Bsr(4, poisson=2.0), "poisson=2.0")):
        with pytest.raises(UserError, match=told):
            make()
