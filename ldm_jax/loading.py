"""Opening checkpoints: what stands at a path, its parameters on the devices, and a first stage with proof that it is the same."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from ldm_jax import choices, published, vocabularies
from ldm_jax import experiment as ex
from ldm_jax.checkpoint import manifest as manifests
from ldm_jax.checkpoint.bundle import Found, open_any, read_bundle
from ldm_jax.checkpoint.items import compare
from ldm_jax.checkpoint.manifest import Manifest
from ldm_jax.config_tree import from_json
from ldm_jax.core.errors import UserError
from ldm_jax.core.trees import content_digest, count, map_with_path, paths
from ldm_jax.models.first_stage import FirstStage
from ldm_jax.models.units import LatentUnits
from ldm_jax.train.sharding import replicated

ITEMS = {"ema": "ema", "raw": "params"}  # weights -> the checkpoint's item


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a published model is read; nothing for our own checkpoints. kind: of the zoo, where its tensors do not say; variant: of a

    folder's weights, as "fp16".
    """

    kind: str = ""
    variant: str = ""


ITSELF = Reading()


class Opened:
    """A checkpoint at a path, verified: its manifest, and its parameters by shape. weights: which a file of others is read for."""

    def __init__(self, path, reading: Reading = ITSELF, weights: str = "ema"):
        self.tokenizers: tuple = ()
        self.told: tuple[str, ...] = ()
        if published.is_published(path):
            opened = published.open_published(path, reading.kind, weights, reading.variant)
            self.trees, self.manifest = published.as_bundle(opened)
            self.found, self.tokenizers, self.told = Found("bundle", str(path), None), opened.tokenizers, opened.told
            return
        if reading != ITSELF and epath.Path(path).exists():
            raise UserError(f"kind={reading.kind!r}, variant={reading.variant!r}: {path} is of ldm_jax's own, which says what it is")
        self.found = open_any(path)
        if self.found.kind == "bundle":
            self.trees, self.manifest = read_bundle(self.found.folder)
        else:
            self.store = self.found.store
            self.manifest = Manifest.from_json(self.store.record(self.found.step, "manifest"), f"the manifest of {path}")
        self.tokenizers = vocabularies.kept_in(self.manifest.config, self.folder)

    @property
    def folder(self) -> epath.Path:
        """The run, or the bundle: what a first stage's path is relative to."""
        folder = epath.Path(self.found.folder)
        return folder if self.found.kind == "bundle" else folder.parent

    def params(self, weights: str, abstract, mesh: Mesh, narrow: Callable | None = None):
        """The parameters on every device of the mesh, strictly of the shapes of `abstract`; narrow: see `placed`.

        Raises:
          UserError: leaves that do not fit, or weights that a bundle was not exported with.
        """
        abstract = everywhere(abstract, mesh)
        if self.found.kind == "step":
            return self.store.restore(self.found.step, ITEMS[self.which(weights)], abstract)
        if self.which(weights) != self.manifest.weights:
            raise UserError(f"{self.found.folder} holds the {self.manifest.weights} weights only; export the run again for {weights}")
        return placed(self.trees["model"], abstract, f"the bundle {self.found.folder}", narrow)

    def everything(self, weights: str, mesh: Mesh):
        """The parameters as nested dicts of host arrays, whatever their model."""
        if self.found.kind == "bundle":
            return self.trees["model"]
        name = ITEMS[self.which(weights)]
        return jax.device_get(self.store.restore(self.found.step, name, everywhere(self.store.stored(self.found.step, name), mesh)))

    def shapes(self):
        """The parameters' shapes and dtypes; nothing is read but the list."""
        return self.trees["model"] if self.found.kind == "bundle" else self.store.stored(self.found.step, "params")

    def which(self, weights: str) -> str:
        """"ema" where it is asked for and the run kept an average; "raw" otherwise. Raises UserError: another word."""
        if weights not in ITEMS:
            raise UserError(f"weights={weights!r}: expected one of {', '.join(ITEMS)}")
        return "ema" if weights == "ema" and self.manifest.config["ema"]["decay"] > 0 else "raw"


