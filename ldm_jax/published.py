"""Published models in our form: from what the readers give to trees and a manifest, exactly what a bundle of ours holds."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ldm_jax import choices
from ldm_jax import experiment as ex
from ldm_jax.checkpoint import manifest as manifests
from ldm_jax.checkpoint.manifest import Manifest
from ldm_jax.config_tree import from_json
from ldm_jax.core.errors import UserError
from ldm_jax.core.trees import content_digest, count, nested, paths
from ldm_jax.interop import mapped
from ldm_jax.interop.checks import finite
from ldm_jax.interop.conditioner_names import Home, compvis_homes, conditioner_places, numbered
from ldm_jax.interop.description import Description, extent
from ldm_jax.interop.diffusers_configs import describe_folder
from ldm_jax.interop.first_stage_names import first_stage_places
from ldm_jax.interop.folder_reader import is_folder, read_folder
from ldm_jax.interop.places import Place, check, prefixed
from ldm_jax.interop.prefixes import PREFIXES
from ldm_jax.interop.recognise import recognise
from ldm_jax.interop.single_file import split
from ldm_jax.interop.tensors import read_tensors
from ldm_jax.interop.unet_names import unet_options, unet_places
from ldm_jax.interop.zoo import ZOO
from ldm_jax.models.first_stage import FirstStage
from ldm_jax.models.units import LatentUnits

RECORD = "ldm_jax"  # the key of a description in the header of a file that we wrote
DECAY = 0.9999  # of the average that CompVis files hold
TRAINING = {  # what a config says and a published file does not: how to go on training it
    "seed": 0,
    "data": dict(source=dict(name="images", folder=""), transforms=(), batch=1),
    "optimizer": dict(name="adamw", b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01, decay="kernels"),
    "learning_rate": dict(name="cosine", peak=1e-4, warmup=0, steps=1, end=0.0),
    "clip_norm": 1.0, "accumulate": 1, "ema": dict(decay=0.0), "init_from": "",
    "run": dict(steps=1, log_every=0, evaluate_every=0, preview_every=0, preview_images=0, save_every=0, keep_last=1, keep_every=0,
                best=("", "min"), profile_steps=(0, 0), reader_threads=0,
                mesh=dict(data=-1, fsdp=1, tensor=1, fsdp_threshold=65_536, rules=())),
}
STAGE_1 = dict(loss=dict(pixel="l1", perceptual=0.0, perceptual_weights="", kl=1e-6, codebook=1.0), critic=dict(name="none"),
               revival=dict(decay=0.99, threshold=0.0, every=50), latent_units=dict(images=1))
STAGE_2 = dict(times=dict(name="uniform"), weight=dict(name="simple"), loss=dict(name="l2"), log_variance=dict(name="none"),
               offset_noise=0.0)
TEXT_PARTS = (("text_encoder", "hf"), ("text_encoder_2", "hf"), ("bert", "ldmbert"))  # of diffusers' folders


@dataclasses.dataclass(frozen=True)
class Published:
    """An opened model of others; no tensor has been read.

    Fields:
      description: what it is, in our words.
      parts: "network", "first_stage" and the homes of encoders -> name -> array.
      form: "compvis" or "diffusers"; options: of `unet_places`; homes: of the conditioner's encoders.
      weights: "ema" or "raw", which the network's are.
      tokenizers: folders with vocabulary files; told: what was not read, a line each; where: its path.
    """

    description: Description
    parts: Mapping[str, Mapping[str, np.ndarray]]
    form: str
    options: Mapping[str, str]
    homes: tuple[Home, ...]
    weights: str
    tokenizers: tuple[pathlib.Path, ...]
    told: tuple[str, ...]
    where: str


def is_published(path) -> bool:
    """Whether a file, or a folder of diffusers, stands at a path."""
    return pathlib.Path(str(path)).is_file() or is_folder(str(path))


def open_published(path, kind: str = "", weights: str = "ema", variant: str = "") -> Published:
    """Opens a CompVis or Stability file, or a folder of diffusers. Reads names, shapes and settings.

    Args:
      kind: of the zoo, where tensors do not say what it is.
      weights: "ema", the average where a file has one, or "raw".
      variant: of a folder's weights, as "fp16".

    Raises:
      UserError: what the readers raise; no known model, or one of several: say its kind.
    """
    path = pathlib.Path(str(path))
    if kind and kind not in ZOO:
        raise UserError(f"kind={kind!r}: expected one of {', '.join(ZOO)}")
    if path.is_dir():
        return _folder(path, kind, variant)
    if variant:
        raise UserError(f"variant={variant!r}: {path} is one file; variants are of folders")
    file = read_tensors(path)
    tensors = file.tensors
    if RECORD in file.metadata:
        if kind:
            raise UserError(f"kind={kind!r}: {path} was written by ldm_jax and says what it is; leave it away")
        return _own(tensors, file.metadata[RECORD], weights, str(path))
    description, found = recognise(mapped.shapes(tensors), kind, str(path))
    places = {"network": found.network, "first_stage": found.first_stage}
    prefixes = {name: prefix for name, prefix in places.items() if prefix is not None}
    homes, encoders = numbered(tuple(home for home in found.conditioner if home[1] != "first_stage"))
    taken = split(tensors, prefixes | encoders, weights, str(path))
    if taken.scale_factor is not None:
        description = dataclasses.replace(description, scale_factor=taken.scale_factor)
    return Published(description, taken.parts, "compvis", {"proj": found.proj, "vector": found.vector}, homes, taken.weights, (),
                     taken.ignored, str(path))


def _own(tensors: Mapping[str, np.ndarray], record: str, weights: str, where: str) -> Published:
    """A file that we wrote, which says what it is."""
    try:
        description = Description(kind="", **from_json(json.loads(record)))
        if extent((description.first_stage, description.sections)) > len(tensors):
            raise ValueError(f"it has more blocks and layers than the file has tensors, {len(tensors)}")
        first, whole = configs_of(description, "raw")
        made = architecture(first, whole, units_of(description) if first else None)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise UserError(f"{where}: its header's description is damaged: {str(error)[:200]}") from None
    homes, encoders = numbered(compvis_homes(made.whole.conditioner) if made.whole else ())
    prefixes = {"network": PREFIXES["network"]} if made.whole else {}
    prefixes |= {"first_stage": PREFIXES["first_stage"] if made.whole else ""} if made.first else {}
    taken = split(tensors, prefixes | encoders, weights, where)
    options = unet_options(mapped.shapes(taken.parts["network"])) if made.whole else {}
    return Published(description, taken.parts, "compvis", options, homes, taken.weights, (), taken.ignored, where)


def _folder(path: pathlib.Path, kind: str, variant: str) -> Published:
    """kind: only compared, for a folder says what it is."""
    folder = read_folder(path, variant)
    description = describe_folder(folder.jsons)
    if description.sections and "conditioner" not in description.sections:
        raise UserError(f"{path}: a U-Net alone, which does not say how it was trained nor what it is told: give the folder that it stands "
                        "in, with model_index.json")
    if kind and description.kind and kind != description.kind:
        raise UserError(f"{path}: kind={kind} does not fit: its settings say {description.kind}; leave it away")
    found = folder.components
    lone = found.get("")
    if lone is not None:
        parts = {"network" if description.sections else "first_stage": lone.tensors}
    else:
        stages = [name for name in ("vae", "vqvae") if name in found]
        parts = {"network": found["unet"].tensors} | ({"first_stage": found[stages[0]].tensors} if stages else {})
    homes = tuple((name, form) for name, form in TEXT_PARTS if name in found)
    parts |= {name: found[name].tensors for name, _ in homes}
    options = unet_options(mapped.shapes(parts["network"])) if "network" in parts else {}
    if extent((description.first_stage, description.sections)) > sum(map(len, parts.values())):
        raise UserError(f"{path}: damaged: its settings say more blocks and layers than it has tensors")
    tokenizers = tuple(found[name].folder for name in ("tokenizer", "tokenizer_2") if name in found)
    return Published(description, parts, "diffusers", options, homes, "raw", tokenizers, folder.told, str(path))


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf:
    """An array of ours that is made of the file's tensors each time it is used. Raises UserError: numbers that are not finite."""

    place: Place
    tensors: Mapping[str, np.ndarray]
    shape: tuple[int, ...]
    dtype: np.dtype

    def stored(self) -> "Leaf":
        """The same in the element type of the file."""
        kinds = {mapped.dtypes(self.tensors.parts[part])[name] for part, _, name in (full.partition("/") for full in self.place.theirs)}
        return dataclasses.replace(self, dtype=kinds.pop()) if len(kinds) == 1 else self

    def __array__(self, dtype=None, copy=None):
        array = np.asarray(self.place.read(self.tensors))
        if not finite(array):
            names = ", ".join(name.partition("/")[2] for name in self.place.theirs)
            raise UserError(f"{self.tensors.where}: {names}: numbers that are not finite: the file is damaged")
        return array.astype(dtype or self.dtype, copy=False)

    def __getitem__(self, index):
        return np.asarray(self)[index]


