"""Small images to train super-resolution with: makers of "low_res" float32 [h, w, C] in [-1, 1] from a record's image [H, W, C].

With `max_level` above 0 they also make what noises it: "noise_level", a whole number from 0 to max_level, and "low_res_noise", standard
normal, as low_res. Conditioner `low_resolution` mixes the two by its own levels (noise augmentation, arXiv 2106.15282).
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.data.bsr import FULL, LIGHT, Recipe, degraded
from ldm_jax.data.maker import Maker
from ldm_jax.data.transforms import resize, to_float

LOW = ("low_res",)
NOISED = ("low_res", "noise_level", "low_res_noise")


@dataclasses.dataclass(frozen=True)
class Bicubic(Maker):
    """Pillow's bicubic reduction, which is antialiased: the same for every draw.

    factor: image pixels a small pixel, on a side (given: the first stage's). max_level: the highest level of the noise; 0 for none.
    """

    factor: int
    max_level: int = 0
    name: ClassVar[str] = "bicubic"

    def __post_init__(self):
        check_numbers(self.factor, self.max_level)

    @property
    def gives(self) -> tuple[str, ...]:
        return NOISED if self.max_level else LOW

    def __call__(self, record: Mapping, rng: np.random.Generator) -> dict[str, np.ndarray]:
        image = record["image"]
        small = resize(image, *small_size(image, self.factor), "bicubic")
        return noised(small, self.max_level, rng)


@dataclasses.dataclass(frozen=True)
class Bsr(Maker):
    """The full blind super-resolution degradation; see bsr.py.

    factor, max_level: as of `Bicubic`. poisson, speckle: rates of these noises; 0 and 0 is what latent diffusion trained with.
    """

    factor: int
    max_level: int = 0
    poisson: float = 0.1
    speckle: float = 0.1
    name: ClassVar[str] = "bsr"
    recipe: ClassVar[Recipe] = FULL

    def __post_init__(self):
        check_numbers(self.factor, self.max_level)
        if not (0 <= self.poisson <= 1 and 0 <= self.speckle <= 1):
            raise UserError(f"poisson={self.poisson}, speckle={self.speckle}: expected rates from 0 to 1")

    @property
    def gives(self) -> tuple[str, ...]:
        return NOISED if self.max_level else LOW

    def __call__(self, record: Mapping, rng: np.random.Generator) -> dict[str, np.ndarray]:
        image = record["image"]
        small_size(image, self.factor)
        recipe = dataclasses.replace(self.recipe, poisson=self.poisson, speckle=self.speckle)
        return noised(degraded(image, self.factor, recipe, rng), self.max_level, rng)


@dataclasses.dataclass(frozen=True)
class BsrLight(Bsr):
    """The light one: weaker blur, noise and JPEG."""

    poisson: float = 0.0
    speckle: float = 0.0
    name: ClassVar[str] = "bsr_light"
    recipe: ClassVar[Recipe] = LIGHT


def check_numbers(factor: int, max_level: int) -> None:
    """Raises UserError: a factor below 1, a level below 0."""
    if factor < 1 or max_level < 0:
        raise UserError(f"factor={factor}, max_level={max_level}: expected whole numbers, from 1 and from 0")


def small_size(image: np.ndarray, factor: int) -> tuple[int, int]:
    """(h, w) of the small image of [H, W, C]. Raises UserError: H or W is no multiple of the factor."""
    high, wide = image.shape[:2]
    if high % factor or wide % factor:
        raise UserError(f"low_res: the image is {wide}x{high}, expected sides that are multiples of {factor}")
    return high // factor, wide // factor


def noised(small: np.ndarray, max_level: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The fields of a small image uint8 [h, w, C]; see the top of the file."""
    fields = {"low_res": to_float(small)}
    if max_level:
        level = np.int32(rng.integers(0, max_level + 1))
        fields |= {"noise_level": level, "low_res_noise": rng.standard_normal(small.shape, np.float32)}
    return fields


DEGRADATIONS = {kind.name: kind for kind in (Bicubic, Bsr, BsrLight)}
