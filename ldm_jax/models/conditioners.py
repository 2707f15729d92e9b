"""The conditioners by name."""

from ldm_jax.models.condition import ClassConditioner, Unconditional

CONDITIONERS = {"none": Unconditional, "class": ClassConditioner}
