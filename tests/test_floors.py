"""The house's own rules, read from the source: floors, imports, names, lengths (DESIGN sections 2, 3, 11 and 13).

Mistakes caught: a lower floor that imports a higher one, also inside a function; a second reader of ConfigDict; torch or
TensorFlow in the package; an import that makes `import ldm_jax` slow; unsafe loading; code that grew past two screens.
"""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
LINES, FUNCTION_LINES = 300, 60
LONGER: set[str] = set()  # "ldm_jax/x.py" or "ldm_jax/x.py::function", each with a reason beside it

LOWER = {"core", "ops", "nn", "diffusion", "models", "data", "checkpoint", "interop"}
SEVEN = {"adapted", "asked", "cached_data", "choices", "classifier_choices", "clip", "config_file", "config_tree", "data_choices",
         "describe", "donor", "embedded", "embedding_choices", "encoding", "evaluate", "experiment", "launch", "layouts", "likelihood",
         "loading", "output", "parted", "partners", "pictures", "pipeline", "precision", "published", "publishing", "retrieved", "said",
         "sampling", "shapes_tasks", "sizes", "states", "text_encoders", "tiles", "tokenized", "told", "vocabularies", "workdir"}
ALL = LOWER | {"train", "evals"} | SEVEN
MAY_IMPORT = {  # of ours, beside itself
    "core": set(), "ops": {"core"}, "nn": {"core", "ops"}, "diffusion": {"core", "ops"}, "models": {"core", "ops", "nn"},
    "data": {"core"}, "checkpoint": {"core"}, "interop": {"core", "models", "checkpoint"}, "train": LOWER, "evals": LOWER,
    **{name: ALL for name in SEVEN}, "__init__": SEVEN | {"core"},
    "cli": SEVEN | {"core", "__init__"},
    "train.py": SEVEN | {"cli", "core", "__init__"}, "sample.py": SEVEN | {"cli", "core", "__init__"},
}
LEARNERS = {"flax", "optax", "orbax"}
NEVER_ON = {"core": LEARNERS, "ops": LEARNERS, "diffusion": LEARNERS, "data": LEARNERS | {"jax", "jaxlib"}}
NEVER = {"torch", "torchvision", "tensorflow", "diffusers", "skimage", "yaml", "marshal", "shelve", "dill", "cloudpickle",
         "joblib", "imp", "runpy"}
NEVER_MODULES = {"clu.metric_writers"}  # it imports TensorFlow
ONE_READER = {"ml_collections": {"ldm_jax/config_file.py"}, "pickle": {"ldm_jax/interop/torch_pickle.py"},
              # config_file.py runs the user's config file; __init__.py imports its own public names when they are used
              "importlib": {"ldm_jax/config_file.py", "ldm_jax/__init__.py"}}
HARMLESS = ("importlib.metadata", "importlib.resources")
DATA_FROM_CORE = ("ldm_jax.core.errors", "ldm_jax.core.choose", "ldm_jax.core.shapes", "ldm_jax.core.keys.check_seed",
                  "ldm_jax.core.keys.SEED_LIMIT")  # the rest of core calls jax
INSIDE_FUNCTIONS = {"matplotlib", "scipy", "orbax", "grain", "tensorflow_datasets", "sklearn", "tensorboardX", "transformers"}
NEVER_CALLED = {"eval", "exec", "compile", "__import__"}
REFUSED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}


def sources() -> list[pathlib.Path]:
    files = sorted((ROOT / "ldm_jax").rglob("*.py")) + [ROOT / "train.py", ROOT / "sample.py"]
    return [file for file in files if file.exists()]


def floor_of(path: str) -> str:
    parts = path.split("/")
    if len(parts) == 1:
        return parts[0]
    return parts[1] if len(parts) > 2 else parts[1].removesuffix(".py")


