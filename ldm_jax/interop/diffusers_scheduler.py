"""diffusers' scheduler_config.json and our sections schedule, prediction, time_input and sampling, both ways.

What equals what is tested sampler by sampler, with numbers, in tests/diffusion/test_parity_*.py.
"""

from collections.abc import Mapping
from typing import Any

from ldm_jax.core.errors import UserError
from ldm_jax.interop.diffusers_keys import SCHEDULER, check_keys

PREDICTIONS = {"epsilon": "noise", "v_prediction": "v", "sample": "clean"}
BETAS = {"scaled_linear": "scaled_linear", "linear": "linear", "squaredcos_cap_v2": "cosine"}
SUFFIX = "Scheduler"
FIRST = {"DDPM": dict(name="ddpm"), "DDIM": dict(name="ddim"), "PNDM": dict(name="plms")}
EULER = {"EulerDiscrete": dict(name="euler"), "EulerAncestralDiscrete": dict(name="euler_ancestral"), "HeunDiscrete": dict(name="heun"),
         "LMSDiscrete": dict(name="lms"), "KDPM2Discrete": dict(name="dpm_2"), "KDPM2AncestralDiscrete": dict(name="dpm_2", eta=1.0)}
SOLVERS = {"DPMSolverMultistep": dict(name="dpmpp_2m"), "UniPCMultistep": dict(name="unipc")}
SIGMAS = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential", "use_beta_sigmas": "beta"}
ODD = (  # option, the classes that have it, what it must be: others have no equal here
    ("skip_prk_steps", ("PNDM",), (True,), False), ("thresholding", (*FIRST, *SOLVERS), (False,), False),
    ("variance_type", ("DDPM",), ("fixed_small", "fixed_large"), "fixed_small"),
    ("timestep_type", ("EulerDiscrete",), ("discrete",), "discrete"),
    ("interpolation_type", ("EulerDiscrete",), ("linear",), "linear"), ("algorithm_type", SOLVERS, ("dpmsolver++",), "dpmsolver++"),
    ("solver_order", SOLVERS, (2,), 2), ("solver_type", ("UniPCMultistep",), ("bh2",), "bh2"),
    ("solver_type", ("DPMSolverMultistep",), ("midpoint", "heun"), "midpoint"), ("use_lu_lambdas", SOLVERS, (False,), False),
    ("use_flow_sigmas", SOLVERS, (False,), False), ("clip_sample", ("HeunDiscrete",), (False,), False))


def read_scheduler(config: Mapping[str, Any], steps: int, guidance: float = 1.0) -> dict[str, dict]:
    """A scheduler's settings as sections.

    Args:
      steps, guidance: the pipeline's defaults.

    Returns:
      {"schedule", "prediction", "time_input", "sampling"}.

    Raises:
      UserError: a scheduler, or a setting of one, without an equal here.
    """
    kind = str(config.get("_class_name", "")).removesuffix(SUFFIX)
    known = FIRST | EULER | SOLVERS
    if kind not in known:
        raise UserError(f"scheduler {kind[:80] or 'without _class_name'}: expected one of {', '.join(name + SUFFIX for name in known)}; "
                        "write another _class_name into scheduler_config.json, the weights do not depend on it")
    check_keys(config, SCHEDULER, "scheduler")
    for key, classes, accepted, default in ODD:
        if kind in classes and config.get(key, default) not in accepted:
            raise UserError(f"scheduler {kind}: {key}={config.get(key, default)!r} has no equal here; expected "
                            f"{' or '.join(map(repr, accepted))}")
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise UserError(f"scheduler: prediction_type={prediction!r}: expected one of {', '.join(PREDICTIONS)}")
    sampler = dict(known[kind])
    if kind == "DDPM" and config.get("variance_type") == "fixed_large":
        sampler["variance"] = "large"
    if kind == "DPMSolverMultistep":
        sampler |= {"form": "heun"} if config.get("solver_type") == "heun" else {}
        sampler |= {"lower_final": True} if config.get("lower_order_final", True) and steps < 15 else {}
    clips = kind in ("DDPM", "DDIM") and config.get("clip_sample", True)
    threshold = dict(name="clip", limit=float(config.get("clip_sample_range", 1.0)), noise="raw" if kind == "DDIM" else "recomputed")
    sampling = dict(sampler=sampler, grid=_grid(kind, config, steps), steps=steps, guidance=guidance,
                    threshold=threshold if clips else dict(name="none"))
    return dict(schedule=_schedule(config), prediction=dict(name=PREDICTIONS[prediction]), time_input=dict(name="index"), sampling=sampling)


def _schedule(config: Mapping[str, Any]) -> dict:
    zero = {"zero_terminal": True} if config.get("rescale_betas_zero_snr") else {}
    if config.get("trained_betas") is not None:
        return dict(name="betas", values=tuple(map(float, config["trained_betas"]))) | zero
    name = config.get("beta_schedule", "linear")
    if name not in BETAS:
        raise UserError(f"scheduler: beta_schedule={name!r}: expected one of {', '.join(BETAS)}, or trained_betas")
    steps = config.get("num_train_timesteps", 1000)
    if name == "squaredcos_cap_v2":
        return dict(name="cosine", steps=steps) | zero
    return dict(name=BETAS[name], start=config.get("beta_start", 1e-4), end=config.get("beta_end", 0.02), steps=steps) | zero


