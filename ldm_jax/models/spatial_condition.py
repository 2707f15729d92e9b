"""Conditioners that tell an image, concatenated to the noisy latent's channels: what to keep, depth, a smaller image, a map."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.core.types import Condition
from ldm_jax.models.condition import own_fields
from ldm_jax.nn.layers import Dense
from ldm_jax.ops.resample import bicubic, halve

HOLES = (0.0, -1.0)
IMAGE = ("image",)


class Always(nn.Module):
    """What these conditioners share that are never dropped: under guidance, both sides are told the same."""

    tells: ClassVar[tuple[str, ...]] = IMAGE
    drop: ClassVar[float] = 0.0

    def null(self, count: int, fields: Mapping | None = None, encode=None) -> Condition:
        """What the fields, of `count` examples, say."""
        return self(own_fields(fields, self.fields), None, encode)


class Inpainting(Always):
    """The masked image's latent and the mask, at the latent's size: c + 1 channels.

    Fields:
      order: of the channels: ("mask", "masked") of Stable Diffusion, ("masked", "mask") of latent diffusion.
      hole: what the masked image has where it is made anew: 0, grey, with a mask of 0 and 1 (Stable Diffusion), or -1, black,
        with a mask of -1 and 1 (latent diffusion).

    Raises:
      UserError: another order or hole.
    """

    order: tuple[str, ...] = ("mask", "masked")
    hole: float = 0.0
    fields: ClassVar[tuple[str, ...]] = ("image", "mask")

    def __post_init__(self):
        if sorted(self.order) != ["mask", "masked"] or self.hole not in HOLES:
            raise UserError(f"order={self.order}, hole={self.hole}: expected ('mask', 'masked') in one order or the other, and a hole of "
                            f"{HOLES[0]:g} or {HOLES[1]:g}")
        super().__post_init__()

    def __call__(self, fields: Mapping, drop=None, encode=None) -> Condition:
        """image [B, H, W, C] in [-1, 1]; mask [B, H, W], from 0.5 on made anew, of which a latent takes its first pixel's."""
        image, anew = fields["image"], jnp.asarray(fields["mask"])[..., None] >= 0.5
        latent = encode(jnp.where(anew, self.hole, image))
        step = image.shape[1] // latent.shape[1]
        mask = anew[:, ::step, ::step].astype(latent.dtype)
        parts = {"masked": latent, "mask": mask if self.hole == 0 else 2 * mask - 1}
        return Condition(image=jnp.concatenate([parts[name] for name in self.order], axis=-1))

    def check(self, fields: Mapping) -> None:
        """Raises UserError: no image or mask, other shapes, or a mask outside of 0 .. 1."""
        image, mask = (needed(fields, name, "inpainting") for name in self.fields)
        if image.ndim != 4 or mask.shape[1:] != image.shape[1:3]:
            raise UserError(f"mask: expected [N, H, W] of the image's size, got {list(mask.shape)} for an image {list(image.shape)}")
        if not (0 <= mask.min() and mask.max() <= 1):
            raise UserError(f"mask: expected 0 (stays) to 1 (made anew), got {mask.min():g} to {mask.max():g}")

    def example(self, count: int, image: tuple, latent: tuple) -> dict:
        return {"image": jnp.zeros((count, *image)), "mask": jnp.zeros((count, *image[:2]))}


