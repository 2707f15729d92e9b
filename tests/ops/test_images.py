"""Images on the host."""

import numpy as np
import pytest
from PIL import Image

from ldm_jax.core.errors import NumbersWentBad, UserError
from ldm_jax.ops.images import from_uint8, make_grid, to_uint8, write_png


def test_every_level_survives_the_round_trip():
    """Mistake: truncation by default, which loses half a level, or a range that is not 0..255."""
    levels = np.arange(256, dtype=np.uint8)
    assert np.array_equal(to_uint8(from_uint8(levels)), levels)
    assert to_uint8(np.float32([-9.0, -1.0, 0.0, 1.0, 9.0])).tolist() == [0, 0, 128, 255, 255]
    assert to_uint8(np.float32([0.999]), "truncate").tolist() == [254] and to_uint8(np.float32([0.999])).tolist() == [255]


def test_numbers_that_are_not_finite_are_not_painted():
    """Mistake: NaN cast to a grey, so that a broken model shows pictures."""
    with pytest.raises(NumbersWentBad, match="1 of 2"):
        to_uint8(np.float32([0.0, np.nan]))
    with pytest.raises(UserError, match="round, truncate"):
        to_uint8(np.zeros(1), "floor")


def test_grid_places_images_row_by_row():
    """Mistake: columns first, or the last row's empty places filled with black."""
    images = np.stack([np.full((2, 3, 1), i, np.uint8) for i in range(5)])
    grid = make_grid(images, columns=3, gap=1)
    assert grid.shape == (5, 11, 1)
    assert [int(grid[0, x, 0]) for x in (0, 4, 8)] == [0, 1, 2] and [int(grid[3, x, 0]) for x in (0, 4, 8)] == [3, 4, 255]
    assert (grid[2] == 255).all() and (grid[:, 3] == 255).all()
    assert make_grid(images).shape[:2] == (2 * 4 - 2, 3 * 5 - 2)
    with pytest.raises(UserError, match="uint8 images"):
        make_grid(images.astype(np.float32))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_holds_the_pixels(tmp_path, channels):
    """Mistake: channels exchanged, grey saved as colour, or a temporary file left behind."""
    image = np.random.default_rng(0).integers(0, 256, (4, 5, channels), dtype=np.uint8)
    write_png(tmp_path / "deep" / "a.png", image)
    read = np.asarray(Image.open(tmp_path / "deep" / "a.png"))
    assert np.array_equal(read.reshape(image.shape), image) and len(list((tmp_path / "deep").iterdir())) == 1
    with pytest.raises(UserError, match="1, 3 or 4"):
        write_png(tmp_path / "b.png", np.zeros((4, 5, 2), np.uint8))
