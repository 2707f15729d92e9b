"""Sampling methods that a table's row cannot say, by name.

Each is a frozen object made of schedule, steps, grid, time_input and its own options, with `evaluations` and
sample(denoise, params, shape, keys, condition, guidance, weights) -> x [B, *shape], which means what `sample.sample` means.
"""

METHODS = {}
