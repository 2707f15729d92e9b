"""For parity tests: torch parameters in our layouts, and one measure of agreement."""

import json
import os

import jax
import numpy as np

from ldm_jax.core.trees import map_with_path, paths

LIMIT = 1e-5


def agree(name: str, ours, theirs, limit: float = LIMIT, of=None) -> None:
    """Relative L2 difference at most `limit`; both numbers are printed (pytest -s), and kept for docs/published.md where it asks.

    of: the torch module, or a dict of arrays, whose tensors and parameters are counted beside.
    """
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, f"{name}: {ours.shape} and {theirs.shape}"
    relative = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    _kept(name, relative, np.abs(ours - theirs).max(), of)
    print(f"{name}: relative L2 {relative:.2e}, max abs {np.abs(ours - theirs).max():.2e}")
    assert relative <= limit, f"{name}: relative L2 difference {relative:.2e} is above {limit}"


def _kept(name: str, relative: float, largest: float, of) -> None:
    """A line into the file that `python -m tests.published_page` gathers."""
    if "LDM_JAX_PARITY" in os.environ:
        arrays = of.state_dict() if hasattr(of, "state_dict") else of or {}
        row = {"test": os.environ["PYTEST_CURRENT_TEST"].split(" ")[0], "name": name, "relative": float(relative),
               "largest": float(largest), "tensors": len(arrays), "parameters": sum(int(np.prod(x.shape)) for x in arrays.values())}
        with open(os.environ["LDM_JAX_PARITY"], "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def from_torch(x) -> np.ndarray:
    """[B, C, H, W] -> numpy [B, H, W, C]; other ranks as they are."""
    x = x.detach().numpy()
    return x.transpose(0, 2, 3, 1) if x.ndim == 4 else x


def to_torch(x):
    import torch

    x = np.asarray(x, np.float32)
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2) if x.ndim == 4 else x))


def randomise(module, seed: int):
    """Every parameter of a torch module off its start, norms' scales and zeros too, so that none can be mixed up unseen."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            spread = 0.1 if parameter.ndim == 1 else 0.7 / np.sqrt(parameter[0].numel())
            parameter += spread * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def random_like(shapes, seed: int):
    """A tree of random numbers with the shapes' structure; kernels scaled by fan-in, scales around 1."""
    rng = np.random.default_rng(seed)

    def one(path, shape):
        if len(shape.shape) > 1:
            return (rng.standard_normal(shape.shape) / np.sqrt(np.prod(shape.shape[:-1]))).astype(np.float32)
        return (float(path.endswith("scale")) + 0.1 * rng.standard_normal(shape.shape)).astype(np.float32)

    return map_with_path(one, shapes)


def torch_weights(params) -> dict:
    """{"a/b": torch tensor}: kernels in torch's layout, the rest as it is."""
    import torch

    def one(leaf):
        leaf = np.asarray(leaf)
        turned = {2: (1, 0), 4: (3, 2, 0, 1)}.get(leaf.ndim)
        return torch.from_numpy(np.ascontiguousarray(leaf.transpose(turned) if turned else leaf))

    return {path: one(leaf) for path, leaf in paths(params)}


def shapes_of(module, *args, **kwargs):
    return jax.eval_shape(lambda: module.init(jax.random.key(0), *args, **kwargs))["params"]
