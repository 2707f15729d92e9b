"""What a published model is, in the words of our configs, without its weights."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Description:
    """A model family's architecture and conventions.

    Fields:
      kind: its name in the zoo, or "" for an architecture that has none.
      first_stage: the section config.model of its autoencoder (with a bottleneck section); {} for diffusion in pixels.
      sections: network, conditioner, schedule, prediction, time_input and sampling of a diffusion model, as in a config;
        {} for a first stage alone.
      scale_factor: the published factor of its latents, 1 / the common std of our latent units; 1.0 for VQ.
      resolution: side of the training images; channels: theirs.
      classes: of the class conditioner; 0 without one.
    """

    kind: str
    first_stage: Mapping[str, Any]
    sections: Mapping[str, Any]
    scale_factor: float
    resolution: int
    channels: int = 3
    classes: int = 0


COUNTED = ("blocks", "depth", "layers", "halvings")  # each makes that many modules, one inside the other's
LIMITS = {"steps": 100_000, "latent_channels": 4096}  # what is made for each of them is a number in memory


def extent(section) -> int:
    """How many modules, at most, a section asks for: its blocks * depth at every level, and those of the sections in it.

    Raises:
      ValueError: a number of steps or channels that no model has.
    """
    if isinstance(section, list | tuple):
        return sum(map(extent, section))
    if not isinstance(section, Mapping):
        return 0
    wrong = [key for key, most in LIMITS.items() if type(section.get(key)) in (int, float) and section[key] > most]
    if wrong:
        raise ValueError(f"{wrong[0]}: expected up to {LIMITS[wrong[0]]}")
    counts = [max(section[key], 1) for key in COUNTED if type(section.get(key)) is int]
    levels = section.get("multipliers", (1,))
    own = math.prod(counts) * (len(levels) if isinstance(levels, list | tuple) else 1)
    return own * bool(counts) + sum(map(extent, section.values()))
