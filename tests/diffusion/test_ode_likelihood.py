"""The probability-flow log-likelihood against closed forms: correlated Gaussian data, whose flow is affine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import base_key, key_for
from ldm_jax.diffusion.continuous import SCHEDULES
from ldm_jax.diffusion.ode_likelihood import ProbabilityFlow, log_density
from ldm_jax.diffusion.prediction import INDEX

MEAN = np.array([0.7, -0.2, 0.1, 0.4])
MIX = np.random.default_rng(5).standard_normal((4, 4)) * 0.45
COVARIANCE = MIX @ MIX.T + 0.05 * np.eye(4)
LENGTHS, AXES = np.linalg.eigh(COVARIANCE)
DATA = np.random.default_rng(1).multivariate_normal(MEAN, COVARIANCE, size=3)


def exact(params, noisy, level, time, condition):
    """The best estimate for data N(MEAN, COVARIANCE), on [B, 2, 2]."""
    mean, lengths, axes = (x.astype(noisy.dtype) for x in params)
    alpha, sigma = level.alpha, level.sigma
    along = (noisy.reshape(-1, 4) - alpha * mean) @ axes
    clean = (mean + (along * alpha * lengths / (alpha**2 * lengths + sigma**2)) @ axes.T).reshape(noisy.shape)
    return clean, (noisy - alpha * clean) / sigma


PARAMS = (MEAN, LENGTHS, AXES)
KINDS = {"linear": {}, "geometric": {}, "edm": {}, "flow": {}, "scaled_linear": {"end": 0.0195, "start": 0.0015, "zero_terminal": True},
         "betas": {"values": (0.3,) * 30}}
REACH_NOISE = ("flow", "scaled_linear")  # the others' last level still knows the data's mean: alpha / sigma is 0.005 to 0.02


def solved(name, clean=DATA, keys=None, dtype=np.float32, **options):
    schedule = SCHEDULES[name](**KINDS[name])
    clean = jnp.asarray(clean, dtype).reshape(-1, 2, 2)
    return log_density(ProbabilityFlow(schedule, INDEX, **options), exact, PARAMS, clean, None, keys)


def flow_density(name, clean=DATA):
    """The exact ln of what the exact flow makes of N(0, 1) at the largest level: it scales each axis by its deviations there and here."""
    schedule = SCHEDULES[name](**KINDS[name])
    (a0, s0), (a1, s1) = [(float(level.alpha), float(level.sigma)) for level in map(schedule.level_at, (schedule.first, schedule.last))]
    gain = np.sqrt((a1**2 * LENGTHS + s1**2) / (a0**2 * LENGTHS + s0**2)) * a0 / np.hypot(a1, s1)
    end = a1 / np.hypot(a1, s1) * MEAN @ AXES + (clean - MEAN) @ AXES * gain
    return scipy.stats.norm.logpdf(end).sum(axis=1) + np.log(gain).sum()


@pytest.mark.parametrize("name", KINDS)
def test_the_exact_trace_gives_the_closed_form(name):
    """Catches a divergence of the wrong sign, a change of variables without the levels' alpha (betas 0.3: ln 0.84 a dimension), a prior of

    another scale, and a flow that breaks at alpha = 0. 1e-4 nats a dimension from what the exact flow makes of the prior; and, where the
    schedule reaches noise, 1e-3 from the density of the data, widened by the smallest level.
    """
    found = np.asarray(solved(name, probes=0).log_density, np.float64)
    level = SCHEDULES[name](**KINDS[name]).level_at(SCHEDULES[name](**KINDS[name]).first)
    wide = COVARIANCE + (level.sigma / level.alpha) ** 2 * np.eye(4)
    data = scipy.stats.multivariate_normal(MEAN, wide).logpdf(DATA)
    print(f"{name}: from the data {np.abs(found - data).max() / 4:.1e}, from the flow {np.abs(found - flow_density(name)).max() / 4:.1e}")
    assert np.abs(found - data).max() / 4 < (1e-3 if name in REACH_NOISE else 1e-2)
    assert np.abs(found - flow_density(name)).max() / 4 < 1e-4


@pytest.mark.parametrize("solver, order, counts", [("rk4", 4, (24, 48, 96)), ("heun", 2, (64, 128, 256))])
def test_orders(solver, order, counts):
    """In float64. Catches a middle level at the wrong place, and weights of the divergence that are not those of the point."""
    with jax.enable_x64(True):
        found = [np.asarray(solved("edm", dtype=np.float64, probes=0, solver=solver, steps=n).log_density) for n in counts]
    errors = [np.abs(one - flow_density("edm")).max() for one in found]
    slope = -np.polyfit(np.log2(counts), np.log2(errors), 1)[0]
    print(f"{solver}: errors {errors[0]:.2e} .. {errors[-1]:.2e}, slope {slope:.3f}")
    assert abs(slope - order) < 0.25 and errors[-1] < 2e-4


@pytest.mark.parametrize("probe", ["rademacher", "normal"])
def test_hutchinson(probe):
    """Catches one probe for all examples, a standard error that is a deviation, and the sum of the probes: each image within its error,

    as errors go; their mean within 4 standard errors. The covariance has off-diagonal parts: without, +-1 probes are exact.
    """
    count, probes = 256, 8
    clean, keys = np.broadcast_to(DATA[:1], (count, 4)), key_for(base_key(0), "image", example=jnp.arange(count))
    found = jax.device_get(solved("flow", clean, keys, probes=probes, probe=probe))
    wanted = np.asarray(solved("flow", DATA[:1], probes=0).log_density)[0]
    away = found.log_density - wanted
    mean_error = np.sqrt(np.mean(found.standard_error**2) / count)
    print(f"{probe}: mean off by {away.mean():.4f}, 4 errors {4 * mean_error:.4f}; spread over told {away.std() / (mean_error * 16):.3f}")
    assert abs(away.mean()) < 4 * mean_error
    assert 0.8 < away.std() / (mean_error * count**0.5) < 1.2
    assert np.mean(np.abs(away) < 4 * found.standard_error) > 0.97  # Student's t of 7 degrees


def test_an_example_is_itself_in_any_batch():
    """Catches probes drawn for the batch."""
    keys = key_for(base_key(0), "image", example=jnp.arange(3))
    whole, part = solved("flow", DATA, keys, steps=4), solved("flow", DATA[2:], keys[2:], steps=4)
    np.testing.assert_allclose(whole.log_density[2:], part.log_density, rtol=1e-5)


def test_the_end_is_noise():
    """Catches a flow that runs the other way: an axis at k deviations of the data ends at k of N(0, 1)."""
    clean = MEAN + 2 * np.sqrt(LENGTHS[3]) * AXES[:, 3]
    end = np.asarray(solved("flow", clean[None], probes=0).noise).reshape(4) @ AXES
    np.testing.assert_allclose(end, [0, 0, 0, 2], atol=2e-3)


@pytest.mark.parametrize("options, word", [({"steps": 0}, "steps=0"), ({"probes": 1}, "probes=1: expected at least 2"),
                                           ({"solver": "euler"}, "rk4, heun"), ({"probe": "cauchy"}, "rademacher, normal"), ({}, "keys:")])
def test_refusals(options, word):
    """Catches an error that is divided by zero probes, and probes without keys."""
    with pytest.raises(UserError, match=word):
        solved("flow", **options)
