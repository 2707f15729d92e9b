"""The words of the house.

Glossary: *clean* is data, *noise* a standard normal draw, *noisy* = alpha * clean + sigma * noise; *denoised* is an
estimate of clean; a *level* is the pair (alpha, sigma); *time* is the number that a network is fed for a level;
a *latent* is an autoencoder's code in unit-variance units; a *condition* is all that a network is told beside them.

Axes: B batch, H W pixels, h w latent positions, C image channels, c latent channels, T tokens, D features, k channels
of a condition image. Images are [B, H, W, C] in [-1, 1] unless they are uint8.
"""

import dataclasses

import jax


def struct(cls):
    """A frozen dataclass that is a pytree; fields made by `static` are part of its structure, not leaves."""
    cls = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)
    meta = [f.name for f in fields if f.metadata.get("static")]
    data = [f.name for f in fields if not f.metadata.get("static")]
    return jax.tree_util.register_dataclass(cls, data_fields=data, meta_fields=meta)


def static(**kwargs):
    """A field of a `struct` that is compared and hashed, never traced."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@struct
class Level:
    """noisy = alpha * clean + sigma * noise. Two arrays of one shape, [] or [B]; both >= 0, never both 0."""

    alpha: jax.Array
    sigma: jax.Array


@struct
class Condition:
    """What a network is told beside the noisy latent and the time. Absent parts are None.

    tokens [B, T, D]; token_mask [B, T] bool, True where a token counts; vector [B, D]; image [B, h, w, k].
    """

    tokens: jax.Array | None = None
    token_mask: jax.Array | None = None
    vector: jax.Array | None = None
    image: jax.Array | None = None