def everywhere(abstract, mesh: Mesh):
    """Shapes, each whole on every device of the mesh."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), abstract)


def placed(tree, abstract, where: str, narrow: Callable | None = None):
    """Host arrays onto the shardings of `abstract`, one after the other, after a strict comparison of paths, shapes and dtypes.

    narrow(path, array) -> what is placed in the array's place, as in another dtype.
    """
    given = dict(paths(tree))
    compare(given, dict(paths(abstract)), where)

    def one(path, a):
        array = np.asarray(given[path])
        array = array if narrow is None else narrow(path, array)
        return jax.make_array_from_callback(a.shape, a.sharding, lambda index: array[index])

    return map_with_path(one, abstract)


@dataclasses.dataclass(frozen=True)
class LoadedFirstStage:
    """A first stage with its parameters, and what a diffusion model's manifest says of it."""

    stage: FirstStage
    params: Any
    digest: str
    manifest: Manifest
    folder: epath.Path

    def is_as(self, reference: manifests.FirstStage) -> bool:
        """Whether parameters and latent units are those that a manifest refers to."""
        return self.digest == reference.digest and self.manifest.latent_units == reference.latent_units

    def reference(self, run) -> manifests.FirstStage:
        """The reference that a model trained in the folder `run` keeps."""
        return manifests.FirstStage(manifests.relative_path(self.folder, run), self.manifest.step, self.digest, self.manifest.config,
                                    self.manifest.latent_units)


def load_first_stage(path, mesh: Mesh, weights: str = "ema") -> LoadedFirstStage:
    """The autoencoder of a stage 1 run, a step of it, or a bundle; or the one inside a whole model, a bundle or a published one.

    Raises:
      UserError: it is no first stage, or its latent units were not measured.
    """
    opened = path if isinstance(path, Opened) else Opened(path)
    manifest = opened.manifest
    if manifest.first_stage and opened.found.kind == "bundle":
        first, inside = trained_on(opened, mesh), manifest.first_stage
        own = Manifest("autoencoder", inside.config, count(first.params), inside.step, latent_units=inside.latent_units)
        return dataclasses.replace(first, manifest=own)
    if manifest.task != "autoencoder":
        raise UserError(f"{path}: a first stage is a model of task autoencoder; this one is {manifest.task}")
    if manifest.latent_units is None:
        raise UserError(f"{path}: its latent units were never measured; train it on, for one step at least")
    stage, abstract = _first_stage_parts(manifest.config, manifest.latent_units)
    params = opened.params(weights, abstract, mesh)
    return LoadedFirstStage(stage, params, content_digest(jax.device_get(params)), manifest, opened.folder)


def _first_stage_parts(config: Mapping, units: Mapping) -> tuple[FirstStage, Any]:
    config = from_json(config)
    facts = choices.Facts(**config.pop("facts"))
    experiment = ex.build(config, facts)
    abstract = ex.parameter_shapes(experiment)
    return FirstStage(experiment.autoencoder, LatentUnits.from_json(dict(units))), abstract


def trained_on(opened: Opened, mesh: Mesh) -> LoadedFirstStage | None:
    """The first stage that a diffusion model was trained on; None for diffusion in pixels.

    Raises:
      UserError: it is gone, or is not what it was: the files that differ are named.
    """
    reference = opened.manifest.first_stage
    if reference is None:
        return None
    if opened.found.kind == "bundle":
        stage, abstract = _first_stage_parts(reference.config, reference.latent_units)
        params = placed(opened.trees["first_stage"], everywhere(abstract, mesh), f"the first stage in {opened.folder}")
        return LoadedFirstStage(stage, params, reference.digest, opened.manifest, opened.folder)
    folder = epath.Path(os.path.normpath(os.path.join(os.path.realpath(opened.folder), reference.path)))
    step = folder / "checkpoints" / str(reference.step)
    try:
        first = load_first_stage(step if (folder / "checkpoints").exists() else folder, mesh)
    except UserError as error:
        raise UserError(f"{opened.folder} was trained on step {reference.step} of the first stage {folder}: {error}") from None
    if not first.is_as(reference):
        what = "parameters" if first.digest != reference.digest else "latent units"
        raise UserError(f"the first stage {step} has changed since {opened.folder} was trained on it: its {what} differ "
                        f"(digest {first.digest[:12]}, was {reference.digest[:12]}). Put the old one back, or train anew")
    return first
