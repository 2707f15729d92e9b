"""The solvers' own options in diffusers: orders, midpoint and heun, bh1 and bh2, noise and SDE forms, lower order at the end."""

import numpy as np
import pytest

from ldm_jax.diffusion.grids import karras
from ldm_jax.diffusion.limits import Clip, Dynamic
from tests.diffusion.peers import BETAS, SD, agree

pytestmark = [pytest.mark.filterwarnings("ignore:__array"),  # diffusers' own, of numpy 2
              pytest.mark.filterwarnings("ignore:.*is deprecated")]

CONFIG = dict(BETAS, timestep_spacing="trailing")
LOWEST = {"name": "trailing", "end": "lowest"}
NOISE = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}  # the noise forms cannot reach sigma 0
SDE = {"algorithm_type": "sde-dpmsolver++"}
UNEVEN = dict(CONFIG, use_karras_sigmas=True)
KARRAS = {"name": "karras", "rounded": True}
STEPS = [2, 3, 10, 20]


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("form", ["midpoint", "heun"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_multistep(order, form, steps):
    """Catches midpoint and heun swapped, the ratio of two steps upside down (on uneven steps), another order in the first two
    steps, and the order 2 of the last step but one below 15 steps. diffusers' third order is the published one."""
    sampler = {1: "ddim", 2: {"name": "dpmpp_2m", "form": form, "lower_final": steps < 15},
               3: {"name": "dpmpp_3m", "form": "published", "start": form, "lower_final": steps < 15}}[order]
    agree("DPMSolverMultistep", dict(UNEVEN, solver_order=order, solver_type=form), sampler, KARRAS, steps)


@pytest.mark.parametrize("lower", [{"lower_order_final": True}, {"lower_order_final": False}, {"euler_at_final": True}], ids=str)
@pytest.mark.parametrize("order", [2, 3])
def test_lower_order_at_the_end(order, lower):
    """Catches the lower order taken where the peer keeps the full one: with an end above sigma 0 the last step has an order."""
    final = lower != {"lower_order_final": False}
    sampler = {"name": "dpmpp_2m", "lower_final": final} if order == 2 else {
        "name": "dpmpp_3m", "form": "published", "lower_final": final}
    agree("DPMSolverMultistep", dict(CONFIG, solver_order=order, final_sigmas_type="sigma_min", **lower), sampler, LOWEST)


@pytest.mark.parametrize("steps", [3, 10, 20])
@pytest.mark.parametrize("form", ["midpoint", "heun"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_multistep_in_the_noise(order, form, steps):
    """Catches the noise form's exponentials taken for the clean form's, and the two first steps of another order."""
    config = dict(CONFIG, **NOISE, solver_order=order, solver_type=form)
    sampler = {1: "ddim", 2: {"name": "dpm_2m", "form": form, "lower_final": steps < 15},
               3: {"name": "dpm_3m", "form": "published", "start": form, "lower_final": steps < 15}}[order]
    agree("DPMSolverMultistep", config, sampler, LOWEST, steps)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("form", ["midpoint", "heun"])
@pytest.mark.parametrize("order", [1, 2])
def test_multistep_sde(order, form, steps):
    """Catches the decay of the data term with eta in one place and not in the other, and a draw in the step to sigma 0."""
    sampler = {"name": "ddim", "eta": 1.0} if order == 1 else {"name": "dpmpp_2m_sde", "eta": 1.0, "form": form}
    config = dict(UNEVEN, **SDE, solver_order=order, solver_type=form)
    agree("DPMSolverMultistep", config, sampler, KARRAS, steps)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 11, 12])
@pytest.mark.parametrize("order, form", [(2, "midpoint"), (3, "midpoint"), (3, "heun")])
def test_singlestep(order, form, steps):
    """Catches the orders at the end for step counts that the order does not divide, and the point a step returns to."""
    sampler = {"name": "dpmpp_2s", "middle": "grid"} if order == 2 else {"name": "dpmpp_3s", "form": form}
    config = dict(UNEVEN, solver_order=order, solver_type=form, lower_order_final=True)
    agree("DPMSolverSinglestep", config, sampler, KARRAS, steps)


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(order, steps):
    """Catches the corrector's order taken from the wrong step, its nodes with the wrong sign, and orders at the end."""
    config = dict(UNEVEN, solver_order=order, solver_type="bh2", lower_order_final=True)
    agree("UniPC", config, {"name": "unipc", "order": order}, KARRAS, steps)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_bh1(order):
    """Catches bh1 and bh2 swapped. To sigma_min: theirs gives NaN at sigma 0 (see test_parity_faults)."""
    config = dict(CONFIG, solver_order=order, solver_type="bh1", final_sigmas_type="sigma_min")
    agree("UniPC", config, {"name": "unipc", "order": order, "form": "bh1"}, LOWEST)


@pytest.mark.parametrize("order", [2, 3])
def test_unipc_of_full_order_to_the_end(order):
    """Catches an order that falls at the end though nothing there asks for it."""
    config = dict(CONFIG, solver_order=order, lower_order_final=False, final_sigmas_type="sigma_min")
    agree("UniPC", config, {"name": "unipc", "order": order, "lower_final": False}, LOWEST)


@pytest.mark.parametrize("form", ["midpoint", "heun"])
def test_singlestep_of_full_order_to_the_end(form):
    """Catches a last triple that is cut short though it ends above sigma 0."""
    config = dict(CONFIG, solver_order=3, solver_type=form, lower_order_final=False, final_sigmas_type="sigma_min")
    agree("DPMSolverSinglestep", config, {"name": "dpmpp_3s", "form": form, "lower_final": False},
          {"name": "linspace", "rounded": True, "drop_lowest": True, "end": "lowest"}, 12)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms_orders(order):
    """Catches the integral of another Lagrange polynomial, and a history that shifts too early."""
    agree("LMS", CONFIG, {"name": "lms", "order": order}, "trailing", order=order)


DYNAMIC = {"thresholding": True, "dynamic_thresholding_ratio": 0.995}  # with diffusers' default for the largest bound, 1


@pytest.mark.parametrize("name, sampler, config, limit, own", [
    ("DDPM", "ddpm", {"clip_sample": True}, Clip(), {}),
    ("DDPM", {"name": "ddpm", "variance": "large"}, {"clip_sample": True, "clip_sample_range": 0.5, "variance_type": "fixed_large"},
     Clip(0.5), {}),
    ("DDPM", "ddpm", DYNAMIC, Dynamic(most=1.0), {}),
    ("DDIM", "ddim", {"clip_sample": True}, Clip(noise="raw"), {}),
    ("DDIM", {"name": "ddim", "eta": 0.5}, {"clip_sample": True}, Clip(noise="raw"), {"eta": 0.5}),
    ("DDIM", "ddim", {"clip_sample": True}, Clip(), {"use_clipped_model_output": True}),
    ("DDIM", "ddim", DYNAMIC, Dynamic(most=1.0, noise="raw"), {}),
    ("DDIM", "ddim", dict(DYNAMIC, sample_max_value=2.5), Dynamic(most=2.5, noise="raw"), {}),
    ("DDIM", {"name": "ddim", "eta": 0.5}, dict(DYNAMIC, sample_max_value=2.5), Dynamic(most=2.5),
     {"eta": 0.5, "use_clipped_model_output": True}),
    ("DPMSolverMultistep", {"name": "dpmpp_2m", "lower_final": True}, dict(DYNAMIC, sample_max_value=2.5), Dynamic(most=2.5), {}),
    ("DPMSolverMultistep", {"name": "dpmpp_2m", "form": "heun", "lower_final": True}, dict(DYNAMIC, solver_type="heun"),
     Dynamic(most=1.0), {})], ids=str)
def test_limits(name, sampler, config, limit, own):
    """Catches noise left raw where the scheduler recomputes it and the other way round, a limit in front of the history and not in
    it, and a bound that is not the one asked for. Clipping is what DDPM and DDIM do by default."""
    config = dict(CONFIG, steps_offset=0, **config) | ({"timestep_spacing": "leading"} if name == "DDPM" else {})
    grid = {"name": "leading", "offset": 0} if name == "DDPM" else "trailing"
    limited = agree(name, config, sampler, grid, limit=limit, **own)
    with pytest.raises(AssertionError):
        agree(name, config, sampler, grid, **own)
    assert np.abs(limited).max() <= (limit.limit if isinstance(limit, Clip) else 1.0) + 1e-9


def test_steps_differ_enough_to_tell():
    """The tests above could not catch a wrong ratio of steps on even ones: here they differ by far."""
    steps = -np.diff(np.log(karras(SD, 10).ratios[:-1]))
    assert steps.max() / steps.min() > 1.5
