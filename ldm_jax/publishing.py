"""Models of any origin into the layouts of others: a folder that stock diffusers loads, or one file of CompVis's kind.

A tensor at a time is read, turned and written, so that a published model of any size passes through in little memory.
"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from ldm_jax import published
from ldm_jax.adapted import open_model
from ldm_jax.checkpoint.bundle import write_bundle
from ldm_jax.checkpoint.tensors_writer import Weights
from ldm_jax.config_tree import from_json
from ldm_jax.core.errors import UserError
from ldm_jax.core.trees import paths
from ldm_jax.interop.card import model_card
from ldm_jax.interop.conditioner_names import compvis_homes, numbered, projection_of
from ldm_jax.interop.description import Description
from ldm_jax.interop.diffusers_nets import write_first_stage
from ldm_jax.interop.diffusers_plan import TOKENIZERS, FolderPlan, plan_folder
from ldm_jax.interop.folder_writer import Part, weights_of, whole, write_file, write_folder
from ldm_jax.interop.folding import one_scale, units_folded, vector_folded
from ldm_jax.interop.places import Place
from ldm_jax.loading import ITSELF, Opened, Reading, trained_on
from ldm_jax.models.conditioners import conditioner
from ldm_jax.models.units import LatentUnits
from ldm_jax.tokenized import open_tokenizers
from ldm_jax.train.sharding import make_mesh
from ldm_jax.vocabularies import FOLDERS

FORMS = ("bundle", "diffusers", "compvis")
SECTIONS = ("network", "conditioner", "schedule", "prediction", "time_input", "sampling")


@dataclasses.dataclass(frozen=True, eq=False)
class Sayable:
    """A model as other layouts can say it. leaves: its arrays by our path under "first_stage/" and "model/"."""

    description: Description
    leaves: Mapping[str, Any]
    progress: Callable | None = None

    def weights(self, places: Mapping[str, list[Place]]) -> dict[str, Weights]:
        """Each part's foreign tensors, whose writing is told to `progress`, all parts as one."""
        made = {part: weights_of(some, self.leaves) for part, some in places.items()}
        return made if self.progress is None else watched(made, self.progress)

    def places(self, form: str, homes=None) -> dict[str, list[Place]]:
        """Part ("network", "first_stage", homes of encoders) -> where its tensors stand, under their own names."""
        first, config = published.configs_of(self.description, "raw")
        made = published.architecture(first, config, published.units_of(self.description) if first else None)
        homes = compvis_homes(made.whole.conditioner) if homes is None and made.whole else homes or ()
        named = numbered(homes)[0] if form == "compvis" else homes
        found: dict[str, list[Place]] = {}
        vector = any(path.startswith("model/network/vector_0/") for path in self.leaves)
        options = {"proj": projection_of(made.whole.conditioner), "vector": "text_time" if vector else ""} if made.whole else {}
        for place in made.places(form, options, named):
            part = place.theirs[0].split("/")[0]
            names = tuple(name.removeprefix(f"{part}/") for name in place.theirs)
            found.setdefault(part, []).append(dataclasses.replace(place, theirs=names))
        return found | ({"homes": homes} if form == "compvis" else {})


def publish(path, out, form: str = "bundle", *, weights: str = "ema", dtype: str = "", reading: Reading = ITSELF, progress=None,
            tokenizers: tuple = ()) -> str:
    """Writes a model, ours or published, in one of FORMS, and says what was written.

    Args:
      path: as of `ldm.load`.
      out: a new folder, or a new `.safetensors` file (form "compvis").
      form: "bundle", our own with its manifest; "diffusers"; "compvis".
      weights: "ema" or "raw". dtype: "float32", "float16", "bfloat16"; "" keeps what each tensor is stored in; a bundle is float32.
      tokenizers: folders with the vocabulary of each text encoder, for a model that came without.
      progress: as `cli.entry.progress`: (total, unit) -> a context whose value is called with the number of tensors written.

    Raises:
      UserError: what `load` raises; a model that the layout has no words for; a place that is taken.
    """
    if form not in FORMS:
        raise UserError(f"format={form!r}: expected one of {', '.join(FORMS)}")
    if form == "bundle" and dtype:
        raise UserError(f"dtype={dtype!r}: a bundle holds what was trained, in float32")
    opened = open_model(path, reading, weights)
    folders = checked_tokenizers(opened, tokenizers) if tokenizers else opened.tokenizers
    if form == "bundle":
        written = _write_bundle(opened, out, weights, folders)
    else:
        told = dataclasses.replace(sayable(opened, weights), progress=progress)
        written = _write_compvis(told, out, dtype) if form == "compvis" else write_diffusers(told, opened, out, dtype, folders)
    return f"{out}: {opened.manifest.task} of step {opened.manifest.step}, {opened.which(weights)} weights, as {form}, {written}"


