"""LoRAs at the door: a run that holds one opens as the model it makes with its base; a model takes on LoRAs from runs and files."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from ldm_jax import choices
from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import base_key
from ldm_jax.core.trees import content_digest
from ldm_jax.loading import ITSELF, Opened, Reading, everywhere
from ldm_jax.models.lora import merge
from ldm_jax.train.sharding import replicated

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
        self.found, self.store, self.lora, self.tokenizers = opened.found, opened.store, lora, ()
        config = opened.manifest.config | {"lora": choices.LATER["lora"], "init_from": ""}
        self.record = self.store.record(self.found.step, RECORD)
        self.manifest = dataclasses.replace(opened.manifest, config=config, parameter_count=self.record["parameters"])

    def base(self) -> Opened:
        """The model that the LoRA was trained on."""
        folder = epath.Path(os.path.normpath(os.path.join(os.path.realpath(self.folder), self.record["path"])))
        step = folder / "checkpoints" / str(self.record["step"])
        try:
            return open_model(step if (folder / "checkpoints").exists() else folder)
        except UserError as error:
            raise UserError(f"{self.folder} is a LoRA of step {self.record['step']} of {folder}: {error}") from None

    def _same(self, params) -> None:
        digest = content_digest(jax.device_get(params))
        if digest != self.record["digest"]:
            raise UserError(f"the base {self.record['path']} has changed since {self.folder} was trained on it: its digest is "
                            f"{digest[:12]}, and was {self.record['digest'][:12]}. Put the old one back, or train anew")

    def params(self, weights: str, abstract, mesh: Mesh):
        base = self.base().params("ema", abstract, mesh)
        self._same(base)
        return merged(base, [(self.tree(weights, abstract, mesh), 1.0)], mesh)

    def everything(self, weights: str, mesh: Mesh):
        base = self.base().everything("ema", mesh)
        self._same(base)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), base)
        return jax.device_get(merge(base, [(self.tree(weights, shapes, mesh), 1.0)]))

    def tree(self, weights: str, abstract, mesh: Mesh) -> dict:
        """The LoRA itself, with its alpha, for parameters of the shapes of `abstract`."""
        shapes = jax.eval_shape(lambda key: self.lora.start(abstract, key), base_key(0))
        return self.lora.whole(super().params(weights, everywhere(shapes, mesh), mesh))

    def shapes(self):
        return self.base().shapes()


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
