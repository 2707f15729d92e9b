"""The evaluations by name."""

from ldm_jax.evals.digits import evaluate_digits
from ldm_jax.evals.likelihood import likelihood
from ldm_jax.evals.reconstruction import reconstruction

EVALS = {"reconstruction": reconstruction, "digits": evaluate_digits, "likelihood": likelihood}
