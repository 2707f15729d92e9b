"""LoRAs at the door: a run that holds one opens as the model it makes with its base; a model takes on LoRAs from runs and files."""

import dataclasses
import functools
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from ldm_jax import choices
from ldm_jax import experiment as ex
from ldm_jax.checkpoint.bundle import kind_of
from ldm_jax.checkpoint.tensors_writer import Weights, write_tensors
from ldm_jax.config_tree import LATER, from_json
from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import base_key
from ldm_jax.core.trees import content_digest
from ldm_jax.interop.conditioner_names import projection_of
from ldm_jax.interop.lora_names import lora_metadata, lora_parts, read_lora, write_lora
from ldm_jax.interop.tensors import read_tensors
from ldm_jax.loading import ITSELF, Opened, Reading, trained_on
from ldm_jax.models.lora import check, merge
from ldm_jax.train.sharding import make_mesh, replicated

RECORD = "base"  # of a step: {"path", relative to the run, "step", "digest", "parameters"} of the model that the LoRA was trained on


def merged(params, loras, mesh: Mesh):
    """Parameters on every device with (LoRA tree, scale) each in them."""
    trees, scales = [lora for lora, _ in loras], [scale for _, scale in loras]

    def function(params, trees, scales):
        return merge(params, list(zip(trees, scales)))

    return jax.jit(function, out_shardings=replicated(mesh))(params, trees, scales)


def open_model(path, reading: Reading = ITSELF, weights: str = "ema") -> Opened:
    """A checkpoint of whole parameters, or a run of a LoRA as the model that it makes with its base. reading, weights: as of `Opened`.

    Raises:
      UserError: as `Opened`; a base that is gone, or is no more what it was.
    """
    opened = path if isinstance(path, Opened) else Opened(path, reading, weights)
    lora = choices.lora_of(opened.manifest.config) if opened.manifest.task == "diffusion" else None
    return Adapted(opened, lora) if lora else opened


class Adapted(Opened):
    """A step of a LoRA's run: its parameters are the base's with the LoRA in them, and its manifest is that of such a model."""

    def __init__(self, opened: Opened, lora):
        self.found, self.store, self.lora, self.told, self.own = opened.found, opened.store, lora, (), opened.tokenizers
        config = opened.manifest.config | {"lora": LATER["lora"], "init_from": ""}
        self.record = self.store.record(self.found.step, RECORD)
        self.manifest = dataclasses.replace(opened.manifest, config=config, parameter_count=self.record["parameters"])

    @functools.cached_property
    def base(self) -> Opened:
        """The model that the LoRA was trained on."""
        folder = epath.Path(os.path.normpath(os.path.join(os.path.realpath(self.folder), self.record["path"])))
        step = folder / "checkpoints" / str(self.record["step"])
        try:
            return open_model(step if (folder / "checkpoints").exists() else folder)
        except UserError as error:
            raise UserError(f"{self.folder} is a LoRA of step {self.record['step']} of {folder}: {error}") from None

    @property
    def tokenizers(self) -> tuple:
        return self.own or self.base.tokenizers

    def _same(self, params) -> None:
        digest = content_digest(jax.device_get(params))
        if digest != self.record["digest"]:
            raise UserError(f"the base {self.record['path']} has changed since {self.folder} was trained on it: its digest is "
                            f"{digest[:12]}, and was {self.record['digest'][:12]}. Put the old one back, or train anew")

    def params(self, weights: str, abstract, mesh: Mesh, narrow=None):
        base = self.base.params("ema", abstract, mesh)
        self._same(base)
        return merged(base, [(self.tree(weights, abstract, mesh), 1.0)], mesh)

    def everything(self, weights: str, mesh: Mesh):
        base = jax.tree.map(np.asarray, self.base.everything("ema", mesh))
        self._same(base)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), base)
        return jax.device_get(merge(base, [(self.tree(weights, shapes, mesh), 1.0)]))

    def tree(self, weights: str, abstract, mesh: Mesh) -> dict:
        """The LoRA itself, with its alpha, for parameters of the shapes of `abstract`."""
        shapes = jax.eval_shape(lambda key: self.lora.start(abstract, key), base_key(0))
        return self.lora.whole(super().params(weights, shapes, mesh))

    def shapes(self):
        return self.base.shapes()


