"""Boxes as the published layout model reads them."""

import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.data.boxes import boxes_tokens


def test_ids_are_those_of_the_published_scheme():
    """Mistake: columns before rows, width for the right edge, absent objects that are class 0, the crop first, a grid of 91."""
    ids = boxes_tokens([(0.0, 0.0, 1.0, 1.0), (0.1, 0.5, 0.6, 0.9)], [7, 601 * 8 + 3], crop=(0.25, 0.0, 1.0, 0.75))
    left, top, right, bottom = (int(round(x * 89)) for x in (0.1, 0.5, 0.6, 0.9))
    assert ids.shape == (92,) and ids.dtype == np.int32
    assert ids[:6].tolist() == [7, 0, 8099, 4811, top * 90 + left, bottom * 90 + right]
    assert (ids[6:90] == 8191).all() and ids[90:].tolist() == [22, int(round(0.75 * 89)) * 90 + 89]
    assert boxes_tokens([], np.zeros(0, int))[:90].tolist() == [8191] * 90


@pytest.mark.parametrize("boxes, labels, match", [
    ([(0, 0, 1, 1)] * 31, [0] * 31, "up to 30"), ([(0, 0, 1, 1)], [0, 1], "one label each"), ([(0.5, 0, 0.4, 1)], [0], r"boxes\[0\]"),
    ([(0, 0, 1, 1), (0, 0, 20, 20)], [0, 1], r"boxes\[1\]"), ([(0, 0, 1, 1)], [8191], "0 to 8190"),
    ([(0, 0, 1, np.nan)], [0], r"boxes\[0\]")])
def test_what_is_no_layout_is_refused(boxes, labels, match):
    """Mistake: boxes in pixels, or left, top, width, height; a label that says "absent"."""
    with pytest.raises(UserError, match=match):
        boxes_tokens(boxes, labels)
    with pytest.raises(UserError, match="crop=.*expected left"):
        boxes_tokens([], np.zeros(0, int), crop=(0, 0, 2, 1))
