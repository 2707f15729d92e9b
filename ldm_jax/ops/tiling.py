"""Tiles of one size over an axis, that overlap and fade into each other: where they start, and how much each counts."""

import numpy as np

OVERLAP = 0.25  # of a tile's side, as in diffusers' enable_tiling


def starts(side: int, tile: int, overlap: float = OVERLAP, step: int = 1) -> list[int]:
    """Where the tiles of one axis start: evenly from 0 to side - tile, as few as overlap by at least that share of a tile.

    step: side and tile are multiples of it, and so are the starts.
    """
    if tile >= side:
        return [0]
    stride = max(step, (tile - int(tile * overlap)) // step * step)
    count = 1 - (tile - side) // stride
    return [round(k * (side - tile) / ((count - 1) * step)) * step for k in range(count)]


def shares(places: list[int], tile: int) -> np.ndarray:
    """How much each tile counts at each of its positions, float32 [n, tile]: at every position of the axis they add to 1."""
    inside, windows = np.arange(tile) + 0.5, []
    for k, place in enumerate(places):
        window = np.ones(tile)
        if k:
            window = np.minimum(window, inside / (places[k - 1] + tile - place))
        if k + 1 < len(places):
            window = np.minimum(window, (tile - inside) / (place + tile - places[k + 1]))
        windows.append(window)
    total = np.zeros(places[-1] + tile)
    for place, window in zip(places, windows):
        total[place:place + tile] += window
    return np.float32([window / total[place:place + tile] for place, window in zip(places, windows)])
