"""Samplers: functions from a path of levels to a checked Table. Add one by writing its rows and naming it in SAMPLERS.

Symbols: (a, s) the level of a row, (b, t) the level it reaches, D and E the estimates of clean and noise,
q = (a t) / (b s) = e^(-h) with h the step in ln(alpha/sigma); v = s^2 (1 - q^2). Published sigma-space forms (alpha = 1)
are moved to any level by x -> b/a and every other weight times b.
"""

import dataclasses

from ldm_jax.core.choose import choose
from ldm_jax.diffusion.adams import lms, plms
from ldm_jax.diffusion.ancestral import ddim, ddpm, euler, euler_ancestral
from ldm_jax.diffusion.grids import GRIDS
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


def table_for(schedule, steps: int, sampler="ddim", grid="trailing", *, time_input=INDEX,
              strength: float = 1.0, guidance: tuple = ()) -> Table:
    """The checked table of a sampler, a grid and a number of steps.

    Args:
      schedule: what the network was trained on.
      steps: grid points; Heun evaluates twice at all but the last.
      sampler, grid: a name, or a section dict(name=..., own keys) of SAMPLERS, GRIDS.
      time_input: from TIME_INPUTS, as trained.
      strength: in (0, 1]: image-to-image runs the last floor(strength * steps) steps; the table starts at that level.
      guidance: one weight per guidance term, a number or one per row.

    Raises:
      UserError: unknown names, stale keys, steps or options out of range.
    """
    grid = {"name": grid} if isinstance(grid, str) else grid
    sampler = {"name": sampler} if isinstance(sampler, str) else sampler
    path = after(choose(GRIDS, grid, "grid", schedule=schedule, steps=steps), strength)
    table = choose(SAMPLERS, sampler, "sampler", path=fed(path, schedule, time_input))
    return with_guidance(table, *guidance)