def lora_tree(model, path) -> dict:
    """The LoRA at a path, for a model: of a run that trained one (whatever its base was), or of a file of kohya's or diffusers'.

    Raises:
      UserError: neither, or a LoRA of another architecture.
    """
    if kind_of(path):
        opened = open_model(path)
        if not isinstance(opened, Adapted):
            raise UserError(f"{path} holds a whole model, and no LoRA")
        return opened.tree("ema", model.params, model.mesh)
    file, experiment = read_tensors(path), model.experiment
    tree = read_lora(file.tensors, lora_parts(experiment.network, experiment.conditioner), str(path), file.metadata)
    check(tree, model.params, str(path))
    return tree


def with_lora(model, path, scale: float):
    """A model with `scale` times a LoRA in its parameters, and a digest of its own; see `Model.with_lora`."""
    model.need_diffusion("a LoRA")
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise UserError(f"scale={scale!r}: expected a finite number, 1 for a LoRA as it was trained")
    if any(leaf.dtype != jnp.float32 for leaf in jax.tree.leaves(model.params)):
        raise UserError("this model's kernels are rounded already: load it in float32, take its LoRAs, then model.in_dtype('bfloat16')")
    tree = lora_tree(model, path)
    params = merged(model.params, [(tree, float(scale))], model.mesh)
    named = {"model": jax.device_get(params)} | ({"first_stage": jax.device_get(model.first_params)} if model.manifest.first_stage else {})
    record = {"file": os.path.basename(os.path.normpath(path)), "scale": float(scale), "digest": content_digest(jax.device_get(tree))}
    return dataclasses.replace(model, params=params, digest=content_digest(named), loras=(*model.loras, record))


def parse_lora(text: str) -> tuple[str, float]:
    """"PATH" or "PATH:SCALE" -> (path, scale)."""
    path, colon, scale = text.rpartition(":")
    try:
        return (path, float(scale)) if colon and path else (text, 1.0)
    except ValueError:
        return text, 1.0


def export_lora(path, out, form: str = "kohya", *, weights: str = "ema", dtype: str = "") -> str:
    """Writes the LoRA of a run as one safetensors file for other tools, and says what it wrote.

    Args:
      form: "kohya", "kohya-compvis" (which tools expect for SDXL) or "diffusers".
      dtype: "float16" or "bfloat16" for half the size.

    Raises:
      UserError: no LoRA's run; a file that is there; a kernel that the form has no name for.
    """
    opened, mesh = open_model(path), make_mesh()
    if not isinstance(opened, Adapted):
        raise UserError(f"{path} holds a whole model, and no LoRA: export it as a bundle")
    if os.path.exists(out):
        raise UserError(f"{out} exists: choose another name, or remove it")
    config, first = from_json(opened.manifest.config), trained_on(opened, mesh)
    experiment = ex.build(config, choices.Facts(**config.pop("facts")), first and first.stage)
    abstract = ex.parameter_shapes(experiment)
    tree = jax.device_get(opened.tree(weights, abstract, mesh))
    parts = lora_parts(experiment.network, experiment.conditioner, projection_of(experiment.conditioner))
    tensors = dict(write_lora(tree, parts, form))
    write_tensors(out, Weights.of(tensors), dtype=dtype, metadata=lora_metadata(tree, parts, form))
    return f"{out}: {len(tensors)} arrays, a LoRA of rank {opened.lora.rank}, alpha {opened.lora.alpha:g}, in the layout of {form}"


@dataclasses.dataclass(frozen=True)
class Base:
    """The frozen model under a LoRA that is trained: its parameters on the mesh, and what the run keeps of it."""

    params: Any = dataclasses.field(repr=False)
    digest: str
    step: int
    folder: epath.Path
    parameters: int

    def record(self, path: str) -> dict:
        """What each step keeps. path: of the base, relative to the run."""
        return {"path": path, "step": self.step, "digest": self.digest, "parameters": self.parameters}

    def check(self, record: Mapping) -> None:
        """Raises UserError unless this is the base that a run was begun on."""
        if self.digest != record["digest"]:
            raise UserError(f"the base {self.folder} has changed since this run began: its digest is {self.digest[:12]}, and was "
                            f"{record['digest'][:12]}. Name step {record['step']} of it, or start another workdir")
