"""The evaluations by name."""

from ldm_jax.evals.digits import evaluate_digits
from ldm_jax.evals.likelihood import likelihood
from ldm_jax.evals.reconstruction import reconstruction
from ldm_jax.evals.shapes_summary import evaluate_shapes, sweep_shapes
from ldm_jax.evals.sweep import sweep_digits

EVALS = {"reconstruction": reconstruction, "digits": evaluate_digits, "sweep": sweep_digits, "likelihood": likelihood,
         "shapes": evaluate_shapes, "shapes_sweep": sweep_shapes}
