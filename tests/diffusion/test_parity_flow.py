"""diffusers' flow matching and EDM schedulers, and its DPM-Solver and UniPC on flow sigmas."""

import math

import numpy as np
import pytest

from ldm_jax.core.choose import choose
from ldm_jax.diffusion.continuous import Edm, Flow
from ldm_jax.diffusion.path import fed, on_schedule
from ldm_jax.diffusion.prediction import PREDICTIONS, TIME_INPUTS
from ldm_jax.diffusion.samplers import SAMPLERS
from tests.diffusion.peers import agree, compare

pytestmark = pytest.mark.filterwarnings("ignore:__array")  # diffusers' own, of numpy 2

THOUSAND = TIME_INPUTS["scaled"](1000.0)


def shifted(t, shift):
    return shift * t / (1 + (shift - 1) * t)


@pytest.mark.parametrize("steps", [1, 2, 10, 28])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("name, sampler", [("FlowMatchEuler", "euler"), ("FlowMatchHeun", {"name": "heun", "form": "flow"})])
def test_flow_matching(name, sampler, shift, steps):
    """Catches the shift upside down, a second evaluation of Heun at another time, and the time not multiplied by 1000.

    The peer shifts its lowest time, 0.001, twice: once when made, once more with the others."""
    config = {"shift": shift}
    schedule = Flow(low=shifted(0.001, shift))
    agree(name, config, sampler, {"name": "linspace", "shift": shift}, steps, schedule, "flow", THOUSAND)


@pytest.mark.parametrize("kind, shift", [("exponential", math.exp(1.15)), ("linear", 1.15)])
def test_flow_matching_with_a_shift_from_the_image_size(kind, shift):
    """Catches mu taken for the shift itself where the shift is e^mu."""
    config = {"use_dynamic_shifting": True, "time_shift_type": kind}
    agree("FlowMatchEuler", config, "euler", {"name": "linspace", "shift": shift}, 10, Flow(), "flow", THOUSAND, set_={"mu": 1.15})


@pytest.mark.parametrize("kind", ["karras", "exponential", "terminal"])
def test_flow_matching_at_other_times(kind):
    """Catches a step that is right at even times only. By hand: these rules space sigma itself, not sigma/alpha as our grids."""
    even = np.linspace(1, 0.001, 10)
    times = {"karras": np.linspace(1, 0.001 ** (1 / 7), 10) ** 7, "exponential": np.geomspace(1, 0.001, 10),
             "terminal": 1 - (1 - even) / (1 - even[-1]) * 0.9}[kind]
    path = fed(on_schedule(Flow(low=1e-4), times), Flow(low=1e-4), THOUSAND)
    config = {"shift_terminal": 0.1} if kind == "terminal" else {f"use_{kind}_sigmas": True}
    compare("FlowMatchEuler", config, choose(SAMPLERS, {"name": "euler"}, "sampler", path=path), 10, prediction="flow")


@pytest.mark.parametrize("name, sampler", [("DPMSolverMultistep", {"name": "dpmpp_2m", "lower_final": True}),
                                           ("DPMSolverSinglestep", {"name": "dpmpp_2s", "middle": "grid"}), ("UniPC", "unipc")])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_dpm_on_flow_sigmas(name, sampler, shift):
    """Catches exponential methods that assume alpha^2 + sigma^2 = 1.

    By hand: these begin at 0.999 (UniPC at 1 - 1e-6) in place of 1, and cut the time they feed down to a whole number."""
    times = shifted(0.999 * np.arange(10, 0, -1) / 10, shift)
    if name == "UniPC":
        times = shifted(1 - 0.999 * np.arange(10) / 10, shift)
        times[0] -= 1e-6
    path = fed(on_schedule(Flow(low=1e-4), times), Flow(low=1e-4), lambda schedule, t: np.floor(1000 * t + 1e-9))
    table = choose(SAMPLERS, {"name": sampler} if isinstance(sampler, str) else sampler, "sampler", path=path)
    compare(name, {"use_flow_sigmas": True, "flow_shift": shift, "prediction_type": "flow_prediction"}, table, 10)


def fed_quarter_log(x, time):
    """A network whose time is ln(sigma) / 4."""
    return np.tanh(0.9 * x + 0.3 * time) + 0.1 * np.sin(3 * x)


@pytest.mark.parametrize("kind", ["karras", "exponential"])
@pytest.mark.parametrize("name, sampler, config", [
    ("EDMEuler", "euler", {}),
    ("EDMDPMSolverMultistep", {"name": "dpmpp_2m", "lower_final": True}, {}),
    ("EDMDPMSolverMultistep", {"name": "dpmpp_2m", "lower_final": True, "form": "heun"}, {"solver_type": "heun"}),
    ("EDMDPMSolverMultistep", {"name": "dpmpp_3m", "lower_final": True, "form": "published"}, {"solver_order": 3}),
    ("EDMDPMSolverMultistep", {"name": "dpmpp_2m_sde", "eta": 1.0}, {"algorithm_type": "sde-dpmsolver++"})])
def test_edm(name, sampler, config, kind):
    """Catches c_skip, c_out, c_in with another sigma_data than 0.5, c_noise not a quarter of ln sigma, and sigmas from 0.002 to 80."""
    agree(name, dict(config, sigma_schedule=kind), sampler, kind, 10, Edm(), PREDICTIONS["edm"](0.5),
          TIME_INPUTS["quarter_log_sigma"](), network=fed_quarter_log)
