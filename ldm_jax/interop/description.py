"""What a published model is, in the words of our configs, without its weights."""

import dataclasses
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
