"""Closed forms that the diffusion tests share: Gaussian data, for which the best denoiser and the exact flow are known."""

import types

import numpy as np
import pytest


@pytest.fixture
def gaussian():
    """Data N(mean, std^2): the exact denoiser, and the exact solution of the probability-flow equation, in float64."""
    mean, std = 0.7, 0.4

    def spread(alpha, sigma):
        return np.sqrt(alpha**2 * std**2 + sigma**2)

    def denoise(x, alpha, sigma, time=None):
        clean = mean + alpha * std**2 / spread(alpha, sigma) ** 2 * (x - alpha * mean)
        return clean, (x - alpha * clean) / sigma

    def flow(x, level, reach):
        return reach[0] * mean + (x - level[0] * mean) * spread(*reach) / spread(*level)

    return types.SimpleNamespace(mean=mean, std=std, denoise=denoise, flow=flow)


@pytest.fixture
def even_path():
    """even_path(n): n steps, ln(alpha/sigma) evenly from -2 to 2 (a real end, so that orders are not those of the last step)."""
    from ldm_jax.diffusion.path import Path

    def build(n, warp=0.0):
        u = np.linspace(0, 1, n + 1)
        lam = -2 + 4 * (u + warp * np.sin(np.pi * u) ** 2)
        alpha = np.sqrt(1 / (1 + np.exp(-2 * lam)))
        return Path(alpha, alpha * np.exp(-lam), -lam, lambda ratio: (1 / np.hypot(1, ratio), ratio / np.hypot(1, ratio), np.log(ratio)))

    return build
