"""Latent units."""

import json

import numpy as np
import pytest

from ldm_jax.core.errors import NumbersWentBad, UserError
from ldm_jax.models.units import LatentUnits, denormalise, latent_sums, measure_units, normalise, unit_of, units_from

RNG = np.random.default_rng(0)
LATENTS = (RNG.standard_normal((10, 3, 4, 2)) * [0.5, 3.0] + [7.0, -1.0]).astype(np.float32)


@pytest.mark.parametrize("common", [False, True])
def test_units_are_those_of_all_latents_at_once(common):
    """Mistake: a mean of batch means, padding counted, or a common std that holds the means' differences."""
    padded = np.concatenate([LATENTS[7:], LATENTS[:1]])
    units = measure_units([LATENTS[:7], (padded, np.float32([1, 1, 1, 0]))], common)
    flat = LATENTS.reshape(-1, 2).astype(np.float64)
    np.testing.assert_allclose(units.mean, flat.mean(0), rtol=1e-9)
    std = np.full(2, (flat - flat.mean(0)).std()) if common else flat.std(0)
    np.testing.assert_allclose(units.std, std, rtol=1e-9)
    there = np.asarray(normalise(units, LATENTS))
    assert abs(there.mean()) < 1e-5 and there.std() == pytest.approx(1.0, rel=1e-5)
    np.testing.assert_allclose(denormalise(units, there), LATENTS, atol=1e-5)


def test_sums_of_hosts_add():
    """Mistake: stds of hosts averaged."""
    one = units_from(latent_sums(LATENTS[:4]) + latent_sums(LATENTS[4:]), False)
    np.testing.assert_allclose(one.std, units_from(latent_sums(LATENTS), False).std, rtol=1e-12)


def test_small_spread_on_a_large_mean():
    """Mistake: squares summed in float32, which give 0 here."""
    latents = (1000.0 + 0.1 * RNG.standard_normal((8, 4, 4, 1))).astype(np.float32)
    assert measure_units([latents], False).std[0] == pytest.approx(latents.astype(np.float64).std(), rel=1e-5)


def test_units_survive_json():
    """Mistake: rounding on the way into the manifest, or an unknown key ignored."""
    units = measure_units([LATENTS], False)
    assert LatentUnits.from_json(json.loads(json.dumps(units.to_json()))) == units
    with pytest.raises(UserError, match="mean and std"):
        LatentUnits.from_json({"mean": [0.0], "scale": [1.0]})


def test_what_has_no_unit_is_named():
    """Mistake: a division by zero, or NaN stored with a model."""
    constant = LATENTS.copy()
    constant[..., 1] = 2.0
    with pytest.raises(UserError, match="channel 1 of the latent is constant"):
        measure_units([constant], False)
    with pytest.raises(UserError, match="no latents"):
        measure_units([], False)
    with pytest.raises(NumbersWentBad):
        measure_units([np.full_like(LATENTS, np.nan)], False)
    with pytest.raises(UserError, match="stds above 0"):
        LatentUnits((0.0,), (0.0,))
    assert np.array_equal(normalise(unit_of(2), LATENTS), LATENTS)
