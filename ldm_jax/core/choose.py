"""One way from a config section to an object: a literal table of names, looked up and checked by `choose`."""

import dataclasses
import difflib
import inspect
import json
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from ldm_jax.core.errors import UserError

LINEN_FIELDS = ("parent", "name")


def nearest(word: str, words) -> str:
    """`words`, comma separated, with the likeliest meant one first."""
    words = [str(w) for w in words]
    close = difflib.get_close_matches(str(word), words, n=3, cutoff=0.5)
    return ", ".join(close + [w for w in sorted(words) if w not in close])


def takes(function: Callable) -> dict[str, inspect.Parameter]:
    """The keyword parameters a choice accepts; the two fields that linen adds to every module are left out."""
    parameters = inspect.signature(function).parameters.values()
    hidden = LINEN_FIELDS if hasattr(function, "linen_meta_fields") or _is_linen(function) else ()
    return {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in hidden}


def _is_linen(function) -> bool:
    return inspect.isclass(function) and any(base.__module__.startswith("flax.linen") for base in function.__mro__)


def fits(value: Any, kind: Any) -> bool:
    """Whether a config value is of an annotated type. An int may stand for a float; a bool is never a number."""
    if kind in (inspect.Parameter.empty, Any) or isinstance(kind, str):
        return True
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, k) for k in typing.get_args(kind))
    if origin is typing.Literal:
        return value in typing.get_args(kind)
    if origin is tuple:
        inner = typing.get_args(kind)
        if not isinstance(value, tuple):
            return False
        if len(inner) == 2 and inner[1] is Ellipsis:
            return all(fits(v, inner[0]) for v in value)
        return len(value) == len(inner) and all(fits(v, k) for v, k in zip(value, inner))
    if kind is type(None):
        return value is None
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind in (str, bool, tuple, dict):
        return isinstance(value, kind)
    return True


def literal(name: str, section: Mapping, accepted) -> str:
    """The section with only the keys that the choice takes, as it can be typed on the command line between single quotes."""
    return typed(({"name": name} if name else {}) | {k: v for k, v in section.items() if k in accepted})


def typed(value) -> str:
    """A config value as a Python literal without a single quote in it."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{typed(str(k))}:{typed(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "(" + "".join(f"{typed(v)}," for v in value) + ")"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def choose(table: Mapping[str, Callable], section: Mapping[str, Any], where: str, **given: Any) -> Any:
    """Calls the entry of `table` that `section["name"]` names, with the section's other keys and with `given`.

    Args:
      table: name -> function or class.
      section: a config section: `name` and keyword arguments of the choice.
      where: the section's place in the config, for the messages ("config.schedule").
      **given: what the caller already knows; passed only to choices that take it.

    Raises:
      UserError: no name, an unknown name (the known ones are listed, nearest first), a key that the choice does not
        take (with the literal to type), a missing key, or a value of another type.
    """
    if not isinstance(section, Mapping):
        raise UserError(f"{where}={section!r}: expected a section, as dict(name=...), its name one of {nearest('', table)}")
    section = dict(section)
    name = section.pop("name", None)
    if not isinstance(name, str) or name not in table:
        raise UserError(f"{where}.name={name!r}: expected one of {nearest(name, table)}")
    return _called(table[name], section, where, name, given)


def fill(kind: Callable, section: Mapping[str, Any], where: str, **given: Any) -> Any:
    """Calls `kind` with a section that has no name, there being no choice. Arguments and errors as in `choose`."""
    if not isinstance(section, Mapping):
        raise UserError(f"{where}={section!r}: expected a section, as dict(key=value, ...) of {nearest('', takes(kind))}")
    return _called(kind, dict(section), where, "", given)


def _called(function: Callable, section: dict, where: str, name: str, given: Mapping[str, Any]) -> Any:
    accepted = takes(function)
    open_to_config = {k: p for k, p in accepted.items() if k not in given}
    for key, value in section.items():
        if key not in open_to_config:
            keys = nearest(key, open_to_config) or "no keys"
            whole = f". To replace the section whole, write --{where}='{literal(name, section, open_to_config)}'"
            raise UserError(f"{where}.{key}: {_quoted(name) or where} does not take {key}; it takes: {keys}" + whole * (where[-1] != "]"))
        kind = _annotation(function, key, accepted[key])
        if not fits(value, kind):
            raise UserError(f"{where}.{key}={value!r}: expected {_name_of(kind)}, got {type(value).__name__}")
    missing = [k for k, p in accepted.items() if p.default is p.empty and k not in section and k not in given]
    if missing:
        raise UserError(f"{where}: {_quoted(name) or 'it'} needs {', '.join(missing)}")
    arguments = section | {k: v for k, v in given.items() if k in accepted}
    try:
        return function(**arguments)
    except UserError as error:
        raise UserError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None


def _quoted(name: str) -> str:
    return f"'{name}'" if name else ""


def _annotation(function, key: str, parameter: inspect.Parameter) -> Any:
    if not isinstance(parameter.annotation, str):
        return parameter.annotation
    target = function.__init__ if inspect.isclass(function) and not dataclasses.is_dataclass(function) else function
    try:
        return typing.get_type_hints(target).get(key, Any)
    except NameError:
        return Any


def _name_of(kind) -> str:
    return kind.__name__ if inspect.isclass(kind) and not typing.get_args(kind) else str(kind).replace("typing.", "")
