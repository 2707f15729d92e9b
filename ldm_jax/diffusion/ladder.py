"""What the methods beside the table share: levels with several evaluations at each, packed for one compiled program."""

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import key_for, normal_for
from ldm_jax.core.types import Level, struct
from ldm_jax.diffusion.guidance import check_terms
from ldm_jax.diffusion.path import Path
from ldm_jax.diffusion.table import CAPACITY


@struct
class Ladder:
    """The levels at which a method evaluates, float32, padded to CAPACITY: alpha, sigma, time [CAPACITY]; numbers [CAPACITY, N],

    the method's own; guidance [CAPACITY, G]. count int32 []: how many there are; gain []: the start is gain * noise.
    """

    alpha: jax.Array
    sigma: jax.Array
    time: jax.Array
    numbers: jax.Array
    guidance: jax.Array
    count: jax.Array
    gain: jax.Array

    def at(self, i, batch: int):
        """(level, time [batch], guidance weights [G]) of level i."""
        return Level(self.alpha[i], self.sigma[i]), jnp.full((batch,), self.time[i]), self.guidance[i]


def pack(path: Path, numbers: np.ndarray, weights: tuple, guidance) -> Ladder:
    """The ladder of every level of the path but its end.

    Args:
      numbers: [n, N], the method's own for each level.
      weights: one a guidance term, a number or one a level [n].

    Raises:
      UserError: more levels than the loop holds, weights that are not finite or not those of `guidance`.
    """
    count = len(numbers)
    if count > CAPACITY:
        raise UserError(f"{count} levels; the loop holds 1 to {CAPACITY}: take fewer steps")
    check_terms(guidance, len(weights))
    columns = [np.asarray(weight, np.float64) for weight in weights]
    for column in columns:
        if column.shape not in ((), (count,)) or not np.isfinite(column).all():
            raise UserError(f"guidance: expected a finite number or {count} of them, one per level, got {column}")
    columns = np.stack([np.broadcast_to(c, (count,)) for c in columns], 1) if columns else np.zeros((count, 0))

    def padded(x):
        return np.pad(np.asarray(x, np.float32), [(0, CAPACITY - count)] + [(0, 0)] * (x.ndim - 1))

    gain = np.float32(np.hypot(*path.begin))
    return Ladder(padded(path.alpha[:count]), padded(path.sigma[:count]), padded(path.time[:count]), padded(numbers),
                  padded(columns), np.int32(count), gain)


def start(ladder: Ladder, keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """gain * noise [B, *shape] float32: for the same keys, what `sample.start` draws."""
    return ladder.gain * draw(keys, "start", shape)


def draw(keys: jax.Array, purpose: str, shape: tuple[int, ...], level=None, inner=None) -> jax.Array:
    """Normal noise [B, *shape]: image i's from keys[i], the purpose, the level's index and the step at it, and from nothing else."""
    def one(key):
        key = key_for(key, purpose, step=level)
        return key if inner is None else key_for(key, "inner", step=inner)

    return normal_for(jax.vmap(one)(keys), shape)


def check_keys(keys: jax.Array) -> None:
    """Raises UserError for keys that are not one axis of typed keys."""
    if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) or keys.ndim != 1:
        raise UserError(f"keys: expected one typed key per image [B] (see image_keys), got {keys.dtype} {list(keys.shape)}")


def check_whole(value, least: int, what: str) -> None:
    """Raises UserError for anything but a whole number from `least`."""
    if isinstance(value, bool) or value != int(value) or value < least:
        raise UserError(f"{what}={value}: expected a whole number from {least}")
