"""How samples are made: from a sampling section, {"sampler", "grid", "steps", "guidance", "threshold"}, to what is run."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.core.choose import choose, nearest
from ldm_jax.core.errors import UserError
from ldm_jax.core.types import static, struct
from ldm_jax.diffusion import guiding
from ldm_jax.diffusion.grids import path_of
from ldm_jax.diffusion.guidance import OFF, Guided, Labelled, Limited
from ldm_jax.diffusion.limits import THRESHOLDS, Unlimited
from ldm_jax.diffusion.methods import METHODS
from ldm_jax.diffusion.prediction import denoiser
from ldm_jax.diffusion.sample import advance, at, start
from ldm_jax.diffusion.samplers import SAMPLERS, table_for
from ldm_jax.diffusion.table import Table, with_guidance
from ldm_jax.diffusion.windows import Window, Windowed
from ldm_jax.models.autoencoder import AUTOENCODERS

KEYS = ("sampler", "grid", "steps", "guidance", "threshold")


@dataclasses.dataclass(frozen=True)
class NetworkCall:
    """A U-Net as the diffusion side calls it; equal networks share compiled programs. identity: see `UNet.__call__`."""

    network: Any
    identity: tuple[str, ...] = ()

    def __call__(self, params, noisy, time, condition):
        return self.network.apply({"params": params["network"]}, noisy, time, condition, identity=self.identity)


@dataclasses.dataclass(frozen=True)
class LogProbability:
    """A classifier of noisy latents as guidance calls it: log p(label | noisy) [B]."""

    network: Any

    def __call__(self, params, noisy, time, label):
        logits = self.network.apply({"params": params["network"]}, noisy, time)
        return jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], axis=1)[:, 0]


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a way is made from.

    The model's own choices, the callable of its guide (a denoiser, or log_probability), and the windows that both denoise by, if they do.
    """

    schedule: Any
    time_input: Any
    prediction: Any = None
    network: Any = None
    pixels: bool = False
    guide: Callable | None = None
    window: Window | None = None

    def denoise(self, identity: tuple[str, ...] = ()):
        """The model as denoise(params, noisy, level, time, condition).

        Raises:
          UserError: a place without self-attention, for networks that know theirs.
        """
        for place in set(identity) - set(self.network.places if self.network is not None else identity):
            raise UserError(f"guidance: places={identity}: this network has self-attention in "
                            f"{nearest(place, self.network.places) or 'no place'}")
        whole = denoiser(NetworkCall(self.network, tuple(identity)), self.prediction)
        return whole if self.window is None else Windowed(whole, self.window, self.network.factor)


def parts_of(experiment, guide=None, window: Window | None = None) -> Parts:
    """The parts of an experiment of task "diffusion", and those of its guide's experiment; with a window both denoise by windows."""
    objective, call = experiment.objective, None
    if guide is not None:
        call = LogProbability(guide.network) if guide.task == "classifier" else parts_of(guide, None, window).denoise()
    pixels = isinstance(experiment.autoencoder, AUTOENCODERS["identity"])
    return Parts(objective.schedule, objective.time_input, objective.prediction, experiment.network, pixels, call, window)


@dataclasses.dataclass(frozen=True, eq=False)
class Way:
    """A section made: a table with its guidance columns in it, or a method and its `weights`, one column of the grid's levels a term;

    the guidance, as a program and as it was chosen; the windows that the network is evaluated on, and the refiner that the last rows are
    run on, if there are any.
    """

    table: Table | None
    method: Any
    weights: tuple
    guidance: Any
    choice: Any
    window: Window | None = None
    refiner: "Refiner | None" = None

    @property
    def guided(self) -> bool:
        """Whether the guidance is on, at any row."""
        return self.choice.program is not OFF

    @property
    def needs_null(self) -> bool:
        return self.guided and "null" in self.choice.needs

    @property
    def needs_parts(self) -> bool:
        return self.guided and "parts" in self.choice.needs

    @property
    def needs_guide(self) -> bool:
        return self.guided and "guide" in self.choice.needs

    def told(self, given, null=None, guide=None):
        """The condition that the guidance takes.

        Of what is given (`Partials`, where it needs parts), the null or negative, and what the guide is told (or labels).
        """
        if self.needs_guide and not isinstance(self.choice, guiding.ByClassifier):
            return Guided(given, guide)
        given = Guided(given, null) if self.needs_null else given
        return Labelled(given, guide) if self.needs_guide else given


