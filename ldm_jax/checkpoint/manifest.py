"""The page that explains a checkpoint: what was trained, on what, by which versions. JSON, without absolute paths."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping
from typing import Any

from ldm_jax.core.choose import fits
from ldm_jax.core.errors import UserError

FORMAT = 1
PACKAGES = ("jax", "flax", "orbax-checkpoint", "ldm_jax")


@dataclasses.dataclass(frozen=True)
class FirstStage:
    """The autoencoder that a diffusion model was trained on.

    path: its run, relative to this run ("../autoencoder"), or "" inside a bundle; step: the step used; digest: its
    content digest; config and latent_units: copies of its own, so that this model explains itself without it.
    """

    path: str
    step: int
    digest: str
    config: dict
    latent_units: dict | None


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What is known of a model.

    task: the stage's name; config: the full resolved config as JSON; parameter_count: of `params`; step: optimizer
    steps done; content_digest: sha256 in hex of the parameters, None where they were never brought together (the steps
    of a sharded run); first_stage: None for a first stage; latent_units: {"mean": [...], "std": [...]}, a first
    stage's own, None where not yet measured; weights: "ema" or "raw", which of the two a bundle holds, "" for a step, which
    holds both; versions: of the libraries that wrote it.
    """

    task: str
    config: dict
    parameter_count: int
    step: int
    content_digest: str | None = None
    first_stage: FirstStage | None = None
    latent_units: dict | None = None
    weights: str = ""
    versions: dict = dataclasses.field(default_factory=lambda: versions())

    def __post_init__(self):
        _check_types(self, "manifest")
        if self.first_stage is not None:
            if not isinstance(self.first_stage, FirstStage):
                raise UserError(f"manifest.first_stage: expected FirstStage, got {type(self.first_stage).__name__}")
            _check_types(self.first_stage, "manifest.first_stage")
            if is_absolute(self.first_stage.path):
                raise UserError(f"manifest.first_stage.path={self.first_stage.path!r}: expected a path relative to the run")

    def to_json(self) -> dict:
        """The manifest as what JSON can say (tuples become lists), with its format number.

        Raises:
          UserError: a config that JSON cannot say exactly.
        """
        try:
            return json.loads(json.dumps({"format": FORMAT} | dataclasses.asdict(self), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise UserError(f"manifest: its config is not JSON: {error}") from None

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str = "manifest") -> "Manifest":
        """The manifest that `to_json` gave.

        Args:
          where: what is read, for the messages.

        Raises:
          UserError: a newer format, a missing or unknown key, or a value of another type.
        """
        if not isinstance(value, Mapping):
            raise UserError(f"{where}: expected a JSON object, got {type(value).__name__}")
        found = dict(value)
        version = found.pop("format", None)
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise UserError(f"{where}: format={version!r} is not a format number; this is no ldm_jax manifest")
        if version > FORMAT:
            raise UserError(f"{where}: written by format {version}, this reads <= {FORMAT}: use a newer ldm_jax")
        _check_keys(cls, found, where)
        if found["first_stage"] is not None:
            first = found["first_stage"]
            if not isinstance(first, Mapping):
                raise UserError(f"{where}.first_stage: expected a JSON object or null, got {type(first).__name__}")
            _check_keys(FirstStage, first, f"{where}.first_stage")
            found["first_stage"] = FirstStage(**first)
        try:
            return cls(**found)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None


def _check_keys(kind, found: Mapping[str, Any], where: str) -> None:
    names = {field.name for field in dataclasses.fields(kind)}
    told = [f"{key} is missing" for key in sorted(names - found.keys())]
    told += [f"{key} is not a key of format {FORMAT}" for key in sorted(found.keys() - names)]
    if told:
        raise UserError(f"{where}: {'; '.join(told)}")


def _check_types(value, where: str) -> None:
    for field in dataclasses.fields(value):
        found = getattr(value, field.name)
        if not fits(found, field.type):
            kind = getattr(field.type, "__name__", str(field.type))
            raise UserError(f"{where}.{field.name}={found!r}: expected {kind}, got {type(found).__name__}")


def versions() -> dict[str, str]:
    """The versions of python and of the libraries that a checkpoint depends on; imports none of them."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = getattr(sys.modules.get(name), "__version__", "not installed")
    return found


def is_absolute(path: str) -> bool:
    """Whether a path means something on one machine or in one bucket only."""
    return path.startswith(("/", "~", "\\")) or "://" in path or path[1:2] == ":"


def relative_path(path, run) -> str:
    """`path` as seen from the folder `run`, with "/": what a manifest stores of its first stage.

    Raises:
      UserError: one is remote and the other is not, or they are in different buckets.
    """
    path, run = str(path), str(run)
    if ("://" in path) != ("://" in run):
        raise UserError(f"{path} cannot be named relative to {run}: one is local, the other is not")
    if "://" in path:
        scheme, place = path.split("://", 1)
        run_scheme, run_place = run.split("://", 1)
        if (scheme, place.split("/")[0]) != (run_scheme, run_place.split("/")[0]):
            raise UserError(f"{path} cannot be named relative to {run}: they are in different buckets")
        return os.path.relpath("/" + place, "/" + run_place)
    return os.path.relpath(os.path.realpath(path), os.path.realpath(run)).replace(os.sep, "/")
