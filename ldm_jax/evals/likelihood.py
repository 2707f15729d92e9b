"""How likely a model finds held-out images: nats of each image to means with their errors, a dimension and in bits."""

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from ldm_jax.core.errors import NumbersWentBad, UserError
from ldm_jax.diffusion.likelihood import bits

Measure = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
DRAWS = "_variance"  # what a name ends in that holds the variances of another


def likelihood(measure: Measure, batches: Iterable[Mapping[str, np.ndarray]], dimensions: Mapping[str, int]) -> dict:
    """Measures every record of a split, once.

    Args:
      measure: a batch -> {name: nats [B]}, negative log-likelihoods or parts of them, each summed over an image; under
        name + "_variance" [B], where it is known, the variance of that number for the draws it was estimated from.
      batches: dicts that `measure` reads and, where a batch is padded, "weight" [B], 1 or 0.
      dimensions: {name: over how many dimensions its nats were summed}, in the order of the result.

    Returns:
      {name: row} with, in each row, the means over images "nats", "nats_per_dimension", "bits_per_dimension"; the standard
      errors of "nats": "error_images" for these images as draws from their kind (the draws' error is in it), "error_draws"
      for the times, noises or probes that were drawn, given the images; and "dimensions". Beside them "images".

    Raises:
      UserError: no images.
      NumbersWentBad: a number that is not finite.
    """
    found: dict[str, list[np.ndarray]] = {}
    for batch in batches:
        kept = np.asarray(batch.get("weight", np.ones(len(next(iter(batch.values())))))) > 0
        for name, value in measure(batch).items():
            found.setdefault(name, []).append(np.asarray(value, np.float64)[kept])
    whole = {name: np.concatenate(parts) for name, parts in found.items()}
    images = max((len(value) for value in whole.values()), default=0)
    if not images:
        raise UserError("likelihood: the split has no images")
    rows = {name: _row(name, whole[name], whole.get(name + DRAWS), size) for name, size in dimensions.items()}
    return rows | {"images": images}


def _row(name: str, nats: np.ndarray, variance: np.ndarray | None, dimensions: int) -> dict:
    wrong = int((~np.isfinite(nats)).sum())
    if wrong:
        raise NumbersWentBad(f"likelihood: {name.replace('_', ' ')} is not finite for {wrong} of {len(nats)} images")
    mean = float(nats.mean())
    over_images = float(nats.std(ddof=1) / math.sqrt(len(nats))) if len(nats) > 1 else None
    over_draws = None if variance is None else float(np.sqrt(variance.sum()) / len(nats))
    return {"nats": mean, "error_images": over_images, "error_draws": over_draws, "nats_per_dimension": mean / dimensions,
            "bits_per_dimension": bits(mean / dimensions), "dimensions": dimensions}
