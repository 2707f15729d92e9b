"""Source `digits`: scikit-learn's 1,797 real handwritten digits, enlarged to 32x32."""

import functools
import hashlib
from typing import Literal

import numpy as np
from PIL import Image

from ldm_jax.core.errors import UserError

SIDE, SMALL, CLASSES, HELD_OUT = 32, 8, 10, 397
FULL_INK = 16.0  # scikit-learn's scale: 0 is paper, 16 is full ink


class Digits:
    """1,400 digits to train on and 397 held out, uint8 [32, 32, 1], labels 0..9; ink is bright.

    scikit-learn's 8x8 images (float, 0..16) are scaled to 0..255, enlarged by Pillow's BICUBIC filter (a = -0.5) in
    float32 (mode F; enlarging has nothing to antialias), clipped and rounded to uint8. The split is stratified by label
    and random with seed 0.

    Attributes:
      images: uint8 [N, 32, 32, 1]; labels: int64 [N]: the whole split, in record order.
    """

    name, version, classes, channels = "digits", "1", CLASSES, 1

    def __init__(self, split: Literal["train", "test"]):
        if split not in ("train", "test"):
            raise UserError(f"split={split!r}: the digits have train and test")
        self.split = split
        self.images, self.labels = _read()[split]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict:
        return {"image": self.images[i], "label": int(self.labels[i])}

    def fingerprint(self) -> dict:
        digest = hashlib.sha256(self.images.tobytes() + self.labels.astype("<i8").tobytes()).hexdigest()
        return {"name": self.name, "version": self.version, "split": self.split, "records": len(self), "digest": digest[:16]}


@functools.cache
def _read() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    small, labels = load_digits(return_X_y=True)
    images = enlarge_digits(small)
    train, test = train_test_split(np.arange(len(labels)), test_size=HELD_OUT, stratify=labels, random_state=0)
    return {"train": (images[train], labels[train]), "test": (images[test], labels[test])}


def enlarge_digits(small: np.ndarray) -> np.ndarray:
    """float [N, 64] in 0..16 -> uint8 [N, 32, 32, 1], as the class says."""
    def one(flat):
        image = Image.fromarray((flat.reshape(SMALL, SMALL) * (255.0 / FULL_INK)).astype(np.float32), mode="F")
        return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))

    grown = np.stack([one(flat) for flat in small])
    return np.rint(np.clip(grown, 0, 255)).astype(np.uint8)[..., None]


def reduce_digits(images: np.ndarray) -> np.ndarray:
    """uint8 [N, 32, 32, 1] -> float64 [N, 64] in 0..16, scikit-learn's scale: the mean of each 4x4 block, row by row."""
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.shape[1:] != (SIDE, SIDE, 1):
        raise UserError(f"images: expected uint8 [N, {SIDE}, {SIDE}, 1], got {images.dtype} {list(images.shape)}")
    block = SIDE // SMALL
    means = images.reshape(-1, SMALL, block, SMALL, block).mean((2, 4), dtype=np.float64)
    return means.reshape(-1, SMALL * SMALL) * (FULL_INK / 255.0)
