"""The sources of images, by name. A source is numpy alone and cheap to make; what it needs is imported when it is made.

A source has `name`, `version`, `classes` (0: no labels), `channels` (1 or 3), a length, `fingerprint() -> dict` (JSON-able:
name, version, split, records, what fixes the content), and `source[i] -> dict` with "image" uint8 [H, W, C] and, where it
has them, "label" int, "caption" str, "captions" of which it is the first, "boxes" float32 [n, 4] in 0..1 and "box_labels" int32 [n],
"segmentation" uint8 or uint16 [H, W], "depth" float32 [H, W], "file" str. It is read by many threads at once and must not change. It may
have `caption(i) -> str`, which reads no image, and `draws`, True where records have several captions, one of which training draws.
"""

from ldm_jax.data.digits import Digits
from ldm_jax.data.images import Images
from ldm_jax.data.prepared import Prepared
from ldm_jax.data.shapes_world import Shapes

SOURCES = {"digits": Digits, "shapes": Shapes, "images": Images, "tfds": Prepared}
