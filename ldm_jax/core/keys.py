"""Named random keys. A key is derived from a base key and a purpose, and is used once; nothing is ever split."""

import zlib

import jax

from ldm_jax.core.errors import UserError

SEED_LIMIT = 2**32 - 1


def base_key(seed: int) -> jax.Array:
    """A typed `threefry2x32` key. The generator is fixed because `rbg` draws other numbers under vmap.

    Raises:
      UserError: a seed outside 0 .. 2^32 - 1 (it would be wrapped silently and alias another seed).
    """
    check_seed(seed, "seed")
    return jax.random.key(seed, impl="threefry2x32")


def check_seed(seed: int, where: str) -> None:
    if isinstance(seed, bool) or int(seed) != seed or not 0 <= seed <= SEED_LIMIT:
        raise UserError(f"{where}={seed}: expected a whole number from 0 to {SEED_LIMIT} (2^32 - 1)")


def key_for(base: jax.Array, purpose: str, *, step=None, example=None) -> jax.Array:
    """The key for one purpose at one step, and, with `example` [B] int, one key an example [B].

    Args:
      base: a typed key.
      purpose: a name ("noise", "time", "posterior"); other names give independent streams.
      step: int or int array [], folded in if given.
      example: int array [B], global positions in the batch: example i's key does not depend on B or on the hosts.
    """
    key = jax.random.fold_in(base, zlib.crc32(purpose.encode()))
    if step is not None:
        key = jax.random.fold_in(key, step)
    if example is None:
        return key
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(example)


def normal_for(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal draws [B, *shape] float32, example i from keys[i] alone."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def uniform_for(keys: jax.Array) -> jax.Array:
    """Uniform draws [B] float32 in [0, 1), example i from keys[i] alone."""
    return jax.vmap(lambda key: jax.random.uniform(key))(keys)
