"""Random masks: their form, their sizes at any resolution, and that a draw is a draw."""

import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.data.fields import FIELDS
from ldm_jax.data.masks import MASKS, Box, FreeForm, Mixed, Outpaint
from ldm_jax.data.masks import _draw as draw


def many(maker, count, height=32, width=32):
    record = {"image": np.zeros((height, width, 3), np.uint8)}
    return np.stack([maker(record, np.random.default_rng([5, i]))["mask"] for i in range(count)])


def test_masks_are_zeros_and_ones_and_never_empty():
    """Mistake: 1 for what stays; grey edges; nothing made anew, by a stroke between pixels; another draw for the same generator."""
    for name, kind in MASKS.items():
        masks = many(kind(), 60)
        assert masks.dtype == np.float32 and set(np.unique(masks)) <= {0.0, 1.0} and masks.any((1, 2)).all()
        assert np.array_equal(masks, many(kind(), 60)) and FIELDS[name] is kind and kind().gives == ("mask",)
        assert len({mask.tobytes() for mask in masks}) > 20 or name == "full_mask"
    thin = many(FreeForm(most=1, length=0.0, width=0.0), 40, 8, 8)  # 0.16 of a pixel wide
    assert thin.any((1, 2)).all() and thin.mean() < 0.06
    assert many(MASKS["full_mask"](), 1).min() == 1
    assert MASKS["box_mask"]().describe() == {"maker": "Box", "version": 1, "least": 1, "most": 4, "smallest": 30.0, "largest": 150.0,
                                              "margin": 10.0}


def test_published_sizes_scale_with_the_side():
    """Mistake: lengths in pixels, which fill a small image; a mask that lies on its side in a wide image."""
    for maker, least, most in ((FreeForm(), 0.38, 0.48), (Box(), 0.21, 0.31), (Outpaint(), 0.5, 0.64)):
        small, large = many(maker, 250), many(maker, 250, 96, 96)
        assert least < small.mean() < most and abs(small.mean() - large.mean()) < 0.01
        middle = np.abs(small - large.reshape(250, 32, 3, 32, 3)[:, :, 1, :, 1]).mean()
        assert middle < 0.03  # the same draws
    wide = many(Box(most=1), 100, 32, 128)
    assert wide.shape == (100, 32, 128) and (wide.any(1).sum(1) <= 19).all() and (wide[:, :, 64:].any((1, 2))).any()


def test_a_stroke_is_what_lies_near_its_line():
    """Mistake: a width that is a radius; down and across exchanged; ends cut off square; a line that goes on past its end."""
    anew = np.zeros((20, 30), bool)
    draw(anew, np.array([5.0, 4.0]), np.array([5.0, 16.0]), 6.0)
    rows, columns = np.nonzero(anew)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 7, 1, 18) and not anew[2, 1] and not anew[7, 18]
    assert anew[2:8, 4:16].all() and anew.sum() == pytest.approx(6 * 12 + np.pi * 9, abs=4)


def test_boxes_keep_their_margin_and_their_sizes():
    """Mistake: a box that runs out of the image; sides of a half; a margin that is not kept at one of the four edges."""
    boxes = many(Box(most=1), 400, 64, 64)
    margin = round(10 / 4)
    assert not any(boxes[edge].any() for edge in (np.s_[:, :margin], np.s_[:, -margin:], np.s_[:, :, :margin], np.s_[:, :, -margin:]))
    for axis in (1, 2):
        inside, sides = boxes.any(axis), boxes.any(axis).sum(1)
        assert inside[:, margin].any() and inside[:, 63 - margin].any()
        assert sides.min() == 8 and sides.max() in (37, 38) and np.mean(sides) == pytest.approx(22.5, abs=1.5)


def test_borders_are_on_every_side_and_only_there():
    """Mistake: left and right with top's share; a side that never is; none at all, which one draw in sixteen gives."""
    masks = many(Outpaint(least=0.25, most=0.25), 400, 16, 32)
    sides = np.stack([masks[:, 8, 0], masks[:, 0, 16], masks[:, 8, -1], masks[:, -1, 16]], 1)
    assert np.abs(sides.mean(0) - 0.516).max() < 0.09 and sides.any(1).all()
    assert not masks[:, 4:12, 8:24].any()
    left_alone = masks[(sides == [1, 0, 0, 0]).all(1)]
    assert len(left_alone) and (left_alone[:, :, :8] == 1).all() and not left_alone[:, :, 8:].any()


def test_kinds_are_mixed_by_their_weights():
    """Mistake: weights of another order; a kind that never comes; one of weight 0 that does."""
    full, border = (many(Mixed(free_form=0.0, box=0.0, outpaint=b, full=1 - b), 200).min((1, 2)).mean() for b in (0.25, 1.0))
    assert full == pytest.approx(0.75, abs=0.1) and border < 0.02
    assert np.array_equal(many(Mixed(free_form=0.0, box=1.0, outpaint=0.0, full=0.0), 3).sum((1, 2)) < 32 * 32, [True] * 3)


@pytest.mark.parametrize("make, told", [
    (lambda: FreeForm(least=3, most=2), "least=3, most=2: expected whole numbers from 1, in order"),
    (lambda: FreeForm(width=-1.0), "width=-1.0: expected numbers of 0 or above"),
    (lambda: Box(smallest=200.0), "smallest=200.0, largest=150.0"), (lambda: Box(largest=250.0), "up to 256 less two margins"),
    (lambda: Outpaint(most=1.5), "most=1.5: expected shares"), (lambda: Mixed(0.0, 0.0, 0.0, 0.0), "expected weights"),
    (lambda: Mixed(box=-1.0), "box=-1.0")])
def test_numbers_that_make_no_mask_are_refused(make, told):
    """Mistake: a section of a config that trains on empty masks, or fails in a reader thread."""
    with pytest.raises(UserError, match=told):
        make()
