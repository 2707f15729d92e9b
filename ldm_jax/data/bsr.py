"""The blind super-resolution degradations (BSRGAN, arXiv 2103.14006), full and light, with the numbers of latent diffusion's copy.

In an order drawn anew for each image: blurs (each isotropic or not), a resize by any ratio, the resize to the final size (always after the
other), Gaussian noise, JPEG, and with small rates Poisson and speckle noise; then JPEG once more. At factor 4 a quarter of the images
are halved before all that. Without the paper's camera model, which the original leaves out too.

Differences from the original: its `bsrgan` and `bsrgan_light`, as they were trained with, have no Poisson and speckle noise (their
longer `plus` variant does, with these rates): poisson=0, speckle=0 is theirs. Kernels of even size, which move the image by half a
pixel, are one larger. OpenCV resizes whole numbers of 1/2048; here floats do.
"""

import dataclasses
import io

import numpy as np
from PIL import Image

from ldm_jax.data.resampling import OPENCV, before_steps, blurred, gaussian, resized

HALVED, AGAIN, ISOTROPIC = 0.25, 0.9, 0.5  # rates: of halving first (at factor 4), of JPEG in the middle, of isotropic blurs
COLOUR, GREY = 0.4, 0.4  # of noise: for each channel alone, for all the same; else correlated between channels
LUMA = (0.299, 0.587, 0.114)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How strong the steps are.

    blurs: how many; weaker: what their widths are divided by; sizes, round_sizes: (least, most, step) of kernels, anisotropic and not.
    ratio: rate at which the first resize is by a ratio, and not a blur and every n-th pixel. noise: least and most deviation of 255;
    quality: least and most of JPEG; poisson, speckle: rates.
    """

    blurs: int
    weaker: float
    sizes: tuple[int, int, int]
    round_sizes: tuple[int, int, int]
    ratio: float
    noise: tuple[int, int]
    quality: tuple[int, int]
    poisson: float = 0.0
    speckle: float = 0.0


FULL = Recipe(2, 1.0, (7, 25, 2), (7, 25, 2), 0.75, (2, 25), (30, 95))
LIGHT = Recipe(1, 4.0, (5, 14, 1), (5, 7, 1), 0.8, (1, 2), (80, 95))
SPECKLE = (2, 25)


def degraded(image: np.ndarray, factor: int, recipe: Recipe, rng: np.random.Generator) -> np.ndarray:
    """uint8 [H, W, C], C 1 or 3 -> uint8 [H / factor, W / factor, C], by this draw."""
    final = image.shape[0] // factor, image.shape[1] // factor
    x = image.astype(np.float32) / 255
    if factor == 4 and rng.random() < HALVED:
        kind = _one(OPENCV, rng) if rng.random() < 0.5 else "antialiased"
        x, factor = np.clip(resized(x, image.shape[0] // 2, image.shape[1] // 2, kind), 0, 1), 2
    for step in order(recipe, rng):
        x = _step(step, x, factor, final, recipe, rng)
    return _bytes(_jpeg(x, recipe.quality, rng))


def order(recipe: Recipe, rng: np.random.Generator) -> list[str]:
    """The steps but the last JPEG, shuffled: "final" always after "resize"."""
    steps = ["blur"] * recipe.blurs + ["resize", "final", "noise", "jpeg", "poisson", "speckle"]
    steps = [steps[i] for i in rng.permutation(len(steps))]
    first, last = sorted((steps.index("resize"), steps.index("final")))
    steps[first], steps[last] = "resize", "final"
    return steps


def _step(step: str, x: np.ndarray, factor: int, final: tuple[int, int], recipe: Recipe, rng) -> np.ndarray:
    """float32 [h, w, C] in 0 .. 1 before and after."""
    if step == "blur":
        return blurred(x, _kernel(factor, recipe, rng))
    if step == "resize":
        x = _resized(x, factor, recipe, rng)
    elif step == "final":
        x = resized(x, *final, _one(OPENCV, rng))
    elif step == "noise":
        x = x + _noise(x.shape, recipe.noise, rng)
    elif step == "jpeg" and rng.random() < AGAIN:
        x = _jpeg(x, recipe.quality, rng)
    elif step == "poisson" and rng.random() < recipe.poisson:
        x = _poisson(x, rng)
    elif step == "speckle" and rng.random() < recipe.speckle:
        x = x + x * _noise(x.shape, SPECKLE, rng)
    return np.clip(x, 0, 1).astype(np.float32)


def _kernel(factor: int, recipe: Recipe, rng) -> np.ndarray:
    if rng.random() < ISOTROPIC:
        deviation = (2 + 0.2 * factor) / recipe.weaker * rng.random()
        return gaussian(_size(recipe.round_sizes, rng), deviation**2, deviation**2, 0.0)
    most = (4 + factor) / recipe.weaker
    return gaussian(_size(recipe.sizes, rng), most * rng.random(), most * rng.random(), np.pi * rng.random())


def _size(sizes: tuple[int, int, int], rng) -> int:
    least, most, step = sizes
    return (least + step * int(rng.integers(0, (most - least) // step + 1))) | 1


def _resized(x: np.ndarray, factor: int, recipe: Recipe, rng) -> np.ndarray:
    if rng.random() < recipe.ratio:
        ratio = rng.uniform(1, 2 * factor)
        return resized(x, *(max(1, int(side / ratio)) for side in x.shape[:2]), _one(OPENCV, rng))
    return blurred(x, before_steps(factor, rng.uniform(0.1, 0.6 * factor)))[::factor, ::factor]


def _noise(shape: tuple[int, int, int], levels: tuple[int, int], rng) -> np.ndarray:
    """float32 [h, w, C]: of each channel alone, of all the same, or correlated between three channels, then of the largest level."""
    level, way = int(rng.integers(levels[0], levels[1] + 1)) / 255, rng.random()
    if shape[2] == 1 or way >= COLOUR:
        if shape[2] == 1 or way < COLOUR + GREY:
            return level * rng.standard_normal((*shape[:2], 1), np.float32)
        turn = np.linalg.svd(rng.random((3, 3)))[0]
        values, vectors = np.linalg.eigh(np.abs(turn.T @ np.diag(rng.random(3)) @ turn))
        mix = levels[1] / 255 * vectors * np.sqrt(np.maximum(values, 0))
        return rng.standard_normal(shape, np.float32) @ mix.T.astype(np.float32)
    return level * rng.standard_normal(shape, np.float32)


def _poisson(x: np.ndarray, rng) -> np.ndarray:
    """Counts of 100 to 10,000 a full white, of each channel or of the grey that all share."""
    x, count, colour = np.rint(x * 255) / 255, 10 ** rng.uniform(2, 4), rng.random() < 0.5
    if colour or x.shape[2] == 1:
        return rng.poisson(x * count) / count
    grey = np.rint((x @ np.asarray(LUMA, np.float32)) * 255) / 255
    return x + (rng.poisson(grey * count) / count - grey)[..., None]


def _jpeg(x: np.ndarray, quality: tuple[int, int], rng) -> np.ndarray:
    """float32 in 0 .. 1, there and back; colour at half the size (4:2:0), as Pillow and OpenCV have it, which costs 8 x 8 pixels much."""
    pixels, body, strength = _bytes(x), io.BytesIO(), int(rng.integers(quality[0], quality[1] + 1))
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(body, "JPEG", quality=strength)
    back = np.asarray(Image.open(body), np.float32) / 255
    return back[..., None] if pixels.shape[2] == 1 else back


def _bytes(x: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)


def _one(names: tuple[str, ...], rng) -> str:
    return names[int(rng.integers(len(names)))]
