"""Images through a first stage in bounded memory: a few at a time, and large ones by tiles (models/tiling.py)."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.models.first_stage import FirstStage
from ldm_jax.models.tiling import by_tiles, check_tile
from ldm_jax.train.loop import fetch

PART = 64  # images that are encoded or decoded at a time


@functools.partial(jax.jit, static_argnums=0)
def decode(first_stage: FirstStage, params, latent):
    """`first_stage.decode`, compiled once for equal first stages."""
    return first_stage.decode(params, latent)


@functools.partial(jax.jit, static_argnums=0)
def encode(first_stage: FirstStage, params, image):
    """`first_stage.encode`, compiled once for equal first stages."""
    return first_stage.encode(params, image)


@functools.partial(jax.jit, static_argnums=(0, 1))
def decode_tile(first_stage: FirstStage, size: tuple[int, int], params, latent, corner):
    """The tile of size (h, w) of `latent` [B, ...] whose corner is (y, x) -> [B, f h, f w, C]."""
    return first_stage.decode(params, _cut(latent, corner, size))


@functools.partial(jax.jit, static_argnums=(0, 1))
def encode_tile(first_stage: FirstStage, size: tuple[int, int], params, image, corner):
    """The tile of size (h, w), counted in latents, whose corner is (y, x) -> [B, h, w, c]."""
    f = first_stage.module.factor
    return first_stage.encode(params, _cut(image, corner * f, (size[0] * f, size[1] * f)))


def _cut(x, corner, size: tuple[int, int]):
    return jax.lax.dynamic_slice(x, (0, corner[0], corner[1], 0), (x.shape[0], *size, x.shape[3]))


@dataclasses.dataclass(frozen=True)
class Share:
    """How much is on the device at a time: `images` of them, and of each a tile of side `tile`, in latents; None is all.

    Raises:
      UserError: no images, or a tile that is too small.
    """

    tile: int | None = None
    images: int | None = None

    def __post_init__(self):
        if self.images is not None and (isinstance(self.images, bool) or not isinstance(self.images, int) or self.images < 1):
            raise UserError(f"{self.images!r} images at a time: expected a whole number from 1")
        if self.tile is not None:
            check_tile(self.tile)


def decoded(first_stage: FirstStage, params, latents, share: Share, place: Callable = jnp.asarray) -> np.ndarray:
    """Unit-variance latents [N, h, w, c] -> images float32 [N, f h, f w, C] on the host, not clamped.

    place: puts the rows of a part on the devices; latents that lie there stay while they are taken whole.
    """
    def one(part):
        size = part.shape[1:3]
        if share.tile is None or max(size) <= share.tile:
            return fetch(decode(first_stage, params, part))
        return by_tiles(lambda corner, size: fetch(decode_tile(first_stage, size, params, part, np.int32(corner))), size, share.tile,
                        first_stage.module.factor)

    return _by_parts(one, latents, share.images, place)


def encoded(first_stage: FirstStage, params, images, share: Share, place: Callable = jnp.asarray) -> np.ndarray:
    """Images [N, H, W, C] in [-1, 1] -> unit-variance latents float32 [N, h, w, c] on the host; otherwise as `decoded`."""
    f = first_stage.module.factor

    def one(part):
        size = part.shape[1] // f, part.shape[2] // f
        if share.tile is None or max(size) <= share.tile or part.shape[1] % f or part.shape[2] % f:
            return fetch(encode(first_stage, params, part))
        return by_tiles(lambda corner, size: fetch(encode_tile(first_stage, size, params, part, np.int32(corner))), size, share.tile)

    return _by_parts(one, images, share.images, place)


def _by_parts(one: Callable, rows, number: int | None, place: Callable) -> np.ndarray:
    """one(part) for parts of `number` rows, so that memory does not grow with how many there are."""
    if number is None or number >= len(rows):
        return np.asarray(one(rows if isinstance(rows, jax.Array) else place(rows)))
    rows = np.asarray(fetch(rows) if isinstance(rows, jax.Array) else rows)
    return np.concatenate([np.asarray(one(place(rows[i:i + number]))) for i in range(0, len(rows), number)])
