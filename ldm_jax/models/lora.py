"""Low-rank adaptation (LoRA, arXiv 2106.09685): a small tree that is added to some kernels of a large one.

A LoRA tree follows the parameters' and has, in the place of a kernel, {"down", "up", "alpha"}: the kernel gains
scale * alpha / r * down @ up, r being the rank.
  linear: kernel [I, O], down [I, r], up [r, O], alpha [].  convolution: kernel [h, w, I, O], down [h, w, I, r], up [r, O].
  joined: a kernel [I, n P] that holds n published ones side by side (q, k, v) has down [n, I, r], up [n, r, P], alpha [n]:
  part i is added to the i-th block of columns, and alpha 0 says that a part has none.
Without "alpha" it is r: the product counts as it is.
"""

import dataclasses
import math
from collections.abc import Callable, Container, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.core.choose import nearest
from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import key_for
from ldm_jax.core.trees import map_with_path, nested, paths

LEAVES = ("down", "up", "alpha")


def _of_attention(path: str, every: Container[str]) -> bool:
    """q, k, v and the way back: a transformer's to_out, plain attention's proj_out (which stands beside qkv)."""
    stem, _, name = path.removesuffix("/kernel").rpartition("/")
    return "/attention_" in path and (name in ("to_q", "to_k", "to_v", "to_out", "qkv") or f"{stem}/qkv/kernel" in every)


TARGETS: dict[str, Callable[[str, Container[str]], bool]] = {  # name -> whether a kernel of the network, among every one, is adapted
    "attention": _of_attention,
    "transformers": lambda path, every: "/attention_" in path,
    "all": lambda path, every: True,
}


def by_kernel(lora) -> dict[str, dict]:
    """{path of a kernel: {"down", "up", "alpha"}} of a LoRA tree.

    Raises:
      UserError: leaves that are no LoRA's.
    """
    found: dict[str, dict] = {}
    for path, leaf in paths(lora):
        kernel, _, name = path.rpartition("/")
        if name not in LEAVES:
            raise UserError(f"LoRA: {path} is none of {', '.join(LEAVES)}")
        found.setdefault(kernel, {})[name] = leaf
    for kernel, entry in found.items():
        if entry.keys() | {"alpha"} != set(LEAVES):
            raise UserError(f"LoRA: {kernel} has {', '.join(entry)}; expected down, up and perhaps alpha")
    return found


def rank_of(entry) -> int:
    return entry["down"].shape[-1]


def kernel_shape(entry) -> tuple[int, ...]:
    """The shape of the kernel that an entry adds to, from the shapes of down and up.

    Raises:
      UserError: shapes that no kernel fits.
    """
    down, up = tuple(entry["down"].shape), tuple(entry["up"].shape)
    alpha = tuple(entry["alpha"].shape) if "alpha" in entry else None
    if len(up) == 2 and len(down) in (2, 4) and down[-1] == up[0] and alpha in ((), None):
        return (*down[:-1], up[1])
    if len(up) == len(down) == 3 and (down[0], down[2]) == up[:2] and alpha in (up[:1], None):
        return (down[1], up[0] * up[2])
    raise UserError(f"down {list(down)}, up {list(up)}, alpha {None if alpha is None else list(alpha)} do not go together")


def difference(entry) -> jax.Array:
    """alpha / r * down @ up, of the kernel's shape, float32."""
    down, up = (jnp.asarray(entry[name]).astype(jnp.float32) for name in ("down", "up"))
    product = jnp.matmul(down, up, precision=jax.lax.Precision.HIGHEST)
    if "alpha" in entry:
        factor = jnp.asarray(entry["alpha"]).astype(jnp.float32) / rank_of(entry)
        product = product * (factor[:, None, None] if up.ndim == 3 else factor)
    return jnp.moveaxis(product, 0, 1).reshape(product.shape[1], -1) if up.ndim == 3 else product


