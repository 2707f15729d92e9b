"""Pages for people: what a config would train (`dry_run`), what a checkpoint holds (`page`), what there is to sample with (`samplers`)."""

import datetime
import re
import sys
import typing
from collections.abc import Callable, Mapping

import jax
import numpy as np

from ldm_jax import choices, launch
from ldm_jax.adapted import RECORD
from ldm_jax.config_tree import flat
from ldm_jax.core.choose import takes
from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import base_key
from ldm_jax.core.trees import paths
from ldm_jax.data.batches import in_order
from ldm_jax.diffusion.methods import METHODS
from ldm_jax.diffusion.samplers import ABOUT, SAMPLERS
from ldm_jax.diffusion.schedule import scaled_linear
from ldm_jax.loading import ITSELF, Opened, Reading
from ldm_jax.train import sharding
from ldm_jax.train.state import State, abstract_state


def dry_run(config: Mapping) -> str:
    """The page of a config, from shapes and the lowered program alone: nothing is trained, compiled or written.

    Raises:
      UserError: every error of the config at once.
    """
    job = launch.prepare(config)
    experiment, stage, key = job.experiment, launch.stage_of(job), base_key(job.experiment.seed)
    state = abstract_state(stage.init, key, job.mesh, experiment.layout)
    frozen = launch.frozen_of(job)
    lines = [f"task {experiment.task}, seed {experiment.seed}, batch {experiment.batch}, steps {experiment.plan.steps}", "", "parameters"]
    lines += _parameters(state.params)
    lines += ["", "bytes on each device"] + _sizes(state, frozen)
    lines += ["", f"mesh {dict(job.mesh.shape)} of {job.mesh.devices.size} {job.mesh.devices.flat[0].platform} devices"]
    lines += _split(state)
    if experiment.objective:
        lines += ["", _schedule(experiment.objective.schedule), f"latent {list(experiment.latent_shape)}"]
    lines += ["", _flops(stage, state, frozen, _batch(job), key, experiment.batch), _rate(experiment)]
    return "\n".join(lines)


def _parameters(params) -> list[str]:
    """clu's table of the arrays of a tree of shapes."""
    from clu.parameter_overview import get_parameter_overview

    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    return get_parameter_overview(shapes, include_stats=False).splitlines()


def _shard_bytes(tree) -> int:
    return sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _sizes(state: State, frozen) -> list[str]:
    parts = {"params": state.params, "ema": state.ema, "optimizer": state.optimizer, "extra": state.extra, "frozen": frozen}
    sizes = {name: _shard_bytes(tree) for name, tree in parts.items() if jax.tree.leaves(tree)}
    return [f"  {name:<10}{size / 2**20:10.2f} MiB" for name, size in (sizes | {"in all": sum(sizes.values())}).items()]


def _split(state: State) -> list[str]:
    """The arrays of the parameters that are split, with their PartitionSpec."""
    split = [(path, leaf.sharding.spec) for path, leaf in paths(state.params) if any(leaf.sharding.spec)]
    return [f"  {path}  {spec}" for path, spec in split] or ["  every parameter whole on every device"]


def _schedule(schedule) -> str:
    picked = np.linspace(schedule.first, schedule.last, 3)
    picked = np.floor(picked) if schedule.steps else picked
    level = schedule.level_at(picked)
    told = ", ".join(f"t={t:.4g}: alpha {a:.4g} sigma {s:.4g}" for t, a, s in zip(picked, level.alpha, level.sigma))
    return f"schedule of {schedule.steps or 'continuous'} levels; {told}"


def _batch(job: launch.Prepared) -> dict:
    facts, number = job.experiment.facts, job.experiment.batch
    place = sharding.batch_sharding(job.mesh)
    row = next(in_order(job.source, job.transforms, batch=1, count=1, resolution=facts.resolution, fields=job.fields, threads=0))
    return {name: jax.ShapeDtypeStruct((number, *array.shape[1:]), array.dtype, sharding=place) for name, array in row.items()
            if name not in ("index", "record", "weight")}


def _flops(stage, state, frozen, batch, key, number: int) -> str:
    cost = jax.jit(stage.step).lower(state, frozen, batch, key).cost_analysis()
    flops = (cost or {}).get("flops")
    return f"one step {flops / 1e9:.2f} GFLOP, {flops / 1e9 / number:.3f} an image" if flops else "this backend does not count operations"


