"""The mathematics of diffusion: plain functions over arrays and callables. Imports core, jax and numpy, nothing else."""
