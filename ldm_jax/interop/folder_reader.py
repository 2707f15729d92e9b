"""A folder of diffusers: model_index.json and a folder per component, or one component's folder alone.

Nothing outside the folder is read, whatever its JSON files or links say. Of a folder in the hub's cache the links into that
cache's own `blobs` are followed.
"""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.interop.checks import once
from ldm_jax.interop.mapped import joined
from ldm_jax.interop.old_names import today
from ldm_jax.interop.tensors import read_tensors

INDEX = "model_index.json"
CONFIGS = ("config.json", "scheduler_config.json", "preprocessor_config.json", "tokenizer_config.json")
MARKS = "special_tokens_map.json"
BASES = ("diffusion_pytorch_model", "model", "pytorch_model")
ENDINGS = ("safetensors", "bin")
NOT_READ = {  # components of known pipelines that are neither opened nor asked for, and why
    "safety_checker": "it blackens images; samples are not checked", "feature_extractor": "it prepares images for parts that are not read",
    "image_encoder": "it tells images to pipelines that have no equal here", "depth_estimator": "depth is an input, given as an image",
    "watermarker": "samples are not marked",
}
JSON_LIMIT = 64 * 2**20  # bytes; the index of a model in a thousand shards is under 1 MB, a tokenizer's settings under 3
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclasses.dataclass(frozen=True)
class Component:
    """One part of a model.

    Fields:
      config: its config.json (scheduler_config.json, ...); {} where it has none.
      tensors: by name, made when they are asked for; {} for parts without weights.
      folder: where it stands, for a tokenizer's files.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]
    folder: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Folder:
    """index: model_index.json, {} for one component's folder; components: by name, "" for the only one; told: what was not read."""

    index: Mapping[str, Any]
    components: Mapping[str, Component]
    told: tuple[str, ...] = ()

    @property
    def jsons(self) -> dict[str, Mapping[str, Any]]:
        """component -> its config; "model_index" -> model_index.json, where there is one."""
        found = {name: part.config for name, part in self.components.items()}
        return found | ({"model_index": self.index} if self.index else {})


def is_folder(path) -> bool:
    """Whether a folder of diffusers, or of one component, stands at a path (a run of ours has a config.json too, and no weights)."""
    path = pathlib.Path(path)
    if not path.is_dir():
        return False
    weights = any(file.name.startswith(BASES) and file.suffix[1:] in ENDINGS for file in path.iterdir())
    return (path / INDEX).is_file() or (path / CONFIGS[0]).is_file() and weights


def read_folder(path, variant: str = "") -> Folder:
    """Opens a model's folder; tensors are read when they are used.

    Args:
      variant: which weights of each component: "fp16" takes `diffusion_pytorch_model.fp16.safetensors`; a component that
        has none of it is read from its plain file, and `told` says so.

    Raises:
      UserError: no such folder or variant; JSON that is damaged; a component without its weights, a shard that
        is missing, a tensor that is in two shards or in none; a link or a name that leads out of the folder; what
        `read_tensors` raises.
    """
    root = pathlib.Path(path).resolve()
    if not root.is_dir():
        raise UserError(f"{path}: no such folder")
    if variant and not NAME.fullmatch(variant):
        raise UserError(f"variant={variant!r}: expected letters and digits, as in 'fp16'")
    if not (root / INDEX).exists():
        return _lone(root, variant)
    index = read_json(root, root / INDEX)
    names = [name for name, entry in index.items() if _is_component(name, entry)]
    bad = [name for name in names if not NAME.fullmatch(name)]
    if bad:
        raise UserError(f"{path}/{INDEX}: refused: a component is named {bad[0][:80]!r}")
    wanted = [name for name in names if name not in NOT_READ]
    told = [f"{name} is not read: {NOT_READ[name]}" for name in names if name in NOT_READ]
    found, plain = {}, []
    for name in wanted:
        folder = inside(root, root / name)
        if not folder.is_dir():
            raise UserError(f"{path}: {INDEX} names the component {name!r}, and there is no such folder: copy the model again")
        found[name], used = _component(root, folder, variant, weights=_has_weights(index[name]))
        plain += [name] if found[name].tensors and used != variant else []
    weighted = [name for name in found if found[name].tensors]
    if variant and weighted and len(plain) == len(weighted):
        raise UserError(f"{path}: no component has weights of the variant {variant!r}; leave it away, or give another")
    told += [f"{name} has no weights of the variant {variant}: read from its plain file" for name in plain]
    return Folder(index, found, tuple(told))


def _is_component(name: str, entry) -> bool:
    """Whether an entry of model_index.json is [library, class]; [null, null] is a component that is absent."""
    return not name.startswith("_") and isinstance(entry, list) and len(entry) == 2 and all(isinstance(x, str) for x in entry)


def _has_weights(entry) -> bool:
    return not entry[1].endswith(("Scheduler", "Tokenizer", "TokenizerFast", "Processor", "FeatureExtractor"))


