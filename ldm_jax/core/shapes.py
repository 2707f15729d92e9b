"""Shape checks at public doors, at trace time: free at run time, and they say which axis is wrong."""

from ldm_jax.core.errors import UserError


def expect(name: str, x, axes: str, **sizes: int) -> dict[str, int]:
    """Checks an array's rank and named axis sizes, and returns {axis letter: size}.

    Args:
      name: what the array is, for the message.
      x: anything with a `shape`.
      axes: axis letters, space separated, as "B h w c".
      **sizes: the sizes that are known, by axis letter.

    Raises:
      UserError: "latent: expected [B=8, h, w, c=4], got [8, 32, 32, 3]: c is 3, not 4".
    """
    letters = axes.split()
    shape = tuple(x.shape)
    wanted = ", ".join(f"{a}={sizes[a]}" if a in sizes else a for a in letters)
    told = f"{name}: expected [{wanted}], got {list(shape)}"
    if len(shape) != len(letters):
        raise UserError(f"{told}: {len(letters)} axes, not {len(shape)}")
    found = dict(zip(letters, shape))
    for letter, size in sizes.items():
        if letter in found and found[letter] != size:
            raise UserError(f"{told}: {letter} is {found[letter]}, not {size}")
    return found
