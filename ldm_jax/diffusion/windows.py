"""A denoiser of one size on larger points: each evaluation is made on windows that overlap, and what they say is blended.

D and E of a window count with a weight that falls to its border and adds to 1 with its neighbours' (MultiDiffusion, arXiv 2302.08113,
equation 5, with weights; split_input of latent diffusion). All are blended in every row, so that windows agree more with each row, where
samples that are made apart and blended at the end would not. D and E have one weight, so that noisy = alpha D + sigma E still.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.core.types import Condition
from ldm_jax.ops.tiling import shares, starts

SMALLEST = 4


@dataclasses.dataclass(frozen=True)
class Window:
    """The windows of a sample.

    Fields:
      side: of a window, in latents; an axis that is shorter is taken whole.
      overlap: the least share of it that neighbours have in common; half is published.
      together: windows in one evaluation of the network, each of all B examples. Memory does not grow with how many there are.

    Raises:
      UserError: a number out of range.
    """

    side: int
    overlap: float = 0.5
    together: int = 1

    def __post_init__(self):
        for name, least in (("side", SMALLEST), ("together", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(f"window: {name}={value!r}: expected a whole number from {least}")
        share = self.overlap
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0.1 <= share <= 0.9:
            raise UserError(f"window: overlap={share!r}: expected a share of the window from 0.1 to 0.9")

    def check(self, multiple: int) -> None:
        """Raises UserError for a side that a network, which halves `multiple` to 1, cannot take."""
        if self.side % multiple:
            raise UserError(f"window: side={self.side}: this network takes multiples of {multiple} latents; nearest: "
                            f"{max(1, round(self.side / multiple)) * multiple}")


@dataclasses.dataclass(frozen=True)
class Windowed:
    """denoise(params, noisy, level, time, condition) by windows; exactly it where one is enough. Hashable as `denoise` is.

    Windows start at multiples of `step`, so that a network which halves sees its grid in the same place in all of them.
    Tokens and vectors are told to every window as they are; an image is cut to it.
    """

    denoise: Callable
    window: Window
    step: int = 1

    def __call__(self, params, noisy, level, time, condition):
        """(clean, noise) [B, h, w, c]; arguments as of the denoiser, noisy [B, h, w, c]."""
        size = noisy.shape[1:3]
        if max(size) <= self.window.side:
            return self.denoise(params, noisy, level, time, condition)
        corners, falls, sides = self._layout(size)
        together = corners.shape[1]

        def cut(x, corner):
            return jax.lax.dynamic_slice(x, (0, corner[0], corner[1], 0), (x.shape[0], *sides, x.shape[3]))

        def of_each(x, corners):
            return jnp.concatenate([cut(x, corner) for corner in corners])

        def again(tree):
            return jax.tree.map(lambda x: x if jnp.ndim(x) == 0 else jnp.concatenate([x] * together), tree)

        def add(sums, group):
            corners, (down, across) = list(group[0]), group[1]
            told = again(condition)
            if isinstance(condition, Condition) and condition.image is not None:
                told = dataclasses.replace(told, image=of_each(condition.image, corners))
            found = self.denoise(params, of_each(noisy, corners), again(level), again(time), told)
            for i, corner in enumerate(corners):
                weight = (down[i][:, None] * across[i])[..., None]
                parts = [jnp.split(part, together)[i] * weight for part in found]
                place = (0, corner[0], corner[1], 0)
                sums = [jax.lax.dynamic_update_slice(x, cut(x, corner) + part, place) for x, part in zip(sums, parts)]
            return sums, None

        return tuple(jax.lax.scan(add, [jnp.zeros_like(noisy)] * 2, (corners, falls))[0])

    def _layout(self, size: tuple[int, int]):
        """Corners [groups, together, 2], what each counts along its two axes, ([.., h'], [.., w']), and the windows' (h', w').

        A group that is not full repeats a window that counts nothing.
        """
        window, sides = self.window, tuple(min(self.window.side, n) for n in size)
        rows, columns = (starts(n, side, window.overlap, self.step) for n, side in zip(size, sides))
        places = np.int32([(y, x) for y in rows for x in columns])
        down, across = shares(rows, sides[0]).repeat(len(columns), 0), np.tile(shares(columns, sides[1]), (len(rows), 1))
        together = min(window.together, len(places))
        missing = -len(places) % together
        places, down, across = (np.concatenate([x, x[:1].repeat(missing, 0) * keep]) for x, keep in ((places, 1), (down, 0), (across, 0)))
        grouped = [x.reshape(-1, together, x.shape[1]) for x in (places, down, across)]
        return grouped[0], (grouped[1], grouped[2]), sides