def _write_bundle(opened: Opened, out, weights: str, tokenizers: tuple) -> str:
    mesh = make_mesh()
    named = {"model": opened.everything(weights, mesh)}
    if opened.manifest.first_stage is not None:
        named["first_stage"] = opened.trees["first_stage"] if opened.found.kind == "bundle" else trained_on(opened, mesh).params
    manifest = dataclasses.replace(opened.manifest, weights=opened.which(weights))
    card = model_card(manifest, name=pathlib.Path(out).resolve().name, origin=_origin(opened))
    folders = {name: folder for name, folder in zip(FOLDERS.values(), tokenizers) if isinstance(folder, pathlib.Path)}  # bytes need none
    manifest = write_bundle(out, named, manifest, folders | {"README.md": card})
    return f"digest {manifest.content_digest[:12]}"


def sayable(opened: Opened, weights: str) -> Sayable:
    """A model with what other layouts cannot say folded into what they can: latent units, and a class's projected vector.

    Raises:
      UserError: a model without latents' units, or a task that has no layout.
    """
    manifest, trees = opened.manifest, {}
    if manifest.task == "classifier":
        raise UserError("a classifier of noisy latents has no layout but our own: export it as a bundle")
    if manifest.task == "embedding":
        raise UserError("an embedder has no layout but our own: export it as a bundle, and open that with ldm.load_clip")
    mesh = make_mesh()
    config = from_json(manifest.config)
    first, units = manifest.first_stage, manifest.latent_units
    if manifest.task == "autoencoder":
        trees["first_stage"] = opened.everything(weights, mesh)
        stage, sections = config["model"], {}
    else:
        trees["model"] = {name: tree for name, tree in opened.everything(weights, mesh).items() if name != "log_variance"}
        sections = {name: config[name] for name in SECTIONS}
        stage = from_json(first.config)["model"] if first else {}
        units = first and first.latent_units
        if first:
            trees["first_stage"] = opened.trees["first_stage"] if opened.found.kind == "bundle" else trained_on(opened, mesh).params
    scale = 1.0
    if stage:
        if units is None:
            raise UserError("its latent units were never measured; train it on, for one step at least")
        units = LatentUnits.from_json(dict(units))
        scale = one_scale(units)
        if scale is None:
            scale, trees["first_stage"] = 1.0, units_folded(trees["first_stage"], units)
    if sections and sections["conditioner"]["name"] == "class" and sections["conditioner"]["into"] == "vector":
        sections, trees["model"] = _class_folded(sections, trees["model"])
    wide, first_level = (sections["network"]["time_width"], sections["network"]["levels"][0]["width"]) if sections else (4, 1)
    if wide != 4 * first_level:
        raise UserError(f"config.network.time_width={wide}: other layouts have 4 times the first level's width, {4 * first_level}; a model "
                        "trained with that can be written in them")
    facts = config["facts"]
    description = Description("", stage, sections, scale, facts["resolution"], facts["channels"], facts["classes"])
    return Sayable(description, {path: leaf.stored() if isinstance(leaf, published.Leaf) else leaf for path, leaf in paths(trees)})


def _class_folded(sections: Mapping, tree: Mapping) -> tuple[dict, dict]:
    network, conditioner = sections["network"], sections["conditioner"]
    if network["vector"] == "added":
        return dict(sections), dict(tree)
    inner, table = vector_folded(tree["network"], tree["conditioner"]["embedding"])
    sections = dict(sections) | {"network": network | {"vector": "added"}, "conditioner": conditioner | {"width": network["time_width"]}}
    return sections, {"network": inner, "conditioner": {"embedding": table}}


