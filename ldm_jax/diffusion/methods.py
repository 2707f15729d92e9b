"""Sampling methods that a table's row cannot say, by name: steps by norms, several steps a level.

Each is a frozen object made of schedule, steps, grid, time_input and its own options, with `evaluations` and
sample(denoise, params, shape, keys, condition, guidance, weights) -> x [B, *shape], which means what `sample.sample` means.
"""

from ldm_jax.diffusion.langevin import AnnealedLangevin
from ldm_jax.diffusion.predictor_corrector import PredictorCorrector

METHODS = {"annealed_langevin": AnnealedLangevin, "predictor_corrector": PredictorCorrector}
