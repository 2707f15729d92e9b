"""Every sampler with the options that change its rows, and closed forms to measure them on."""

import types

import numpy as np

from ldm_jax.diffusion.samplers import SAMPLERS

VARIANTS = {
    "ddpm": {}, "ddpm large": {"variance": "large"}, "ddim": {}, "ddim half": {"eta": 0.5}, "ddim one": {"eta": 1.0}, "plms": {},
    "euler": {}, "euler_ancestral": {}, "euler_ancestral half": {"eta": 0.5}, "heun": {}, "heun flow": {"form": "flow"},
    "lms": {}, "lms 2": {"order": 2}, "lms 3": {"order": 3}, "dpm_2": {}, "dpm_2 third": {"r": 0.3}, "dpm_2 ancestral": {"eta": 1.0},
    "dpm_3": {}, "dpm_2m": {}, "dpm_2m heun": {"form": "heun"}, "dpm_3m": {}, "dpm_3m published": {"form": "published"},
    "dpmpp_2s": {}, "dpmpp_2s far": {"r": 0.7}, "dpmpp_2s grid": {"middle": "grid"}, "dpmpp_3s": {}, "dpmpp_3s heun": {"form": "heun"},
    "dpmpp_3s whole": {"lower_final": False}, "dpmpp_3s heun whole": {"form": "heun", "lower_final": False},
    "dpmpp_2s_ancestral": {}, "dpmpp_2s_ancestral half": {"eta": 0.5}, "dpmpp_2m": {}, "dpmpp_2m heun": {"form": "heun"},
    "dpmpp_2m lower": {"lower_final": True}, "dpmpp_3m": {}, "dpmpp_3m heun": {"start": "heun"},
    "dpmpp_3m published": {"form": "published"},
    "dpmpp_3m lower": {"lower_final": True}, "dpmpp_sde": {}, "dpmpp_sde half": {"eta": 0.5}, "dpmpp_sde snr": {"shared": "snr"},
    "dpmpp_sde far": {"r": 0.7}, "dpmpp_2m_sde": {}, "dpmpp_2m_sde half": {"eta": 0.5}, "dpmpp_2m_sde heun": {"form": "heun"},
    "dpmpp_3m_sde": {}, "dpmpp_3m_sde half": {"eta": 0.5}, "dpmpp_3m_sde published": {"form": "published"}, "unipc": {},
    "unipc one": {"order": 1}, "unipc bh1": {"form": "bh1"}, "unipc solved": {"form": "solved"}, "unipc three": {"order": 3},
    "unipc three bh1": {"order": 3, "form": "bh1"}, "unipc whole": {"lower_final": False},
    "unipc bh1 whole": {"form": "bh1", "lower_final": False}, "unipc three whole": {"order": 3, "lower_final": False},
    "edm": {}, "edm still": {"churn": 0.0}, "edm loud": {"churn": 2.0, "noise": 1.0, "low": 0.0},
}


def build(variant: str, path):
    """The table of a variant's name on a path."""
    return SAMPLERS[variant.split()[0]](path, **VARIANTS[variant])


def mixture():
    """Data 0.3 N(-1.2, 0.4^2) + 0.7 N(0.8, 0.5^2): the exact denoiser, and the exact flow, which keeps quantiles."""
    from scipy.special import ndtr

    share, mean, std = np.asarray([0.3, 0.7]), np.asarray([-1.2, 0.8]), np.asarray([0.4, 0.5])

    def parts(x, alpha, sigma):
        spread = np.sqrt(alpha**2 * std**2 + sigma**2)
        return (x[:, None] - alpha * mean) / spread, spread

    def denoise(x, alpha, sigma, time=None):
        away, spread = parts(x, alpha, sigma)
        weight = np.log(share / spread) - away**2 / 2
        weight = np.exp(weight - weight.max(1, keepdims=True))
        clean = np.sum(weight * (mean + alpha * std**2 / spread * away), 1) / weight.sum(1)
        return clean, (x - alpha * clean) / sigma

    def quantile(x, level):
        return ndtr(parts(x, *level)[0]) @ share

    def flow(x, level, reach):
        wanted, low, high = quantile(x, level), np.full_like(x, -8.0), np.full_like(x, 8.0)
        for _ in range(60):
            middle = (low + high) / 2
            above = quantile(middle, reach) > wanted
            low, high = np.where(above, low, middle), np.where(above, middle, high)
        return (low + high) / 2

    return types.SimpleNamespace(denoise=denoise, flow=flow)