class Depth(Always):
    """A depth map at the latent's size, from -1 to 1 over each image: 1 channel.

    Fields:
      factor: image pixels a latent, on a side.
    """

    factor: int
    fields: ClassVar[tuple[str, ...]] = ("depth",)

    def __call__(self, fields: Mapping, drop=None, encode=None) -> Condition:
        """depth [B, H, W] of the image's size, in any unit: larger is nearer, as MiDaS tells it. A flat map is -1."""
        depth = jnp.asarray(fields["depth"])[..., None]
        depth = bicubic(depth, depth.shape[1] // self.factor, depth.shape[2] // self.factor)
        low, high = (bound(depth, axis=(1, 2, 3), keepdims=True) for bound in (jnp.min, jnp.max))
        return Condition(image=2 * (depth - low) / jnp.where(high > low, high - low, 1) - 1)

    def check(self, fields: Mapping) -> None:
        """Raises UserError: no depth, or a size that is no multiple of the factor."""
        depth = needed(fields, "depth", "depth")
        if depth.ndim != 3 or depth.shape[1] % self.factor or depth.shape[2] % self.factor:
            raise UserError(f"depth: expected [N, H, W] of the image's size, multiples of {self.factor}; got {list(depth.shape)}")

    def example(self, count: int, image: tuple, latent: tuple) -> dict:
        return {"depth": jnp.zeros((count, *image[:2]))}


class LowResolution(Always):
    """A small image of the latent's size: C channels. With `levels`, it is noised, and the level is told as a vector.

    Parameter, with levels: embedding [levels, width].

    Fields:
      levels: of the noise, 0 for none; level i is step i of the schedule whose beta goes from start to end, evenly in its
        square root.
      width: of the vector, the network's time width.
      max_level: the highest level that the network was trained with (published: 350).
    """

    levels: int = 0
    width: int = 0
    start: float = 1e-4
    end: float = 0.02
    max_level: int = 350

    def __post_init__(self):
        if self.levels < 0 or (self.levels > 0) != (self.width > 0) or not 0 < self.start <= self.end < 1:
            raise UserError(f"levels={self.levels}, width={self.width}, start={self.start}, end={self.end}: expected no levels and no "
                            "width, or both above 0, and betas in order")
        super().__post_init__()

    @property
    def fields(self) -> tuple[str, ...]:
        return ("low_res", "noise_level", "low_res_noise") if self.levels else ("low_res",)

    @property
    def tells(self) -> tuple[str, ...]:
        return ("vector", "image") if self.levels else IMAGE

    @property
    def vector_width(self) -> int:
        return self.width

    @nn.compact
    def __call__(self, fields: Mapping, drop=None, encode=None) -> Condition:
        """low_res [B, h, w, C] in [-1, 1]; noise_level int [B]; low_res_noise, standard normal, as low_res."""
        image = jnp.asarray(fields["low_res"])
        if not self.levels:
            return Condition(image=image)
        level = jnp.asarray(fields["noise_level"])
        clean, noise = (jnp.asarray(column, jnp.float32)[level][:, None, None, None] for column in self._levels())
        table = self.param("embedding", nn.initializers.normal(1.0), (self.levels, self.width), jnp.float32)
        return Condition(image=clean * image + noise * fields["low_res_noise"], vector=table[level])

    def _levels(self) -> tuple[np.ndarray, np.ndarray]:
        """(alpha, sigma) of each level, float64."""
        kept = np.cumprod(1 - np.linspace(self.start**0.5, self.end**0.5, self.levels) ** 2)
        return np.sqrt(kept), np.sqrt(1 - kept)

    def check(self, fields: Mapping) -> None:
        """Raises UserError: no image, one that is not in [-1, 1], or a level out of range."""
        image = needed(fields, "low_res", "low_resolution")
        if image.ndim != 4 or np.abs(image).max(initial=0) > 1.001:
            raise UserError(f"low_res: expected [N, h, w, C], uint8 or in [-1, 1], got {list(image.shape)}")
        if not self.levels:
            return
        level, noise, most = needed(fields, "noise_level", "low_resolution"), needed(fields, "low_res_noise", "low_resolution"), \
            min(self.max_level, self.levels - 1)
        if level.ndim != 1 or level.dtype.kind not in "iu" or not (0 <= level.min() and level.max() <= most):
            raise UserError(f"noise_level={level.tolist()}: expected a whole number from 0 to {most} for each image")
        if noise.shape != image.shape:
            raise UserError(f"low_res_noise: expected the shape of low_res, {list(image.shape)}, got {list(noise.shape)}")

    def example(self, count: int, image: tuple, latent: tuple) -> dict:
        small = jnp.zeros((count, *latent[:2], image[2]))
        return {"low_res": small, "noise_level": jnp.zeros((count,), jnp.int32), "low_res_noise": small}


class SemanticMap(nn.Module):
    """A map of classes at the latent's size: halved by means, then mixed to `channels` (SpatialRescaler of latent diffusion).

    Parameter: channel_mapper/kernel [classes, channels]. The null is zeros, which no map gives.

    Fields:
      classes: of the map's pixels; halvings: from its size to the latent's; drop: rate of the null in training.
    """

    classes: int
    halvings: int
    channels: int
    drop: float = 0.0
    fields: ClassVar[tuple[str, ...]] = ("map",)
    tells: ClassVar[tuple[str, ...]] = IMAGE

    def __post_init__(self):
        if min(self.classes, self.channels) < 1 or self.halvings < 0 or not 0 <= self.drop <= 1:
            raise UserError(f"classes={self.classes}, channels={self.channels}, halvings={self.halvings}, drop={self.drop}: expected 1 or "
                            "more, 1 or more, 0 or more, and a rate from 0 to 1")
        super().__post_init__()

    @nn.compact
    def __call__(self, fields: Mapping, drop=None, encode=None) -> Condition:
        """map int [B, H, W] in 0 .. classes - 1."""
        x = jax.nn.one_hot(jnp.asarray(fields["map"]), self.classes)
        for _ in range(self.halvings):
            x = halve(x)
        x = Dense(self.channels, bias=False, name="channel_mapper")(x)
        return Condition(image=x if drop is None else jnp.where(drop[:, None, None, None], 0.0, x))

    def null(self, count: int, fields: Mapping | None = None, encode=None) -> Condition:
        """Zeros, of the size that the fields' map has; what the map says, if it is never dropped."""
        told = self(own_fields(fields, self.fields), None, encode)
        return told if self.drop == 0 else jax.tree.map(jnp.zeros_like, told)

    def check(self, fields: Mapping) -> None:
        """Raises UserError: no map, one of another form or size, or a class out of range."""
        found, step = needed(fields, "map", "semantic_map"), 2**self.halvings
        if found.ndim != 3 or found.dtype.kind not in "iu" or found.shape[1] % step or found.shape[2] % step:
            raise UserError(f"map: expected whole numbers [N, H, W], H and W multiples of {step}; got {found.dtype} {list(found.shape)}")
        unknown = (found < 0) | (found >= self.classes)
        if unknown.any():
            first = int(np.argmax(unknown.any((1, 2))))
            wrong = np.unique(found[first][unknown[first]])
            some = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
            raise UserError(f"map {first}: class {some} in {unknown[first].sum()} of {found[first].size} pixels: expected 0 to "
                            f"{self.classes - 1}")

    def example(self, count: int, image: tuple, latent: tuple) -> dict:
        return {"map": jnp.zeros((count, *image[:2]), jnp.int32)}


def needed(fields: Mapping, name: str, who: str) -> np.ndarray:
    """A field as a host array.

    Raises:
      UserError: there is none, or it holds no numbers.
    """
    if name not in fields:
        raise UserError(f"{name}: the conditioner '{who}' needs it; this data or this request has none")
    array = np.asarray(fields[name])
    if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
        raise UserError(f"{name}: expected finite numbers, got {array.dtype} {list(array.shape)}")
    return array
