"""Tiles that overlap: they cover the whole, count once, and fade into each other. Numpy alone."""

import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.models.tiling import OVERLAP, by_tiles, check_tile, shares, starts

SIDES = [(17, 16), (23, 8), (64, 64), (65, 64), (100, 64), (128, 64), (33, 4), (5, 8)]


@pytest.mark.parametrize("side, tile", SIDES)
def test_tiles_cover_an_axis(side, tile):
    """Catches a last tile that hangs over the edge, neighbours that hardly overlap, and positions that count more than once."""
    places, tile = starts(side, tile), min(side, tile)
    assert places[0] == 0 and places[-1] == side - tile
    assert all(b - a <= tile - int(OVERLAP * tile) for a, b in zip(places, places[1:])), places
    total = np.zeros(side)
    for place, share in zip(places, shares(places, tile)):
        assert (share > 0).all()
        total[place:place + tile] += share
    np.testing.assert_allclose(total, 1, atol=1e-6)


@pytest.mark.parametrize("tile", [8, 12, 64])
def test_what_sees_one_position_is_made_exactly(tile):
    """Catches corners with their axes exchanged, in other units than the tile, and a seam where nothing differs."""
    whole = np.random.default_rng(0).standard_normal((2, 24, 40, 3)).astype(np.float32)
    sizes = set()

    def make(corner, size):
        sizes.add(size)
        part = whole[:, corner[0]:corner[0] + size[0], corner[1]:corner[1] + size[1]]
        return part.repeat(2, 1).repeat(2, 2)

    made = by_tiles(make, (24, 40), tile, 2)
    assert sizes == {(min(24, tile), min(40, tile))}, "several programs"
    np.testing.assert_allclose(made, whole.repeat(2, 1).repeat(2, 2), atol=1e-5)


def test_tiles_that_disagree_fade_into_each_other():
    """Catches a hard seam: of tiles that are all 0 and all 1 by turns, neighbouring pixels differ by the fade's slope alone."""
    made = by_tiles(lambda corner, size: np.full((1, 4 * size[0], 4 * size[1], 1), float(sum(corner) // 6 % 2)), (20, 26), 8, 4)
    steps = [np.abs(np.diff(made, axis=axis)).max() for axis in (1, 2)]
    assert 0 < max(steps) <= 1.01 / (4 * OVERLAP * 8), steps


@pytest.mark.parametrize("tile", [3, 0, -8, 8.0, True, "64"])
def test_a_tile_is_a_whole_number(tile):
    """Catches a tile without a quarter, which would give no overlap or no end."""
    with pytest.raises(UserError, match="expected the side of a tile in latents"):
        check_tile(tile)