def check(lora, params, where: str) -> None:
    """Compares a LoRA tree with the parameters (or their shapes) that it is for.

    Raises:
      UserError: kernels that are not there, or of another shape; `where` names the LoRA.
    """
    kernels = {path: tuple(leaf.shape) for path, leaf in paths(params)}
    told = []
    for path, entry in by_kernel(lora).items():
        try:
            shape = kernel_shape(entry)
        except UserError as error:
            told.append(f"{path}: {error}")
            continue
        if path not in kernels:
            told.append(f"{path} {list(shape)} is not in this model")
        elif kernels[path] != shape:
            told.append(f"{path} is {list(kernels[path])}, the LoRA's {list(shape)}")
    if told:
        raise UserError(f"{where} does not fit this model: {len(told)} kernels differ: {'; '.join(told[:5])}{'; ...' if told[5:] else ''}")


def merge(params, loras: Sequence[tuple]):
    """The parameters with LoRAs in them; pure, and jit-able with the scales traced.

    Args:
      params: a tree of arrays. loras: (LoRA tree, scale) each; all are added to the parameters as given, in float32 and rounded
        once, so that their order matters to rounding only. A scale of 0 leaves the bits as they are.

    Raises:
      UserError: a LoRA that does not fit (see `check`).
    """
    for i, (lora, _) in enumerate(loras):
        check(lora, params, f"LoRA {i}")
    found = [(by_kernel(lora), scale) for lora, scale in loras]

    def one(path, kernel):
        total = kernel
        for entries, scale in found:
            if path in entries:
                scale = jnp.asarray(scale, jnp.float32)
                total = jnp.where(scale == 0, total, total.astype(jnp.float32) + scale * difference(entries[path]))
        return total.astype(kernel.dtype)

    return map_with_path(one, params)


@dataclasses.dataclass(frozen=True)
class Lora:
    """A LoRA to be trained: its rank (0: none), its alpha, and the kernels that it adapts, by a name of TARGETS.

    attention: the products to queries, keys, values and back; transformers: every kernel of every attention; all: every kernel of
    the network.

    Raises:
      UserError: a rank below 0, an alpha that is not above 0, an unknown name.
    """

    rank: int = 0
    alpha: float = 1.0
    targets: str = "attention"

    def __post_init__(self):
        if self.rank < 0 or not (math.isfinite(self.alpha) and self.alpha > 0):
            raise UserError(f"rank={self.rank}, alpha={self.alpha}: expected a rank of 0 (off) or above and an alpha above 0")
        if self.targets not in TARGETS:
            raise UserError(f"targets={self.targets!r}: expected one of {nearest(self.targets, TARGETS)}")

    def start(self, params, key: jax.Array) -> dict:
        """A new LoRA for a tree of parameters or of shapes: down uniform with variance 1 / (3 fan-in), as in the published trainers,

        up zero, no alpha: it changes nothing yet.

        Raises:
          UserError: nothing to adapt.
        """
        every = {path: leaf for path, leaf in paths(params) if path.startswith("network/") and path.endswith("/kernel")}
        shapes = {path: leaf.shape for path, leaf in every.items() if TARGETS[self.targets](path, every)}
        if not shapes:
            raise UserError(f"targets={self.targets!r}: this network has no such kernel; 'all' takes every one")
        sizes = [math.prod(shape[:-1]) * self.rank for shape in shapes.values()]
        drawn = jax.random.uniform(key_for(key, "down"), (sum(sizes),), jnp.float32, -1.0, 1.0)  # at once: a program for each is slow
        entries = {}
        for (path, shape), part in zip(shapes.items(), jnp.split(drawn, np.cumsum(sizes)[:-1])):
            down = part.reshape(*shape[:-1], self.rank) * math.prod(shape[:-1]) ** -0.5
            entries[path] = {"down": down, "up": jnp.zeros((self.rank, shape[-1]), jnp.float32)}
        return nested(entries)

    def whole(self, lora) -> dict:
        """What was trained, with its alpha: what `merge` takes."""
        return nested({path: entry | {"alpha": jnp.float32(self.alpha)} for path, entry in by_kernel(lora).items()})