def _lone(root: pathlib.Path, variant: str) -> Folder:
    if not any((root / name).exists() for name in CONFIGS):
        raise UserError(f"{root}: neither {INDEX} nor {CONFIGS[0]} in it: not a folder of diffusers")
    part, used = _component(root, root, variant, weights=True)
    if used != variant:
        raise UserError(f"{root}: no weights of the variant {variant!r}")
    return Folder({}, {"": part})


def _component(root: pathlib.Path, folder: pathlib.Path, variant: str, weights: bool) -> tuple[Component, str]:
    """One component, and the variant it was read from."""
    configs = [folder / name for name in CONFIGS if (folder / name).exists()]
    config = read_json(root, configs[0]) if configs else {}
    if not weights and (folder / MARKS).exists():  # of a tokenizer; where both say what fills a window, transformers takes this
        config = {**config, **read_json(root, folder / MARKS)}
    if not weights:
        return Component(config, {}, folder), variant
    if not configs:
        raise UserError(f"{folder}: no {CONFIGS[0]} in it: copy the model again")
    files, used = _weight_files(root, folder, variant)
    tensors = joined(_read_once(files, folder))
    kind = str(config.get("_class_name", config.get("architectures")))[:200]
    return Component(config, today(tensors, "CLIP" in kind, str(folder)), folder), used


def _weight_files(root: pathlib.Path, folder: pathlib.Path, variant: str) -> tuple[dict[pathlib.Path, set[str] | None], str]:
    """{file: the names it must hold, None for any}, safetensors before pickles, the variant before the plain file."""
    for kind in dict.fromkeys((variant, "")):
        mark = f".{kind}" if kind else ""
        for base, ending in ((base, ending) for ending in ENDINGS for base in BASES):
            single, index = folder / f"{base}{mark}.{ending}", folder / f"{base}.{ending}.index{mark}.json"
            if index.exists():
                return _shards(root, folder, index), kind
            if single.exists():
                return {inside(root, single): None}, kind
    there = sorted(p.name for p in folder.iterdir() if p.suffix[1:] in ENDINGS)
    told = f"; it has {', '.join(there[:5])}: give the variant" if there else ": copy the model again"
    raise UserError(f"{folder}: no weights called {' or '.join(BASES)} (.safetensors or .bin){told}")


def _shards(root: pathlib.Path, folder: pathlib.Path, index: pathlib.Path) -> dict[pathlib.Path, set[str] | None]:
    """The shards of an index.json and the names that each must hold."""
    table = read_json(root, index).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(file, str) for file in table.values()):
        raise UserError(f"{index}: no weight_map of names to files: damaged")
    found: dict[pathlib.Path, set[str] | None] = {}
    for file in sorted(set(table.values())):
        if file != os.path.basename(file) or file in ("", ".", "..") or "\\" in file:
            raise UserError(f"{index}: refused: it names the shard {file[:80]!r}, which is not a file of this folder")
        shard = inside(root, folder / file)
        if not shard.is_file():
            raise UserError(f"{folder}: the shard {file} is missing, which {index.name} names: copy the model again")
        found[shard] = {name for name, where in table.items() if where == file}
    return found


def _read_once(files: Mapping[pathlib.Path, set[str] | None], folder: pathlib.Path) -> list[Mapping[str, np.ndarray]]:
    """The tensors of each file, which must be the names it was said to hold; so no name is in two files."""
    parts = []
    for file, names in files.items():
        tensors = read_tensors(file).tensors
        if names is not None and names != set(tensors):
            missing, extra = sorted(names - set(tensors)), sorted(set(tensors) - names)
            told = [f"{len(missing)} are missing ({missing[0]})"] if missing else []
            told += [f"{len(extra)} are not its own ({extra[0]})"] if extra else []
            raise UserError(f"{folder}: the shard {file.name} does not hold the tensors its index names: {'; '.join(told)}")
        parts.append(tensors)
    return parts


def inside(root: pathlib.Path, path: pathlib.Path) -> pathlib.Path:
    """`path`, after its links are seen to stay below `root` or in the `blobs` of the hub's cache that `root` belongs to.

    Raises:
      UserError: a link that leads elsewhere.
    """
    real = path.resolve()
    blobs = [root.parent.parent / "blobs"] if root.parent.name == "snapshots" else []
    if not any(real.is_relative_to(place) for place in [root, *blobs]):
        raise UserError(f"{path}: refused: it is a link that leads out of the model's folder, to {real}; copy the file there")
    return path


def read_json(root: pathlib.Path, path: pathlib.Path) -> dict[str, Any]:
    """The JSON object in a file of a model's folder.

    Raises:
      UserError: a link out of the folder; larger than 64 MiB; not JSON, not an object, or with a key that stands twice.
    """
    inside(root, path)
    try:
        if path.stat().st_size > JSON_LIMIT:
            raise UserError(f"{path}: refused: {path.stat().st_size} bytes of JSON, more than {JSON_LIMIT}")
        found = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once)
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged JSON: {str(error)[:200]}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: damaged: not a JSON object")
    return found

