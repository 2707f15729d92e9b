"""How both sides of the parity tests are run: diffusers' schedulers and our tables, on one toy network and the same noise.

diffusers holds its tables in float32. `theirs(exact=True)` runs the installed code with every float32 it names read as
float64, so that the formulas themselves are compared to 1e-9; exact=False runs it as shipped, compared to 1e-5.
"""

import contextlib
import importlib
import sys
import types

import jax
import numpy as np
import pytest

from ldm_jax.core.types import Level
from ldm_jax.diffusion.limits import Unlimited
from ldm_jax.diffusion.prediction import INDEX, PREDICTIONS
from ldm_jax.diffusion.samplers import table_for
from ldm_jax.diffusion.schedule import scaled_linear
from ldm_jax.diffusion.table import run_on_host

torch = pytest.importorskip("torch", reason="torch is not installed: no independent implementation to compare with")
diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: no independent implementation to compare with")

SD = scaled_linear()
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
UNLIMITED = Unlimited()
SIZE = (2, 8, 1)  # examples, channels, and one more axis: their thresholding needs it
RNG = np.random.default_rng(7)
START, DRAWS = RNG.standard_normal(SIZE), RNG.standard_normal((1000, *SIZE))

STORED = dict(BETAS, num_train_timesteps=1000, trained_betas=None, clip_sample=False, set_alpha_to_one=False, skip_prk_steps=True,
              steps_offset=1)
MODELS = {  # the scheduler_config.json that each model ships
    "sd15": dict(STORED, _class_name="PNDMScheduler", _diffusers_version="0.6.0"),
    "sd21": dict(STORED, _class_name="DDIMScheduler", _diffusers_version="0.8.0", prediction_type="v_prediction"),
    "sdxl": dict(STORED, _class_name="EulerDiscreteScheduler", _diffusers_version="0.19.0.dev0", prediction_type="epsilon",
                 timestep_spacing="leading", interpolation_type="linear", use_karras_sigmas=False, sample_max_value=1.0),
}
KINDS = {"epsilon": "noise", "sample": "clean", "v_prediction": "v", "flow_prediction": "flow"}
SIGMA_SPACE = {"Euler", "EulerAncestral", "Heun", "LMS", "KDPM2", "KDPM2Ancestral", "DPMSolverSDE"}  # their point is x / alpha
LONG = {name: f"{name}Discrete" for name in SIGMA_SPACE - {"DPMSolverSDE"}} | {"FlowMatchEuler": "FlowMatchEulerDiscrete",
                                                                               "FlowMatchHeun": "FlowMatchHeunDiscrete",
                                                                               "UniPC": "UniPCMultistep"}


def toy(x, time, rate=8e-4):
    """A network: nonlinear in the point, smooth in it and in the time it is fed."""
    return np.tanh(0.9 * x + rate * time) + 0.1 * np.sin(3 * x)


def of(name: str) -> type:
    """The scheduler class. DPMSolverSDE asks for torchsde on import, only to draw its noise, which is ours here."""
    if name != "DPMSolverSDE":
        return getattr(diffusers, f"{LONG.get(name, name)}Scheduler")
    with pytest.MonkeyPatch.context() as patch:
        if "torchsde" not in sys.modules and importlib.util.find_spec("torchsde") is None:
            patch.setitem(sys.modules, "torchsde", types.ModuleType("torchsde"))
        return importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde").DPMSolverSDEScheduler


class _InDouble:
    """A module whose float32 is float64."""

    def __init__(self, module):
        self._module = module

    def __getattr__(self, name):
        return getattr(self._module, {"float32": "float64"}.get(name, name))


@contextlib.contextmanager
def _patched(kind: type, exact: bool, draw):
    """diffusers with our draws: draw(i) in its i-th step; and in float64 if `exact`."""
    module, told = sys.modules[kind.__module__], types.SimpleNamespace(row=0)
    with pytest.MonkeyPatch.context() as patch:
        if exact:
            patch.setattr(module, "torch", _InDouble(torch))
            patch.setattr(module, "np", _InDouble(np), raising=False)
            patch.setattr("torch.get_default_dtype", torch.get_default_dtype)
            torch.set_default_dtype(torch.float64)
        patch.setattr(module, "randn_tensor", lambda shape, dtype=None, **other: torch.tensor(draw(told.row), dtype=dtype), raising=False)
        if hasattr(module, "BrownianTreeNoiseSampler"):
            patch.setattr(module, "BrownianTreeNoiseSampler",
                          lambda x, *a, **k: lambda s, reach: torch.tensor(draw(told.row, s, reach), dtype=x.dtype))
        try:
            yield told
        finally:
            torch.set_default_dtype(torch.float32)


