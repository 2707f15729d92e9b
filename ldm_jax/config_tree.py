"""Configs as plain trees of dicts, tuples and scalars: read back from JSON, compared, flattened, their errors collected."""

import contextlib
import json
from collections.abc import Mapping

from ldm_jax.core.errors import UserError

FREE = ("run", "data.cache", "text_encoders")  # what may change when a run is resumed; the last is read by new runs alone


def from_json(config):
    """A config read from JSON: lists become the tuples they were."""
    if isinstance(config, Mapping):
        return {key: from_json(value) for key, value in config.items()}
    return tuple(from_json(value) for value in config) if isinstance(config, list) else config


LATER = {"log_variance": {"name": "none"}, "offset_noise": 0.0, "sampling": {"threshold": {"name": "none"}},
         "lora": {"rank": 0, "alpha": 1.0, "targets": "attention"}, "text_encoders": ""}
DATA_LATER = {"fields": {}, "variants": 0, "cache": ""}
"""What models had, and the data of every task, whose config was saved before there was a choice."""


def completed(saved: Mapping) -> dict:
    """A saved config with the keys that came later, as they were before: so that its run goes on."""
    config = dict(saved) | {"data": DATA_LATER | dict(saved["data"])}
    if config["task"] != "diffusion":
        return config
    return LATER | config | {"sampling": LATER["sampling"] | dict(config["sampling"])}


def differences(saved: Mapping, now: Mapping, free: tuple = FREE, prefix: str = "config") -> list[str]:
    """The keys in which two configs differ, as JSON sees them, those that are free left out: "config.seed: 0, now 1"."""
    found = []
    for key in sorted(set(saved) | set(now)):
        name, missing = f"{prefix}.{key}", object()
        old, new = saved.get(key, missing), now.get(key, missing)
        if name.removeprefix("config.") in free:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, free, name)
        elif old is missing or new is missing:
            found.append(f"{name}: {'absent, now present' if old is missing else 'present, now absent'}")
        elif json.dumps(old) != json.dumps(new):
            found.append(f"{name}: {json.dumps(old)}, now {json.dumps(new)}")
    return found


class Problems:
    """Collects the errors of a config, so that all are told at once."""

    def __init__(self):
        self.lines: list[str] = []

    @contextlib.contextmanager
    def noted(self, where: str = ""):
        try:
            yield
        except UserError as error:
            lines = [f"{where}: {line}" if where else line for line in str(error).splitlines()]
            self.lines += [line for line in lines if line not in self.lines]

    def check(self) -> None:
        if self.lines:
            raise UserError("\n".join(self.lines))


def flat(config: Mapping, prefix: str = "") -> dict:
    """{"run.mesh.data": -1, ...}"""
    found = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found
