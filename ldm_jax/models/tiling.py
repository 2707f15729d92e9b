"""A large map made by tiles of one size that overlap and are blended, so that only one of them is on the device at a time.

Tiles start evenly, the first at one edge and the last at the other, each over at least a quarter of its neighbour; where two
overlap, one fades linearly into the other. Every tile has the same size, so one program makes them all. Group norms and
attention see a tile and not the whole, so that the result is near what the whole would give, and not equal to it.
"""

from collections.abc import Callable

import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.ops.tiling import OVERLAP as OVERLAP
from ldm_jax.ops.tiling import shares, starts

SMALLEST = 4  # a tile of fewer latents has no quarter


def check_tile(tile) -> None:
    """Raises UserError unless a tile's side is a whole number of latents, from SMALLEST."""
    if isinstance(tile, bool) or not isinstance(tile, int) or tile < SMALLEST:
        raise UserError(f"tile={tile!r}: expected the side of a tile in latents, a whole number from {SMALLEST}; 64 is usual")


def by_tiles(make: Callable, size: tuple[int, int], tile: int, scale: int = 1) -> np.ndarray:
    """The whole from its tiles.

    Args:
      make: make((y, x), (h, w)) -> float32 [B, scale h, scale w, C] on the host: the tile of h x w whose corner is at y, x.
      size: (h, w) of the whole, in the units of `tile`; an axis that is shorter than a tile is taken whole.
      scale: what is made for one position: f of a decoder; of an encoder 1, for tiles counted in latents.

    Returns:
      [B, scale h, scale w, C] float32.
    """
    sides = [min(tile, side) for side in size]
    rows, columns = ([place * scale for place in starts(side, tile)] for side in size)
    down, across = (shares(places, side * scale) for places, side in zip((rows, columns), sides))
    whole = None
    for y, fall in zip(rows, down):
        for x, run in zip(columns, across):
            made = make((y // scale, x // scale), tuple(sides))
            if whole is None:
                whole = np.zeros((made.shape[0], size[0] * scale, size[1] * scale, made.shape[3]), np.float32)
            whole[:, y:y + len(fall), x:x + len(run)] += made * (fall[:, None] * run)[..., None]
    return whole