def _rate(experiment) -> str:
    steps, rate = experiment.plan.steps, experiment.descent.rate
    picked = sorted({0, steps // 10, steps // 2, steps - 1})
    return "learning rate " + ", ".join(f"{float(rate(s // experiment.descent.average.accumulate)):.3g} at step {s}" for s in picked)


def page(path, reading: Reading = ITSELF) -> str:
    """A checkpoint, or a model of others, explained: task, sizes, latent units, training record, first stage, versions, every array."""
    opened = Opened(path, reading)
    manifest = opened.manifest
    lines = [f"{opened.folder}: {manifest.task}, step {manifest.step}, {manifest.parameter_count:,} parameters"]
    facts = manifest.config["facts"]
    lines.append(f"images {facts['resolution']}x{facts['resolution']}x{facts['channels']}"
                 + (f", {facts['classes']} classes" if facts["classes"] else ""))
    if manifest.latent_units:
        lines.append("latent units: mean " + _numbers(manifest.latent_units["mean"]) + "; std " + _numbers(manifest.latent_units["std"]))
    if manifest.first_stage:
        first = manifest.first_stage
        lines.append(f"first stage: {first.path or 'inside'}, step {first.step}, digest {first.digest[:12]}")
    if choices.adapts(manifest.config):
        base = opened.store.record(manifest.step, RECORD)
        lines.append(f"a LoRA of {base['path']}, step {base['step']}, digest {base['digest'][:12]}, {base['parameters']:,} parameters")
    if opened.found.kind == "step":
        progress = opened.store.record(manifest.step, "progress")
        data = opened.store.record(manifest.step, "data")["fingerprint"]["source"]
        spent = datetime.timedelta(seconds=round(progress["seconds"]))
        lines.append(f"trained on {progress['images']:,} images of {data['name']} ({data['records']:,} records) in {spent}")
        lines.append(f"saved steps: {', '.join(map(str, opened.store.steps()))}")
    lines += [f"not read: {told}" for told in opened.told[:10]] + ["..."] * (len(opened.told) > 10)
    lines += [f"tokenizer: {getattr(folder, 'kind', folder)}" for folder in opened.tokenizers]
    lines.append("versions: " + ", ".join(f"{name} {version}" for name, version in manifest.versions.items()))
    lines += ["", "config"] + [f"  {key} = {value}" for key, value in sorted(flat(manifest.config).items())]
    lines += ["", "parameters"] + _parameters(opened.shapes())
    return "\n".join(lines)


def _numbers(values) -> str:
    return " ".join(f"{v:.3g}" for v in values)


def samplers() -> str:
    """Every sampler: network evaluations a step, order, whether it draws noise, paper, and its options with their defaults."""
    rows = [("sampler", "evaluations", "order", "noise", "arXiv", "options, as --sampler='{\"name\":\"ddim\",\"eta\":0.5}'")]
    for name, about in ABOUT.items():
        noise = "yes" if about.noisy else "no"
        rows.append((name, f"{about.evaluations:g}", f"{about.order:g}", noise, about.paper, options(SAMPLERS[name])))
    rows += [(name, evaluations, "", "yes", paper, options(METHODS[name])) for name, evaluations, paper in map(method, METHODS)]
    widths = [max(len(row[k]) for row in rows) for k in range(5)] + [0]
    note = "order: between two levels of noise, with lower_final=False and noise=1 where there are such options"
    return "\n".join(["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows] + [note])


def method(name: str) -> tuple[str, str, str]:
    """(name, evaluations a step with its defaults at 100 steps, paper) of a method that no table can say."""
    evaluations = METHODS[name](schedule=scaled_linear(), steps=100).evaluations / 100
    return name, f"{evaluations:g}", re.search(r"arXiv (\d{4}\.\d{5})", sys.modules[METHODS[name].__module__].__doc__).group(1)


def options(function: Callable) -> str:
    """The options of a sampler with their defaults, as "eta=0  form=midpoint|heun"; of a list of choices the first is the default."""
    told = []
    for name, parameter in takes(function).items():
        if name in ("path", "schedule", "steps", "grid", "time_input"):
            continue
        choices = typing.get_args(parameter.annotation) if typing.get_origin(parameter.annotation) is typing.Literal else ()
        default = f"{parameter.default:g}" if isinstance(parameter.default, float) else str(parameter.default)
        told.append(f"{name}=" + "|".join([default, *(str(c) for c in choices if c != parameter.default)]))
    return "  ".join(told)


def convert(what: str, trunk: str, heads: str, out: str) -> str:
    """Converts files of others; `what` is "lpips". Says what was written.

    Raises:
      UserError: an unknown kind, a missing flag, or a file that is not what it should be.
    """
    from ldm_jax.interop.lpips import convert_lpips

    if what != "lpips":
        raise UserError(f"convert {what!r}: expected one of lpips; as in convert lpips --vgg=FILE --heads=FILE --out=FILE")
    if not trunk or not out:
        raise UserError("convert lpips needs --vgg and --out (and --heads, unless the first file holds the heads too)")
    told = convert_lpips(trunk, heads, out)
    origin = "the published weights" if told["published"] else "not the published files"
    return f"{told['out']}: {told['parameters']:,} parameters, {origin}; ignored: {', '.join(told['ignored']) or 'nothing'}"