def way_of(parts: Parts, section: Mapping, strength: float = 1.0) -> Way:
    """Makes a sampling section, of all of KEYS.

    Args:
      strength: of image-to-image, the share of the steps that is run.

    Raises:
      UserError: unknown names, stale keys, numbers out of range, or what the model or its guide cannot do.
    """
    choice = guiding.choice(section["guidance"], "guidance", prediction=parts.prediction, guide=parts.guide, perturbed=parts.denoise)
    program = _limited(parts, choice.program, section["threshold"])
    sampler = _section(section["sampler"])
    name = sampler.get("name")
    if not isinstance(name, str) or name not in SAMPLERS | METHODS:
        raise UserError(f"sampler.name={name!r}: expected one of {nearest(name, SAMPLERS | METHODS)}")
    if name in METHODS:
        if strength != 1:
            raise UserError(f"strength={strength}: '{name}' has no rows to leave out; image-to-image takes a sampler of a table, as ddim")
        path = path_of(parts.schedule, section["steps"], section["grid"])
        method = choose(METHODS, sampler, "sampler", schedule=parts.schedule, steps=section["steps"], grid=_section(section["grid"]),
                        time_input=parts.time_input)
        return Way(None, method, choice.columns(path.ratios[:-1]), program, choice, parts.window)
    table = table_for(parts.schedule, section["steps"], sampler, section["grid"], time_input=parts.time_input, strength=strength)
    with np.errstate(divide="ignore"):
        columns = choice.columns(table.level[:, 1] / table.level[:, 0])
    return Way(with_guidance(table, *columns), None, (), program, choice, parts.window)


def _limited(parts: Parts, program, threshold):
    limit = choose(THRESHOLDS, _section(threshold), "threshold")
    if isinstance(limit, Unlimited):
        return program
    if not parts.pixels:
        raise UserError(f"threshold={_section(threshold)['name']}: the latents of a first stage have no range to keep to; "
                        "thresholds are for diffusion in pixels (first_stage=pixels): write none")
    return Limited(program, limit)


def _section(value) -> Mapping:
    return {"name": value} if isinstance(value, str) or not isinstance(value, Mapping) else value


@dataclasses.dataclass(frozen=True, eq=False)
class Refiner:
    """A second model for the rows from `row` on: its denoiser, and its guidance, which reads the columns of the same table."""

    row: int
    denoise: Any
    guidance: Any


@struct
class Inputs:
    """What a batch is made of, each [B, ...]: told (see `Way.told`); latents `clean` to start from and `keep`, 1 where they stay; or

    the noise itself to start from; and what the refiner is told. shape: [h, w, c] of its latents; None is as trained.
    """

    told: Any
    clean: Any = None
    keep: Any = None
    noise: Any = None
    refined: Any = None
    shape: tuple[int, int, int] | None = static(default=None)


@dataclasses.dataclass(frozen=True)
class Watch:
    """callback(row, rows, latents [B, h, w, c] on the device), after every `every` rows and the last."""

    every: int
    callback: Callable


def generate(experiment, way: Way, params, inputs: Inputs, keys: jax.Array, watch: Watch | None = None) -> jax.Array:
    """Sampled latents [B, h, w, c] in units, of inputs.shape.

    Args:
      params: of the model, or {"model", "guide"} where the way needs a guide; with a refiner, {"base": that, "refiner": its own}.
      keys: one an image, [B].
    """
    denoise, shape = parts_of(experiment, None, way.window).denoise(), inputs.shape or experiment.latent_shape
    if way.method is not None:
        return way.method.sample(denoise, params, shape, keys, inputs.told, way.guidance, way.weights)
    state = start(way.table, keys, shape, inputs.clean, inputs.keep) if inputs.noise is None else at(inputs.noise, keys)
    end, refiner = way.table.rows, way.refiner
    legs = [(end, (denoise, params), (inputs.told, way.guidance))]
    if refiner is not None:
        legs = [(refiner.row, (denoise, params["base"]), (inputs.told, way.guidance)),
                (end, (refiner.denoise, params["refiner"]), (inputs.refined, refiner.guidance))]
    for stop, network, told in legs:
        for row in _stops(state.row, stop, watch):
            state = advance(*network, way.table, state, *told, row)
            if watch is not None and (row == end or row % watch.every == 0):
                watch.callback(row, end, state.x)
    return state.x


def _stops(first: int, last: int, watch: Watch | None) -> list[int]:
    """Where a leg of rows first .. last pauses: at each multiple of watch.every, and at its end."""
    return [row for row in range(first + 1, last) if watch is not None and row % watch.every == 0] + [last]
