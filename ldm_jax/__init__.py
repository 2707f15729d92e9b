"""Latent diffusion models, whole, in JAX: `load` a model, then encode, decode and sample with it.

    import ldm_jax as ldm
    model = ldm.load("runs/demo/ldm")
    images = model.sample(model.condition(labels=[3, 7]), seeds=[0, 1], guidance=2.0)

The mathematics stands alone in `ldm_jax.diffusion`, the networks in `ldm_jax.models`.
"""

import importlib

__version__ = "0.1.0"

# Public names and where they live; they are imported when first used, so that importing the package costs nothing.
_HOMES = {"load": "ldm_jax.pipeline", "load_clip": "ldm_jax.clip", "open_database": "ldm_jax.data.neighbours",
          "neighbours": "ldm_jax.retrieved", "Model": "ldm_jax.pipeline", "Condition": "ldm_jax.core.types",
          "Level": "ldm_jax.core.types", "UserError": "ldm_jax.core.errors"}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'ldm_jax' has no attribute {name!r}")


def __dir__():
    return sorted(set(globals()) | set(_HOMES))