def _write_compvis(told: Sayable, out, dtype: str) -> str:
    parts = told.places("compvis")
    homes = parts.pop("homes")
    prefixes = published.PREFIXES | numbered(homes)[1]
    if not told.description.sections:
        prefixes["first_stage"] = ""
    weights = whole({prefixes[part]: found for part, found in told.weights(parts).items()})
    record = {key: value for key, value in dataclasses.asdict(told.description).items() if key != "kind"}
    write_file(out, weights, dtype=dtype, metadata={published.RECORD: json.dumps(record)})
    return f"{len(weights.specs)} tensors"


def write_diffusers(told: Sayable, opened: Opened, out, dtype: str, tokenizers: tuple) -> str:
    description, name = told.description, pathlib.Path(out).resolve().name
    read = _origin(opened)
    if not description.sections:
        config = write_first_stage(description.first_stage, description.resolution, description.channels, description.scale_factor)
        card = model_card(opened.manifest, name=name, layout="diffusers-component", origin=read, class_name=config["_class_name"])
        part = Part(config, told.weights(told.places("diffusers"))["first_stage"])
        write_folder(out, {"": part}, {}, {"README.md": card}, dtype=dtype)
        return f"{len(part.weights.specs)} tensors"
    plan = plan_folder(description)
    told = dataclasses.replace(told, description=dataclasses.replace(description, sections=_as_stock(description.sections, plan)))
    parts = told.places("diffusers", tuple((home, "ldmbert" if home == "bert" else "hf") for home in plan.texts))
    stage = next(home for home in ("vae", "vqvae") if home in plan.jsons)
    folders = {"network": "unet", "first_stage": stage}
    components = {folders.get(part, part): weights for part, weights in told.weights(parts).items()}
    written = {home: Part(config, components.get(home)) for home, config in plan.jsons.items()}
    missing = []
    for home, folder in zip([TOKENIZERS[text] for text in plan.texts], _each(tokenizers, len(plan.texts))):
        if not isinstance(folder, pathlib.Path):
            missing.append(home)
        else:
            written[home] = Part({}, None, {file.name: file for file in sorted(folder.iterdir()) if file.is_file()})
    card = model_card(opened.manifest, name=name, layout="diffusers", origin=read)
    write_folder(out, written, plan.index, {"README.md": card}, dtype=dtype)
    count = sum(len(weights.specs) for weights in components.values())
    return f"{count} tensors" + (f"; without {' and '.join(missing)}, of which the model has no files: put some there" if missing else "")


def _origin(opened: Opened) -> str:
    """Where weights that were not trained here come from, for a card."""
    return "" if opened.manifest.step else f"read from {pathlib.Path(str(opened.folder)).name}"


def _as_stock(sections: Mapping, plan: FolderPlan) -> dict:
    """The sections with the numbers of the text encoders that stock pipelines expect."""
    def one(part):
        if part["name"] == "clip_text":
            return part | next(iter(plan.texts.values()))
        return part

    conditioner = sections["conditioner"]
    if "parts" in conditioner:
        return dict(sections) | {"conditioner": conditioner | {"parts": tuple(map(one, conditioner["parts"]))}}
    return dict(sections) | {"conditioner": one(conditioner)}


def _each(folders: tuple, count: int) -> list:
    """A tokenizer's folder for each encoder; None where there is none."""
    return list(folders) if len(folders) == count else list(folders) * count if len(folders) == 1 else [None] * count


def watched(parts: Mapping[str, Weights], progress: Callable) -> dict[str, Weights]:
    """The same tensors; the first that is taken opens the progress, the last closes it."""
    total, stack, done = sum(len(part.specs) for part in parts.values()), contextlib.ExitStack(), [0]
    told: list[Callable] = []

    def each(arrays):
        for item in arrays:
            if not told:
                told.append(stack.enter_context(progress(total, "tensors")))
            yield item
            done[0] += 1
            told[0](done[0])
            if done[0] == total:
                stack.close()

    return {name: Weights(part.specs, each(part.arrays)) for name, part in parts.items()}


def checked_tokenizers(opened: Opened, folders: tuple) -> tuple[pathlib.Path, ...]:
    """The folders, one a text encoder.

    Raises:
      UserError: a model that reads no text, or folders that are not its vocabulary.
    """
    if opened.manifest.task != "diffusion":
        raise UserError("tokenizer: this model reads no text")
    section, facts = from_json(opened.manifest.config)["conditioner"], opened.manifest.config["facts"]
    open_tokenizers(conditioner(section, "config.conditioner", facts["classes"], 1), folders)
    return tuple(map(pathlib.Path, folders))
