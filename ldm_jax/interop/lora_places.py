"""The two halves of a LoRA in the layouts of published kernels: down [r, I, ...] and up [O, r, ...] there."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from ldm_jax.interop.places import Layout
from ldm_jax.models.lora import rank_of


def _turned(layout: Layout) -> bool:
    """Whether the kernel has positions (a convolution of 3x3), which down then has too."""
    return len(layout.axes) > 2


def ours(layout: Layout, half: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A published LoRA of one kernel as an entry of ours (see models/lora.py), from the kernel's layout.

    Trailing axes of length 1 are taken off whatever their number: tools differ in how they store 1x1 convolutions.

    Raises:
      ValueError: shapes that are no LoRA of such a kernel.
    """
    down, up = np.asarray(half["down"]), np.asarray(half["up"])
    told = f"down {list(down.shape)}, up {list(up.shape)} do not go together"
    if min(down.ndim, up.ndim) < 2 or down.shape[0] != up.shape[1] or any(n != 1 for n in up.shape[2:]):
        raise ValueError(told)
    up = up.reshape(up.shape[:2])
    if _turned(layout):
        if down.ndim != len(layout.axes):
            raise ValueError(told)
        down = down.transpose(layout.axes)
    else:
        if any(n != 1 for n in down.shape[2:]):
            raise ValueError(told)
        down = down.reshape(down.shape[:2]).T
    if layout.heads and up.shape[0] % (layout.heads * layout.parts):
        raise ValueError(told)
    entry = {"down": down, "up": dataclasses.replace(layout, axes=(1, 0), ones=0).ours(up)}
    if "alpha" in half:
        alpha = np.asarray(half["alpha"])
        if alpha.size != 1:
            raise ValueError(f"alpha {list(alpha.shape)}: expected one number")
        entry["alpha"] = alpha.reshape(())
    return entry


def theirs(layout: Layout, entry: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `ours`, with as many axes of length 1 as the kernel has."""
    down, up = np.asarray(entry["down"]), np.asarray(entry["up"])
    ones = (1,) * (2 if _turned(layout) else layout.ones)
    up = dataclasses.replace(layout, axes=(1, 0), ones=0).theirs(up)
    down = down.transpose(np.argsort(layout.axes)) if _turned(layout) else down.T.reshape(*down.T.shape, *ones)
    return {**entry, "down": np.ascontiguousarray(down), "up": np.ascontiguousarray(up.reshape(*up.shape, *ones))}


def joined(found: Mapping[int, Mapping[str, np.ndarray]], parts: int) -> dict[str, np.ndarray]:
    """The entries of a kernel's parts as one. Ranks are made equal with zeros; a part without a LoRA has zeros and alpha 0.

    Raises:
      ValueError: parts of different widths.
    """
    if parts == 1:
        return dict(found[0])
    some = list(found.values())
    widths = {(entry["down"].shape[0], entry["up"].shape[1]) for entry in some}
    if len(widths) > 1:
        raise ValueError(f"parts of one kernel, and of different shapes {sorted(widths)}")
    (inputs, outputs), = widths
    rank = max(rank_of(entry) for entry in some)
    down, up = np.zeros((parts, inputs, rank), some[0]["down"].dtype), np.zeros((parts, rank, outputs), some[0]["up"].dtype)
    alpha = np.zeros(parts, np.result_type(*(entry.get("alpha", np.float32(0)) for entry in some)))
    for i, entry in found.items():
        own = rank_of(entry)
        down[i, :, :own], up[i, :own] = entry["down"], entry["up"]
        alpha[i] = np.float32(entry.get("alpha", own)) * (rank / own)
    return {"down": down, "up": up, "alpha": alpha}


def parted(entry: Mapping[str, np.ndarray], parts: int) -> dict[int, dict[str, np.ndarray]]:
    """{number of the part: its entry}: the inverse of `joined`; any entry fits any number of parts."""
    entry = {name: np.asarray(leaf) for name, leaf in entry.items()}
    if entry["up"].ndim == 2:
        return {i: entry | {"up": up} for i, up in enumerate(np.split(entry["up"], parts, axis=1))}
    if parts == 1:
        return {0: _blocks(entry)}
    alpha = entry.get("alpha", np.full(len(entry["up"]), rank_of(entry), np.float32))
    return {i: {"down": entry["down"][i], "up": entry["up"][i], "alpha": alpha[i]} for i in range(parts) if alpha[i] != 0}


def _blocks(entry: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Joined parts as one plain entry of their common rank: down side by side, up block by block."""
    down, up = entry["down"], entry["up"]
    parts, rank, width = up.shape
    wide = np.zeros((parts * rank, parts * width), up.dtype)
    alpha = entry.get("alpha", np.full(parts, rank, np.float32))
    common = float(np.max(alpha)) or float(rank)
    for i in range(parts):
        wide[i * rank:(i + 1) * rank, i * width:(i + 1) * width] = up[i] * (alpha[i] / common)
    return {"down": np.concatenate(list(down), axis=1), "up": wide, "alpha": np.float32(common * parts)}