def _grid(kind: str, config: Mapping[str, Any], steps: int) -> dict:
    spacing = config.get("timestep_spacing", "leading" if kind in FIRST else "linspace")
    offset, times = config.get("steps_offset", 0), config.get("num_train_timesteps", 1000)
    lowest = (kind in FIRST and not config.get("set_alpha_to_one", kind != "PNDM") and kind != "DDPM"
              or kind not in FIRST and config.get("final_sigmas_type", "zero") == "sigma_min")
    end = {"end": "lowest"} if lowest else {}
    sigmas = next((name for key, name in SIGMAS.items() if config.get(key)), "")
    if sigmas and kind in SOLVERS:
        if sigmas != "karras":
            raise UserError(f"scheduler {kind}: {sigmas} sigmas feed times cut off to whole numbers and have no equal here; "
                            "expected karras, or none")
        return dict(name=sigmas, rounded=True) | end
    if sigmas and kind not in FIRST:
        rounded = {"rounded": True} if kind.startswith("KDPM2") and sigmas == "karras" else {}
        return dict(name=sigmas) | _span(spacing, offset, times, steps) | rounded | end
    if spacing == "leading":
        return dict(name="leading") | ({"offset": offset} if offset != 1 else {}) | ({"drop_lowest": True} if kind in SOLVERS else {}) | end
    if spacing == "trailing":
        return dict(name="trailing") | end
    if spacing != "linspace":
        raise UserError(f"scheduler {kind}: timestep_spacing={spacing!r}: expected leading, trailing or linspace")
    own = dict(rounded=True) if kind in FIRST else dict(levels="linear") if kind in EULER else dict(rounded=True, drop_lowest=True)
    return dict(name="linspace") | own | end


def _span(spacing: str, offset: int, times: int, steps: int) -> dict:
    """The ends between which the Euler family lays its sigmas: the first and the last of `steps` spaced times."""
    if spacing == "leading":
        return dict(low=float(offset), high=float((steps - 1) * (times // steps) + offset))
    return dict(low=round(times / steps) - 1.0) if spacing == "trailing" else {}


def write_scheduler(sections: Mapping[str, Mapping]) -> dict[str, Any]:
    """scheduler_config.json of a model; a sampler or grid that diffusers has not becomes DDIM on trailing times.

    Raises:
      UserError: a schedule, prediction or time that diffusers has no word for.
    """
    kind = next((kind for kind, name in PREDICTIONS.items() if name == sections["prediction"]["name"]), None)
    schedule, fed = sections["schedule"], sections["time_input"]["name"]
    beta = next((theirs for theirs, ours in BETAS.items() if ours == schedule["name"]), None)
    if kind is None or fed != "index" or beta is None and schedule["name"] != "betas" or schedule.get("s", 0.008) != 0.008:
        raise UserError(f"schedule={schedule['name']}, prediction={sections['prediction']['name']}, time_input={fed}: diffusers' pipelines "
                        f"know the schedules {', '.join(BETAS.values())} (s=0.008) and betas, the predictions "
                        f"{', '.join(PREDICTIONS.values())} and the time index")
    config = dict(num_train_timesteps=schedule.get("steps", 1000), prediction_type=kind, beta_schedule=beta or "linear")
    if schedule["name"] == "betas":
        config |= dict(trained_betas=list(schedule["values"]), num_train_timesteps=len(schedule["values"]))
    elif "start" in schedule:
        config |= dict(beta_start=schedule["start"], beta_end=schedule["end"])
    own = _written(sections["sampling"])
    if schedule.get("zero_terminal"):
        own = own if own["_class_name"] in ("DDIMScheduler", "EulerDiscreteScheduler") else _OTHERWISE
        own |= dict(rescale_betas_zero_snr=True)
    return own | config


_OTHERWISE = dict(_class_name="DDIMScheduler", clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing", steps_offset=0)


def _written(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The class and its settings of times; `read_scheduler` gives the same sampler and grid again, or they have no equal."""
    sampler, grid = dict(sampling["sampler"]), dict(sampling["grid"])
    lower = sampler.pop("lower_final", None) if sampler["name"] == "dpmpp_2m" else None
    form = sampler.pop("form", None) if sampler["name"] == "dpmpp_2m" else None
    if sampler["name"] == "ddim":
        sampler.pop("eta", None)  # an argument of diffusers' pipelines, for which their JSON has no word
    kind = next((kind for kind, ours in (FIRST | EULER | SOLVERS).items() if ours == sampler), None)
    if kind is None:
        return dict(_OTHERWISE)
    config: dict[str, Any] = dict(_class_name=f"{kind}{SUFFIX}", timestep_spacing=grid["name"], steps_offset=0)
    config |= dict(skip_prk_steps=True) if kind == "PNDM" else {}
    config |= dict(clip_sample=False) if kind in ("DDPM", "DDIM") else {}
    config |= dict(solver_type=form) if form else {}
    config |= dict(lower_order_final=bool(lower)) if kind == "DPMSolverMultistep" else {}
    lowest = grid.get("end") == "lowest"
    config |= dict(set_alpha_to_one=not lowest) if kind in ("DDIM", "PNDM") else {}
    config |= dict(final_sigmas_type="sigma_min") if lowest and kind in ("EulerDiscrete", *SOLVERS) else {}
    if grid["name"] == "leading":
        config |= dict(steps_offset=grid.get("offset", 1))
    if grid["name"] in SIGMAS.values():
        config |= {"timestep_spacing": "linspace", next(key for key, name in SIGMAS.items() if name == grid["name"]): True}
    same = _same(kind, config, sampling)
    return config if same else dict(_OTHERWISE)


def _same(kind: str, config: Mapping[str, Any], sampling: Mapping[str, Any]) -> bool:
    """Whether the settings are read back as the grid that they were written from."""
    try:
        return _grid(kind, config, sampling["steps"]) == dict(sampling["grid"])
    except UserError:
        return False
