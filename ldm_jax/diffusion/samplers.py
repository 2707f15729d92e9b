"""Samplers: functions from a path of levels to a checked Table. Add one by writing its rows and naming it in SAMPLERS.

They stand in files by family: ancestral.py, two_stage.py, singlestep.py, multistep.py, adams.py, unipc.py.
Symbols: (a, s) the level of a row, (b, t) the level it reaches, D and E the estimates of clean and noise,
q = (a t) / (b s) = e^(-h) with h the step in ln(alpha/sigma); v = s^2 (1 - q^2). Published sigma-space forms (alpha = 1)
are moved to any level by x -> b/a and every other weight times b.
"""

import dataclasses

from ldm_jax.core.choose import choose
from ldm_jax.diffusion.adams import lms, plms
from ldm_jax.diffusion.ancestral import ddim, ddpm, euler, euler_ancestral
from ldm_jax.diffusion.grids import path_of
from ldm_jax.diffusion.multistep import dpm_2m, dpm_3m, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, dpmpp_3m_sde
from ldm_jax.diffusion.path import after, fed
from ldm_jax.diffusion.prediction import INDEX
from ldm_jax.diffusion.singlestep import dpm_3, dpmpp_2s, dpmpp_3s
from ldm_jax.diffusion.table import Table, with_guidance
from ldm_jax.diffusion.two_stage import dpm_2, dpmpp_2s_ancestral, dpmpp_sde, edm, heun
from ldm_jax.diffusion.unipc import unipc

SAMPLERS = {
    "ddpm": ddpm, "ddim": ddim, "plms": plms, "euler": euler, "euler_ancestral": euler_ancestral, "heun": heun, "lms": lms,
    "dpm_2": dpm_2, "dpm_3": dpm_3, "dpm_2m": dpm_2m, "dpm_3m": dpm_3m, "dpmpp_2s": dpmpp_2s, "dpmpp_3s": dpmpp_3s,
    "dpmpp_2s_ancestral": dpmpp_2s_ancestral, "dpmpp_2m": dpmpp_2m, "dpmpp_3m": dpmpp_3m, "dpmpp_sde": dpmpp_sde,
    "dpmpp_2m_sde": dpmpp_2m_sde, "dpmpp_3m_sde": dpmpp_3m_sde, "unipc": unipc, "edm": edm}


@dataclasses.dataclass(frozen=True)
class About:
    """What is known of a sampler with its defaults. Numbers as tests/diffusion/test_orders.py measures them.

    evaluations: of the network per step of the grid (one less in a step to clean data, where it is above 1); order: of
    convergence between two levels of noise, of the samples or, where it draws noise, of their variance, with
    lower_final=False and noise=1 where there are such options (lower_final=True costs unipc and dpmpp_3s one order at a noisy
    end, and nothing at a clean one); paper: on arXiv, "" where there is none; equals: what gives the same numbers in diffusers
    (tests/diffusion/test_parity_*.py run it), and in k-diffusion (by its code, not run).
    """

    evaluations: float
    order: int
    noisy: bool
    paper: str
    equals: str


ABOUT = {
    "ddpm": About(1, 1, True, "2006.11239", "DDPMScheduler fixed_small, fixed_large"),
    "ddim": About(1, 1, False, "2010.02502", "DDIMScheduler (eta 0 to 1)"),
    "plms": About(1, 2, False, "2202.09778", "PNDMScheduler skip_prk_steps; CompVis PLMSSampler"),
    "euler": About(1, 1, False, "2206.00364", "EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler; sample_euler"),
    "euler_ancestral": About(1, 1, True, "2010.02502", "EulerAncestralDiscreteScheduler; sample_euler_ancestral"),
    "heun": About(2, 2, False, "2206.00364", "HeunDiscreteScheduler, FlowMatchHeunDiscreteScheduler (form flow); sample_heun"),
    "lms": About(1, 2, False, "", "LMSDiscreteScheduler; sample_lms"),
    "dpm_2": About(2, 2, False, "2206.00927", "KDPM2DiscreteScheduler, KDPM2AncestralDiscreteScheduler (eta 1); sample_dpm_2"),
    "dpm_3": About(3, 3, False, "2206.00927", "dpm_solver_fast's steps of order 3"),
    "dpm_2m": About(1, 2, False, "2206.00927", "DPMSolverMultistepScheduler dpmsolver, order 2"),
    "dpm_3m": About(1, 2, False, "2206.00927", "DPMSolverMultistepScheduler dpmsolver, order 3 (form published)"),
    "dpmpp_2s": About(2, 2, False, "2211.01095", "DPMSolverSinglestepScheduler order 2 (middle grid)"),
    "dpmpp_3s": About(1, 3, False, "2211.01095", "DPMSolverSinglestepScheduler order 3"),
    "dpmpp_2s_ancestral": About(2, 2, True, "2211.01095", "sample_dpmpp_2s_ancestral"),
    "dpmpp_2m": About(1, 2, False, "2211.01095", "DPMSolverMultistepScheduler; sample_dpmpp_2m"),
    "dpmpp_3m": About(1, 2, False, "2211.01095", "DPMSolverMultistepScheduler order 3 (form published)"),
    "dpmpp_sde": About(2, 2, True, "2211.01095", "DPMSolverSDEScheduler; sample_dpmpp_sde"),
    "dpmpp_2m_sde": About(1, 2, True, "2211.01095", "DPMSolverMultistepScheduler sde-dpmsolver++; sample_dpmpp_2m_sde"),
    "dpmpp_3m_sde": About(1, 2, True, "2211.01095", "sample_dpmpp_3m_sde (form published)"),
    "unipc": About(1, 3, False, "2302.04867", "UniPCMultistepScheduler"),
    "edm": About(2, 2, True, "2206.00364", "sample_heun with churn, but before the first step"),
}


def table_for(schedule, steps: int, sampler="ddim", grid="trailing", *, time_input=INDEX,
              strength: float = 1.0, guidance: tuple = ()) -> Table:
    """The checked table of a sampler, a grid and a number of steps.

    Args:
      schedule: what the network was trained on.
      steps: grid points; some samplers evaluate more than once at each, see ABOUT.
      sampler, grid: a name, or a section dict(name=..., own keys) of SAMPLERS, GRIDS.
      time_input: from TIME_INPUTS, as trained.
      strength: in (0, 1]: image-to-image runs the last floor(strength * steps) steps; the table starts at that level.
      guidance: one weight per guidance term, a number or one per row.

    Raises:
      UserError: unknown names, stale keys, steps or options out of range.
    """
    sampler = {"name": sampler} if isinstance(sampler, str) else sampler
    path = after(path_of(schedule, steps, grid), strength)
    table = choose(SAMPLERS, sampler, "sampler", path=fed(path, schedule, time_input))
    return with_guidance(table, *guidance)