def imports(tree: ast.AST, path: str):
    """Yields (full dotted name, whether it stands at module level, line) for every import, relative ones resolved."""
    inside = {id(child) for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
              for child in ast.walk(node)}
    package = path.removesuffix(".py").split("/")[:-1]
    for node in ast.walk(tree):
        top = id(node) not in inside
        if isinstance(node, ast.Import):
            yield from ((alias.name, top, node.lineno) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join(base + ([node.module] if node.module else []))
            yield from ((f"{module}.{alias.name}", top, node.lineno) for alias in node.names)


def check_import(path: str, name: str, top: bool) -> str | None:
    floor, parts = floor_of(path), name.split(".")
    if parts[0] == "ldm_jax":
        target = parts[1] if len(parts) > 1 else "__init__"
        if target not in MAY_IMPORT:
            if len(parts) > 2:
                return f"imports {name}, which is not on a floor"
            target = "__init__"  # a name that the package exports
        if floor == "data" and target == "core" and not any(f"{name}.".startswith(f"{known}.") for known in DATA_FROM_CORE):
            return f"data imports {name}, which calls jax"
        return None if target == floor or target in MAY_IMPORT[floor] else f"{floor} imports {target}"
    if parts[0] in NEVER or any(name == m or name.startswith(m + ".") for m in NEVER_MODULES):
        return f"imports {name}, which the package never does"
    if any(f"{name}.".startswith(f"{known}.") for known in HARMLESS):
        return None
    if parts[0] in ONE_READER and path not in ONE_READER[parts[0]]:
        return f"imports {name}; only {', '.join(ONE_READER[parts[0]])} may"
    if parts[0] in NEVER_ON.get(floor, ()):
        return f"{floor} imports {name}"
    if top and parts[0] in INSIDE_FUNCTIONS:
        return f"imports {name} at module level; import it in the function that uses it"
    return None


def check_call(node: ast.AST, path: str) -> str | None:
    if isinstance(node, ast.Name) and node.id in NEVER_CALLED:
        return f"uses {node.id}"
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        if (node.value.id, node.attr) in {("pickle", "load"), ("pickle", "loads"), ("_pickle", "loads"), ("builtins", "eval"),
                                          ("builtins", "exec"), ("importlib", "import_module"), ("importlib", "util")}:
            return None if path in ONE_READER.get(node.value.id, ()) and node.value.id != "pickle" else f"uses {node.value.id}.{node.attr}"
    if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and not (isinstance(node.value, ast.Constant) and not node.value.value):
        return "allows pickles in numpy files"
    return None


def violations(path: str, text: str) -> list[str]:
    """Every broken rule in one file, as "path:line: what"."""
    found, tree = [], ast.parse(text)
    if pathlib.PurePosixPath(path).stem in REFUSED_NAMES or REFUSED_NAMES & set(path.split("/")[:-1]):
        found.append(f"{path}: is called what DESIGN refuses")
    if floor_of(path) not in MAY_IMPORT:
        return found + [f"{path}: is on no floor of DESIGN section 2"]
    if len(text.splitlines()) > LINES and path not in LONGER:
        found.append(f"{path}: {len(text.splitlines())} lines, more than {LINES}")
    for name, top, line in imports(tree, path):
        wrong = check_import(path, name, top)
        found += [f"{path}:{line}: {wrong}"] if wrong else []
    for node in ast.walk(tree):
        wrong = check_call(node, path)
        found += [f"{path}:{getattr(node, 'lineno', 0)}: {wrong}"] if wrong else []
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = node.end_lineno - node.lineno + 1
            if length > FUNCTION_LINES and f"{path}::{node.name}" not in LONGER:
                found.append(f"{path}:{node.lineno}: {node.name} has {length} lines, more than {FUNCTION_LINES}")
    return found


def test_every_file_keeps_the_rules():
    files = sources()
    assert len(files) > 20, "the package was not found"
    found = [line for file in files for line in violations(file.relative_to(ROOT).as_posix(), file.read_text("utf-8"))]
    assert not found, "\n" + "\n".join(found)


def test_the_list_of_exceptions_is_not_stale():
    """Catches an exception that outlived its reason and would hide the next long function of that name."""
    lengths = {}
    for file in sources():
        path, text = file.relative_to(ROOT).as_posix(), file.read_text("utf-8")
        lengths[path] = len(text.splitlines()) > LINES
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                long = node.end_lineno - node.lineno + 1 > FUNCTION_LINES
                lengths[f"{path}::{node.name}"] = lengths.get(f"{path}::{node.name}", False) or long
    assert all(lengths.get(name) for name in LONGER)


def test_ml_collections_is_named_in_one_file_only():
    """Catches a second reader of ConfigDict that gets at it without an import (DESIGN: the word stands in no other file)."""
    named = {file.name for file in (ROOT / "ldm_jax").rglob("*.py") if "ml_collections" in file.read_text("utf-8")}
    assert named <= {"config_file.py"}


PLANTED = {
    "a higher floor": ("ldm_jax/ops/x.py", "from ldm_jax.nn.layers import Dense"),
    "a higher floor, by package": ("ldm_jax/ops/x.py", "from ldm_jax import nn"),
    "a higher floor, inside a function": ("ldm_jax/core/x.py", "def f():\n    import ldm_jax.models.unet"),
    "a higher floor, relative": ("ldm_jax/data/x.py", "from ..models import unet"),
    "a higher floor, relative, bare": ("ldm_jax/data/x.py", "from .. import models"),
    "a sibling": ("ldm_jax/train/x.py", "from ldm_jax.evals.digits import spread"),
    "a sibling, the other way": ("ldm_jax/evals/x.py", "from ldm_jax.train import loop"),
    "diffusion from models": ("ldm_jax/models/x.py", "import ldm_jax.diffusion.schedule"),
    "models from diffusion": ("ldm_jax/diffusion/x.py", "import ldm_jax.models.unet"),
    "train from interop": ("ldm_jax/interop/x.py", "from ldm_jax.train.state import State"),
    "experiment from below": ("ldm_jax/train/x.py", "from ldm_jax.experiment import build"),
    "the package from inside": ("ldm_jax/train/x.py", "import ldm_jax"),
    "a floor under floor 7 from the cli": ("ldm_jax/cli/x.py", "from ldm_jax.models.unet import UNet"),
    "a floor under floor 7 from train.py": ("train.py", "from ldm_jax.train.loop import run"),
    "flax in diffusion": ("ldm_jax/diffusion/x.py", "from flax import linen as nn"),
    "jax in data": ("ldm_jax/data/x.py", "def f():\n    import jax.numpy as jnp"),
    "a jax call through core in data": ("ldm_jax/data/x.py", "from ldm_jax.core.keys import base_key"),
    "a jax call through core in data, by module": ("ldm_jax/data/x.py", "from ldm_jax.core import keys"),
    "pipeline from below, by an exported name": ("ldm_jax/evals/x.py", "from ldm_jax import load"),
    "a second reader of configs": ("ldm_jax/train/x.py", "from ml_collections import ConfigDict"),
    "torch": ("ldm_jax/interop/x.py", "def f():\n    import torch"),
    "TensorFlow": ("ldm_jax/data/x.py", "def f():\n    from tensorflow import io"),
    "TensorFlow through clu": ("ldm_jax/train/x.py", "def f():\n    from clu import metric_writers"),
    "an import hidden in a call": ("ldm_jax/train/x.py", "import importlib"),
    "an import hidden in a call, by name": ("ldm_jax/train/x.py", "from importlib import import_module"),
    "an import hidden in a call, through a harmless one": ("ldm_jax/train/x.py", "import importlib.metadata\nimportlib.import_module('x')"),
    "an import hidden in a call, bare": ("ldm_jax/train/x.py", "x = __import__('torch')"),
    "a slow import at module level": ("ldm_jax/checkpoint/x.py", "from orbax.checkpoint import v1"),
    "a slow import in a branch": ("ldm_jax/data/x.py", "if True:\n    import grain"),
    "pickle elsewhere": ("ldm_jax/checkpoint/x.py", "import pickle"),
    "pickle.load": ("ldm_jax/interop/torch_pickle.py", "import pickle\npickle.load(open('x', 'rb'))"),
    "pickle.loads": ("ldm_jax/interop/torch_pickle.py", "import pickle\nf = pickle.loads"),
    "pickled arrays": ("ldm_jax/data/x.py", "import numpy as np\nnp.load('x', allow_pickle=True)"),
    "eval": ("ldm_jax/experiment.py", "eval('1')"),
    "yaml": ("ldm_jax/experiment.py", "def f():\n    import yaml"),
    "a refused file name": ("ldm_jax/train/utils.py", ""),
    "a refused folder name": ("ldm_jax/train/helpers/x.py", ""),
    "a file on no floor": ("ldm_jax/extra/x.py", ""),
    "a file of 301 lines": ("ldm_jax/core/x.py", "x = 1\n" * 301),
    "a function of 61 lines": ("ldm_jax/core/x.py", "def f():\n" + "    x = 1\n" * 60),
    "a method of 61 lines": ("ldm_jax/core/x.py", "class C:\n    def f(self):\n" + "        x = 1\n" * 60),
}
ALLOWED = {
    "downwards": ("ldm_jax/models/x.py", "from ldm_jax.core.errors import UserError\nfrom ldm_jax.nn import layers\nimport flax.linen"),
    "itself": ("ldm_jax/train/x.py", "from ldm_jax.train.state import State\nfrom . import optim\nimport optax"),
    "a slow import where it is used": ("ldm_jax/checkpoint/x.py", "def f():\n    from orbax.checkpoint import v1 as ocp"),
    "eval_shape and model.eval": ("ldm_jax/train/x.py", "import jax\njax.eval_shape(f)\nstage.evaluate(x)\nm.compile()"),
    "lengths at the limit": ("ldm_jax/core/x.py", "def f():\n" + "    x = 1\n" * 59 + "x = 1\n" * 240),
    "versions of libraries": ("ldm_jax/checkpoint/x.py", "from importlib.metadata import version"),
    "a seed check in data": ("ldm_jax/data/x.py", "from ldm_jax.core.keys import check_seed\nfrom ldm_jax.core import errors"),
    "floor 7 from the cli": ("ldm_jax/cli/x.py", "import ldm_jax as ldm\nfrom ldm_jax.config_file import config_flag"),
    "safe numpy files": ("ldm_jax/data/x.py", "import numpy as np\nnp.load('x', allow_pickle=False)"),
    "the config reader": ("ldm_jax/config_file.py", "import ml_collections\nfrom ldm_jax.train import loop\nfrom ldm_jax import evals"),
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_violation_is_found(what):
    assert violations(*PLANTED[what]), what


@pytest.mark.parametrize("what", ALLOWED)
def test_what_is_allowed_passes(what):
    assert violations(*ALLOWED[what]) == []
