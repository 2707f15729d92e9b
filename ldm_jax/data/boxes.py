"""Boxes of a layout as token ids, in the scheme of the published layout-to-image model (taming-transformers' bounding boxes).

Each of 30 objects is three ids: what it is, its first corner, its last; then two for the corners of the crop that the image
shows. A corner is a point of a grid of 90 x 90, row by row (the whole root of 8,192 ids); an absent object is the last id, thrice.
"""

import math
from collections.abc import Sequence

import numpy as np

from ldm_jax.core.errors import UserError

WHOLE = (0.0, 0.0, 1.0, 1.0)


def boxes_tokens(boxes, labels: Sequence[int], crop: Sequence[float] = WHOLE, objects: int = 30, vocabulary: int = 8192) -> np.ndarray:
    """ids int32 [3 objects + 2] of one layout.

    Args:
      boxes: [n, 4], left, top, right, bottom of each object, 0 to 1 of the whole image; n up to `objects`.
      labels: [n], what each is: its class, and where the model has them classes * (1 group + 2 occluded + 4 depiction + 8 inside).
      crop: the part of the image that is shown, as a box.
      vocabulary: number of ids.

    Raises:
      UserError: too many objects, a box that is none, a label that is no id.
    """
    boxes, labels = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(labels)
    if len(boxes) != len(labels) or labels.ndim != 1 or len(boxes) > objects:
        raise UserError(f"boxes: {len(boxes)} and {len(labels)} labels; expected one label each, up to {objects} objects")
    corners = np.concatenate([boxes, np.asarray([crop], np.float64)])
    right = (corners >= 0) & (corners <= 1)
    wrong = ~(right.all(1) & (corners[:, :2] <= corners[:, 2:]).all(1))
    if wrong.any():
        first = int(np.argmax(wrong))
        name = "crop" if first == len(boxes) else f"boxes[{first}]"
        raise UserError(f"{name}={tuple(corners[first].tolist())}: expected left, top, right, bottom from 0 to 1, of the whole image")
    if len(labels) and (labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= vocabulary - 1):
        raise UserError(f"labels: expected whole numbers from 0 to {vocabulary - 2}, got {labels.tolist()}")
    side = math.isqrt(vocabulary)
    grid = np.rint(corners * (side - 1)).astype(np.int32).reshape(-1, 2, 2)
    points = grid[..., 1] * side + grid[..., 0]
    ids = np.full((objects, 3), vocabulary - 1, np.int32)
    ids[: len(labels), 0], ids[: len(labels), 1:] = labels, points[:-1]
    return np.concatenate([ids.ravel(), points[-1]])
