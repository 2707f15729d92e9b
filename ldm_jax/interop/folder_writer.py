"""A folder of diffusers written whole or not at all, a tensor at a time; and one file of CompVis's kind."""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from ldm_jax.checkpoint import digests
from ldm_jax.checkpoint.tensors_writer import SHARD, Weights, write_shards, write_tensors
from ldm_jax.core.errors import UserError
from ldm_jax.interop import places as tables
from ldm_jax.interop.folder_reader import INDEX, NAME

TORCH = {"format": "pt"}  # without it transformers 4 refuses a safetensors file


@dataclasses.dataclass(frozen=True)
class Part:
    """A component to be written. config: its JSON, {} for none; weights: None for a part without them; extra: more files by name."""

    config: Mapping[str, Any]
    weights: Weights | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def base(self) -> str:
        """How its library calls the file of its weights: diffusers writes `_class_name` into its configs, transformers does not."""
        return "diffusion_pytorch_model" if "_class_name" in self.config else "model"

    @property
    def page(self) -> str:
        """How its library calls the file of its config."""
        scheduler = self.weights is None and str(self.config.get("_class_name", "")).endswith("Scheduler")
        return "scheduler_config.json" if scheduler else "config.json"


def weights_of(places, ours: Mapping[str, Any]) -> Weights:
    """The foreign tensors of ours, by a name table: path -> array, on any device."""
    specs = {name: (shape, ours[place.ours].dtype) for place in places
             for name, shape in place.shapes(tuple(ours[place.ours].shape)).items()}
    return Weights(specs, tables.write(places, ours))


def whole(parts: Mapping[str, Weights]) -> Weights:
    """One set of tensors of several: prefix ("first_stage_model.") -> its tensors; the inverse of `single_file.split`."""
    specs = {prefix + name: spec for prefix, part in parts.items() for name, spec in part.specs.items()}
    if len(specs) != sum(len(part.specs) for part in parts.values()):
        raise ValueError(f"two parts of {list(parts)} have a tensor of one name")

    def arrays() -> Iterator[tuple[str, Any]]:
        for prefix, part in parts.items():
            for name, array in part.arrays:
                yield prefix + name, array

    return Weights(specs, arrays())


def write_file(out, weights: Weights, *, dtype: str = "", metadata: Mapping[str, str] | None = None) -> None:
    """Writes one `.safetensors` file, whole or not at all.

    Raises:
      UserError: a file that is there already, or is not called .safetensors; what `write_tensors` raises.
    """
    out = pathlib.Path(out)
    if out.suffix != ".safetensors":
        raise UserError(f"{out}: expected a name that ends in .safetensors: no pickles are written")
    if out.exists():
        raise UserError(f"{out}: exists already; remove it or give another name")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(out, weights, dtype=dtype, metadata=TORCH | dict(metadata or {}))


def write_folder(out, components: Mapping[str, Part], index: Mapping[str, Any], extra: Mapping[str, Any] | None = None, *,
                 dtype: str = "", limit: int = SHARD) -> list[str]:
    """Writes a folder of diffusers, whole or not at all.

    Args:
      out: a local folder that is not there yet, or empty.
      components: by name, as model_index.json has them; "" alone writes one component's own folder.
      index: model_index.json; {} for none.
      extra: more files: path below `out` ("README.md") -> text, bytes, or the path of a file to copy.
      dtype: of all floating-point weights: "float32", "float16", "bfloat16"; "" keeps them.
      limit: bytes above which weights are written in shards.

    Returns:
      The paths written, below `out`, sorted.

    Raises:
      UserError: a folder that holds something, a number that `dtype` cannot hold, a disk that is full, a file to copy that
        is not there.
      ValueError: a component's or file's name that leads out; a config of diffusers without its `_class_name`.
    """
    out = pathlib.Path(os.path.abspath(out))
    if any(not NAME.fullmatch(name) for name in components if name) or ("" in components and len(components) > 1):
        raise ValueError(f"components are called {list(components)}")
    nameless = [name for name, part in components.items() if index.get(name, [""])[0] == "diffusers" and "_class_name" not in part.config]
    if nameless:
        raise ValueError(f"the configs of {nameless} are of diffusers and have no _class_name")
    with digests.whole_folder(out) as partial:
        for name, part in components.items():
            _write_part(partial / name, part, dtype, limit)
        for name, content in [*_page(INDEX, index), *(extra or {}).items()]:
            _put(partial, name, content)
        written = sorted(path.relative_to(partial).as_posix() for path in partial.rglob("*") if path.is_file())
    return written


def _write_part(folder: pathlib.Path, part: Part, dtype: str, limit: int) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in [*_page(part.page, part.config), *part.extra.items()]:
        _put(folder, name, content)
    if part.weights is not None:
        write_shards(folder, part.base, part.weights, dtype=dtype, metadata=TORCH, limit=limit)


def _page(name: str, content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """[(file, text)] of a JSON object, spelt as diffusers spells it; no file of an empty one."""
    return [(name, json.dumps(dict(content), indent=2, sort_keys=True, allow_nan=False) + "\n")] if content else []


def _put(folder: pathlib.Path, name: str, content) -> None:
    """One small file: text, bytes, or a copy of a file."""
    path = folder / name
    if not name or name.startswith("/") or ".." in name.replace("\\", "/").split("/") or path.exists():
        raise ValueError(f"a file called {name!r} leads out of the folder, or is there already")
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, os.PathLike):
        shutil.copyfile(content, path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
