"""A model in a folder of its own: model.safetensors + manifest.json. And what kind of checkpoint stands at a path."""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from etils import epath

from ldm_jax.checkpoint import digests
from ldm_jax.checkpoint.manifest import Manifest
from ldm_jax.checkpoint.store import Store
from ldm_jax.checkpoint.tensors_writer import Weights, write_tensors
from ldm_jax.core import trees
from ldm_jax.core.errors import UserError

WEIGHTS = "model.safetensors"
PAGE = "manifest.json"
STEPS = "checkpoints"


def write_bundle(folder, named: Mapping[str, Any], manifest: Manifest, extra: Mapping[str, pathlib.Path | str] | None = None) -> Manifest:
    """Writes a self-contained model, whole or not at all; one array at a time is brought to the host.

    Args:
      folder: a local folder that is not there yet, or empty.
      named: {"model": tree, "first_stage": tree}: pytrees of arrays, whole on this process.
      extra: by name, folders to copy beside (a model's tokenizers) and texts (its card).
      manifest: its content digest is set to that of "model", its first stage's path to "" (it is inside).

    Returns:
      The manifest as written.

    Raises:
      UserError: a folder that holds something, a remote folder, or an array that safetensors cannot hold.
    """
    folder = _local(folder, "written")
    with digests.whole_folder(folder) as partial:
        leaves = {f"{name}/{path}": leaf for name, tree in named.items() for path, leaf in trees.paths(tree)}
        contents = {name: trees.content_digest(tree) for name, tree in named.items()}
        first = manifest.first_stage
        manifest = dataclasses.replace(manifest, content_digest=contents.get("model"),
                                       first_stage=first and dataclasses.replace(first, path=""))
        for name, source in (extra or {}).items():
            if isinstance(source, str):
                (partial / name).write_text(source, encoding="utf-8")
            else:
                shutil.copytree(source, partial / name)
        write_tensors(partial / WEIGHTS, Weights.of(leaves), metadata={"format": "ldm_jax"})
        size, digest = digests.hash_file(partial / WEIGHTS)
        body = {"manifest": manifest.to_json(), "contents": contents, "weights": {"size": size, "sha256": digest}}
        digests.write_atomically(partial / PAGE, _page(body))
    return manifest


def _local(folder, done: str) -> pathlib.Path:
    if not digests.is_local(folder):
        raise UserError(f"{folder}: a bundle is {done} on a local disk only; copy it")
    return pathlib.Path(os.path.abspath(folder))


def _page(body: dict) -> str:
    """The one spelling of a manifest.json: its last key is the sha256 of the rest."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps(body | {"sha256": digest}, indent=1) + "\n"


def read_manifest(folder) -> Manifest:
    """The manifest of a bundle, without its weights.

    Raises:
      UserError: no bundle, a manifest.json that was changed, or one of a newer format.
    """
    return Manifest.from_json(_read_page(_local(folder, "read"))["manifest"], str(folder))


def _read_page(folder: pathlib.Path) -> dict:
    try:
        text = (folder / PAGE).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{folder} is no bundle: it has no {PAGE}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{folder}/{PAGE} cannot be read: {error}") from None
    try:
        body = json.loads(text)
        body.pop("sha256")
        damaged = body.keys() != {"manifest", "contents", "weights"}
    except (ValueError, KeyError, TypeError, AttributeError):
        damaged = True
    if damaged:
        raise UserError(f"{folder}/{PAGE} is damaged, or not of a bundle of ldm_jax")
    if text != _page(body):
        raise UserError(f"{folder}/{PAGE} was changed after it was written: copy the bundle again")
    return body


def read_bundle(folder) -> tuple[dict[str, Any], Manifest]:
    """({"model": nested dict of numpy arrays, ...}, manifest) of a bundle, its weights verified byte for byte.

    Raises:
      UserError: no bundle, a newer format, or a file that is missing or changed.
    """
    folder = _local(folder, "read")
    body = _read_page(folder)
    manifest = Manifest.from_json(body["manifest"], str(folder))
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"{path} is missing: copy the bundle again")
    size = path.stat().st_size
    if size != body["weights"]["size"]:
        raise UserError(f"{path} has {size} bytes, was written with {body['weights']['size']}: copy the bundle again")
    if digests.hash_file(path)[1] != body["weights"]["sha256"]:
        raise UserError(f"{path} was changed after it was written (sha256 differs): copy the bundle again")
    try:
        return _read_weights(path, body["contents"]), manifest
    except Exception as error:  # whatever a foreign hand wrote into the header
        raise UserError(f"{path} is not a weights file of ldm_jax: {error}") from error


def _read_weights(path: pathlib.Path, names) -> dict[str, Any]:
    from safetensors import safe_open
    with safe_open(str(path), framework="numpy") as file:
        found = trees.nested({name: file.get_tensor(name) for name in file.keys()})
    return {name: {} for name in names} | found


@dataclasses.dataclass(frozen=True)
class Found:
    """What stands at a path. kind "step": step `step` of `store`, in `folder`, verified; kind "bundle": the bundle `folder`."""

    kind: str
    folder: str
    step: int | None
    store: Store | None = dataclasses.field(default=None, compare=False, repr=False)


def kind_of(path) -> str | None:
    """"run" (a folder with checkpoints/, or that folder itself), "step", "bundle", or None for anything else."""
    path = epath.Path(path)
    if (path / STEPS).is_dir():
        return "run"
    if (path / PAGE).exists() and (path / WEIGHTS).exists():
        return "bundle"
    if path.name.isdigit() and ((path / digests.NAME).exists() or (path / "_CHECKPOINT_METADATA").exists()):
        return "step"
    return "run" if path.name == STEPS and path.is_dir() else None


def latest_run_step(path) -> tuple[Store, int]:
    """(store, newest valid step) of a run, for reading: nothing is renamed.

    Raises:
      UserError: no run there, no step saved yet, or every step damaged.
    """
    path = epath.Path(path)
    folder = path / STEPS if (path / STEPS).is_dir() else path
    store = Store(folder, read_only=True)
    step = store.newest_valid()
    if step is None:
        raise UserError(f"{path} has no saved step yet")
    return store, step


def open_any(path) -> Found:
    """Says what stands at a path, after verifying a step's files (a bundle is verified where it is read).

    Raises:
      UserError: nothing there, nothing of ours, or a damaged step.
    """
    kind = kind_of(path)
    if kind == "run":
        store, step = latest_run_step(path)
        return Found("step", str(store.directory), step, store)
    path = epath.Path(path)
    if kind == "step":
        store = Store(path.parent, read_only=True)
        store.check(int(path.name))
        return Found("step", str(store.directory), int(path.name), store)
    if kind == "bundle":
        return Found("bundle", str(path), None)
    what = "is there, but is none of these" if path.exists() else "does not exist"
    raise UserError(f"{path} {what}: expected a run folder (with {STEPS}/), one step of it ({STEPS}/<step>), a bundle "
                    f"({WEIGHTS} + {PAGE}), a folder of diffusers (with model_index.json), or a .ckpt or .safetensors file")