def theirs(name, config, steps, begin=1.0, end=1.0, x=START, draw=None, network=toy, exact=True, dtype=None, set_=None,
           first=0, **own) -> np.ndarray:
    """Runs `<name>Scheduler.from_config(config)` for `steps` from x.

    Args:
      begin, end: alpha of the first level and of the end; x is divided by the first where the scheduler works on x / alpha.
      draw: draw(i) -> the noise of step i; default DRAWS[i].
      first: how many of the timesteps are left out, as pipelines do for image-to-image.
      set_, own: further arguments of `set_timesteps` and of `step`.
    """
    kind, draw = of(name), draw or (lambda i, *levels: DRAWS[i])
    begin, end = (begin, end) if name in SIGMA_SPACE else (1.0, 1.0)
    dtype = dtype or torch.float64
    with _patched(kind, exact, draw) as told:
        scheduler = _made(kind, config)
        scheduler.set_timesteps(steps, **(set_ or {}))
        if first and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        point = torch.tensor(x / begin, dtype=dtype)
        for told.row, t in enumerate(scheduler.timesteps[first:]):
            seen = scheduler.scale_model_input(point, t) if hasattr(scheduler, "scale_model_input") else point
            output = torch.tensor(network(seen.numpy(), t.numpy()), dtype=dtype)
            given = dict(own, variance_noise=torch.tensor(draw(told.row))) if name == "DDIM" and "eta" in own else own
            point = scheduler.step(output, t, point, **given).prev_sample
    return point.numpy() * point.numpy().dtype.type(end)


def _made(kind: type, config):
    """The scheduler. Some make all 1000 steps when constructed, one by one and for seconds; here they make 2, before those asked for."""
    plan = kind.set_timesteps
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "set_timesteps", lambda self, *args, **kwargs: plan(self, 2))
        return kind.from_config(config)


def brownian(draws=DRAWS):
    """The noise of DPMSolverSDE: increments of one Brownian motion in sigma, from the draws of the two rows of each step."""
    kept = []

    def draw(i, sigma, reach):
        if not kept:
            kept.append((draws[i], float(sigma - reach)))
            return draws[i]
        first, length = kept.pop()
        share = length / float(sigma - reach)
        return np.sqrt(share) * first + np.sqrt(1 - share) * draws[i]

    return draw


def denoise(prediction, network=toy, limit=UNLIMITED):
    """The network on our side, in float64: denoise(x, alpha, sigma, time) -> (clean, noise); `limit`: from limits.py."""
    kind = PREDICTIONS[prediction]() if isinstance(prediction, str) else prediction
    limited = limit(lambda params, x, level, time: kind.to_hub(network(kind.inputs(x, level), time), x, level))

    def run(x, alpha, sigma, time):
        with jax.enable_x64(True):  # the limits are jax's
            return [np.asarray(part) for part in limited({}, x, Level(np.float64(alpha), np.float64(sigma)), time)]

    return run


def agree(name, config, sampler, grid, steps=10, schedule=SD, prediction=None, time_input=INDEX, shipped=1e-5, draw=None, network=toy,
          draws=DRAWS, limit=UNLIMITED, **own) -> np.ndarray:
    """Asserts that our table and the scheduler give the same point: to 1e-9 by its formulas, to `shipped` as it is shipped.

    sampler, grid: what a user writes; limit: on our estimates, from limits.py. Returns our point.
    """
    table = table_for(schedule, steps, sampler, grid, time_input=time_input)
    return compare(name, config, table, steps, prediction, shipped, draw, network, draws, limit, **own)


def compare(name, config, table, steps, prediction=None, shipped=1e-5, draw=None, network=toy, draws=DRAWS, limit=UNLIMITED,
            **own) -> np.ndarray:
    """`agree` for a table made by hand."""
    prediction = prediction or KINDS[config.get("prediction_type", "epsilon")]
    got = run_on_host(table, denoise(prediction, network, limit), START, draws[:table.rows])
    for exact, tolerance in ((True, 1e-9), (False, shipped)):
        wanted = theirs(name, config, steps, table.level[0, 0], table.reach[-1, 0], draw=draw, network=network, exact=exact, **own)
        close(got, wanted, tolerance)
    return got


def close(got, wanted, tolerance=1e-5):
    """Largest difference, of values of order 1; for larger values relative to the largest."""
    difference, size = np.abs(got - wanted).max(), max(1.0, np.abs(wanted).max())
    print(f"largest difference {difference:.1e}, values up to {np.abs(wanted).max():.2f}")
    assert difference <= tolerance * size, f"{difference:.2e} > {tolerance:g} * {size:.3g}"