class Qualified(Mapping):
    """The tensors of all parts under "part/name"; where: their file, for messages."""

    def __init__(self, parts: Mapping[str, Mapping[str, np.ndarray]], where: str):
        self.parts, self.where = parts, where

    def __getitem__(self, name: str) -> np.ndarray:
        part, _, inner = name.partition("/")
        return self.parts[part][inner]

    def __iter__(self):
        return (f"{part}/{name}" for part, tensors in self.parts.items() for name in tensors)

    def __len__(self) -> int:
        return sum(map(len, self.parts.values()))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """"part/name" -> shape; nothing is read."""
        return {f"{part}/{name}": shape for part, tensors in self.parts.items() for name, shape in mapped.shapes(tensors).items()}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The modules of a description, made, with the shapes of their parameters; `whole` is None for a first stage alone."""

    first: ex.Experiment | None
    whole: ex.Experiment | None
    shapes: Mapping[str, Any]

    def places(self, form: str, options: Mapping[str, str], homes: tuple[Home, ...]) -> tuple[Place, ...]:
        """All parameters, under "first_stage/" and "model/", and where they stand in a form."""
        places = ()
        if self.first is not None:
            places += prefixed(first_stage_places(self.first.autoencoder, form), "first_stage/", "first_stage/")
        if self.whole is not None:
            places += prefixed(unet_places(self.whole.network, form, **options), "model/network/", "network/")
            places += prefixed(conditioner_places(self.whole.conditioner, form, homes), "model/conditioner/")
        return places


def configs_of(description: Description, weights: str) -> tuple[dict, dict]:
    """(config of the first stage, of the diffusion model), whole and with their facts; {} for what there is none of."""
    facts = dict(channels=description.channels, resolution=description.resolution, classes=description.classes)
    shared = TRAINING | {"data": TRAINING["data"] | {"resolution": description.resolution}, "facts": facts,
                         "ema": dict(decay=DECAY if weights == "ema" else 0.0)}
    first = shared | STAGE_1 | {"task": "autoencoder", "model": dict(description.first_stage)} if description.first_stage else {}
    whole = shared | STAGE_2 | {"task": "diffusion", "first_stage": "published" if first else "pixels"} | dict(description.sections)
    return first, whole if description.sections else {}


def units_of(description: Description) -> LatentUnits:
    """The published factor as latent units: mean 0, one std."""
    channels = description.first_stage["latent_channels"]
    return LatentUnits((0.0,) * channels, (1.0 / description.scale_factor,) * channels)


def architecture(first: Mapping, whole: Mapping, units: LatentUnits | None) -> Architecture:
    """The modules of both configs (see `configs_of`)."""
    def made(config, stage=None):
        config = dict(config)
        facts = choices.Facts(**config.pop("facts"))
        return ex.build(config, facts, stage)

    of_first = made(first) if first else None
    of_whole = made(whole, FirstStage(of_first.autoencoder, units) if first else None) if whole else None
    trees = ({"first_stage": ex.parameter_shapes(of_first)} if first else {}) | ({"model": ex.parameter_shapes(of_whole)} if whole else {})
    return Architecture(of_first, of_whole, dict(paths(trees)))


def as_bundle(published: Published) -> tuple[dict[str, Any], Manifest]:
    """({"model": tree, "first_stage": tree}, manifest) as a bundle of ours gives them; leaves are read when they are used.

    Raises:
      UserError: tensors that are missing, unknown, or of another shape.
    """
    description = published.description
    first, whole = configs_of(description, published.weights)
    units = units_of(description) if first else None
    made = architecture(first, whole, units)
    tensors = Qualified(published.parts, published.where)
    places = made.places(published.form, published.options, published.homes)
    check(places, {path: leaf.shape for path, leaf in made.shapes.items()}, tensors.shapes(), published.where)
    trees = nested({place.ours: Leaf(place, tensors, made.shapes[place.ours].shape, made.shapes[place.ours].dtype) for place in places})
    for tree in trees.values():  # a conditioner without parameters is there all the same
        if whole and tree is trees.get("model"):
            tree.setdefault("conditioner", {})
    if not whole:
        return {"model": trees["first_stage"]}, _manifest(published, first, trees["first_stage"], None, units)
    reference = None
    if first:
        reference = manifests.FirstStage("", 0, content_digest(trees["first_stage"]), first, units.to_json())
    return trees, _manifest(published, whole, trees["model"], reference, None)


def _manifest(published: Published, config: Mapping, tree, reference, units: LatentUnits | None) -> Manifest:
    return Manifest(task=config["task"], config=dict(config), parameter_count=count(tree), step=0, first_stage=reference,
                    latent_units=units and units.to_json(), weights=published.weights)
