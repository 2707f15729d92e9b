"""The --config flag and what users write into it, as plain dicts and as clear errors. The only file that knows ml_collections.

Light, so that a command can read its flags and refuse them before jax is imported.
"""

import ast
import importlib.util
import traceback
from collections.abc import Mapping

from ldm_jax.core.choose import nearest, typed
from ldm_jax.core.errors import UserError

EXAMPLE = "for example --config=configs/demo/autoencoder.py"


def config_flag():
    """Defines --config=FILE.py[:ARGUMENT] with its --config.KEY=VALUE overrides, for train.py and every cli."""
    from ml_collections import config_flags

    return config_flags.DEFINE_config_file("config", None, "The experiment, a file of configs/; --config.KEY=VALUE changes a line of it.")


def read_flag(holder) -> dict:
    """The config of a parsed flag as a plain dict.

    Raises:
      UserError: no config, or a file that gives none.
    """
    config = holder.value
    if config is None and not holder.present:
        raise UserError(f"--config is missing; {EXAMPLE}")
    config = plain(config)
    if not isinstance(config, dict):  # ml_collections puts the errors of a file off until it is read
        raise UserError(f"--config: {type(config).__name__} instead of a config")
    return config


def plain(config):
    """A ConfigDict, or anything nested in it, as dicts, tuples and scalars."""
    from ml_collections import ConfigDict, FieldReference

    if isinstance(config, FieldReference):
        config = config.get()
    if isinstance(config, ConfigDict):
        return {key: plain(config[key]) for key in config}
    if isinstance(config, Mapping):
        return {key: plain(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return tuple(plain(value) for value in config)
    return config


def check_flag(argv: list[str]) -> None:
    """Checks the --config and the --config.KEY=VALUE of a command line before ml_collections meets them.

    Raises:
      UserError: no such file, one that fails (with its file and line) or gives no config, or a key that it does not have (the known
        ones beside it, nearest first).
    """
    files = [value for name, value in _named(argv) if name == "config"]
    if not files:
        if any(name.startswith("config.") for name, _ in _named(argv)):
            raise UserError(f"--config is missing, and --config.KEY=VALUE changes a line of it; {EXAMPLE}")
        return
    config = load(files[-1])
    for name, value in _named(argv):
        if name.startswith("config."):
            _check_override(config, name.split("."), value)


def _named(argv: list[str]) -> list[tuple[str, str]]:
    """[(name, value)] of the flags of a command line, written --name=value or --name value."""
    found = []
    for argument, after in zip(argv[1:], [*argv[2:], ""]):
        if argument == "--":
            break
        if argument.startswith("-"):
            name, equals, value = argument.lstrip("-").partition("=")
            found.append((name, value if equals else after))
    return found


def _check_override(config: Mapping, path: list[str], value: str) -> None:
    section, told = config, f"--{'.'.join(path)}"
    for depth, key in enumerate(path[1:], start=1):
        where = ".".join(path[:depth])
        if not isinstance(section, Mapping):
            raise UserError(f"{told}: {where} is a value, not a section; write --{where}={typed(section)}")
        if key not in section:
            whole = f". If another choice takes it, replace the section whole: --{where}='{{\"name\":...,\"{key}\":...}}'"
            raise UserError(f"{told}: {where} has no key {key!r}; it has: {nearest(key, section)}" + whole * ("name" in section))
        section = section[key]
    if isinstance(section, tuple) and not isinstance(_literal(value), tuple | list):  # ml_collections would make a tuple of a number
        raise UserError(f"{told}={value}: expected a tuple, as {told}='{typed(section) if section else '(1,2)'}'")


def _literal(text: str):
    """The Python literal that a text is; the text itself where it is none."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def load(argument: str) -> dict:
    """The config that `FILE.py:ARGUMENT` gives, without overrides, as a plain dict.

    Raises:
      UserError: no such file, a file that fails (with its file and line), or one that gives no config.
    """
    path, colon, word = argument.partition(":")
    if not path.endswith(".py"):
        raise UserError(f"--config={argument}: expected a Python file; {EXAMPLE}")
    module_spec = importlib.util.spec_from_file_location("ldm_jax_config", path)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError(f"--config={path}: it has no function get_config()")
        config = plain(module.get_config(word) if colon else module.get_config())
    except UserError:
        raise
    except Exception as error:  # whatever a user's file does
        if isinstance(error, FileNotFoundError) and error.filename == module_spec.origin:
            raise UserError(f"--config={path}: no such file") from None
        raise UserError(f"--config={argument}: {_place(error, path)}: {_short(error)}") from error
    if not isinstance(config, dict):
        raise UserError(f"--config={argument}: get_config() gave {type(config).__name__}, expected a ConfigDict")
    return config


def _place(error: Exception, path: str) -> str:
    """file:line of an error that a config file raised: the innermost line that is not ours or a library's."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)
              if not frame.filename.startswith(("<frozen", __file__)) and "/ml_collections/" not in frame.filename]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else path


def _short(error: Exception) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {' '.join(str(text).split())[:300]}"
