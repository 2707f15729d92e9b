"""Every config in configs/: what it may hold, that it builds, and what it says of itself; and the page of --dry_run."""

import ast
import inspect
import pathlib
import re
import subprocess
import sys
import time

import pytest

from ldm_jax.config_file import plain
from ldm_jax.config_tree import DATA_LATER, LATER, completed, differences
from tests.untrained import save_untrained

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.py"))
DRY_RUN_S = 20


def variants() -> list[str]:
    """FILE.py, or FILE.py:WORD for each word of its ARGUMENTS, of every file with a get_config."""
    found = []
    for file in FILES:
        module = runpy_module(file)
        if "get_config" not in module:
            continue
        takes = inspect.signature(module["get_config"]).parameters
        assert not takes or module.get("ARGUMENTS"), f"{file}: get_config takes an argument, so ARGUMENTS must list them"
        found += [f"{file}:{word}" for word in module["ARGUMENTS"]] if takes else [file]
    return found


def runpy_module(file: str) -> dict:
    import runpy

    return runpy.run_path(str(ROOT / file))


VARIANTS = variants()


def unfit(value, where: str = "config") -> list[str]:
    """The places of values that --config.KEY=VALUE could not replace, or that would change on their way through JSON."""
    from ml_collections import ConfigDict

    if isinstance(value, (ConfigDict, dict)):
        return [place for key in value for place in unfit(value[key], f"{where}.{key}")]
    if isinstance(value, tuple):
        return [place for i, inner in enumerate(value) for place in unfit(inner, f"{where}[{i}]")]
    return [] if type(value) in (int, float, str, bool) else [f"{where}: {type(value).__name__}"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_config_holds_only_what_can_be_overridden(variant):
    """Catches a list or a bare None, which the command line cannot change, and arrays or objects, which no manifest can hold."""
    file, _, word = variant.partition(":")
    config = runpy_module(file)["get_config"](*[word] * bool(word))
    assert unfit(config) == []


@pytest.mark.parametrize("bad, place", [({"a": [1]}, "config.a: list"), ({"a": {"b": None}}, "config.a.b: NoneType"),
                                        ({"a": ({"b": 1j},)}, "config.a[0].b: complex")])
def test_the_walk_sees_what_it_is_there_for(bad, place):
    from ml_collections import ConfigDict

    assert unfit(ConfigDict(bad)) == [place]


@pytest.mark.parametrize("file", FILES)
def test_a_config_reports_its_result_or_says_untried(file):
    """Catches numbers that nobody can repeat, and settings that nobody has run (DESIGN rule 18)."""
    said = ast.get_docstring(ast.parse((ROOT / file).read_text())) or ""
    assert said, f"{file} says nothing"
    if "untried" not in said.splitlines()[0].lower():
        missing = [what for what, pattern in (("the command", r"python train\.py|make \w+"), ("the date", r"20\d\d-\d\d-\d\d"),
                                              ("a time", r"\d ?(s|min|h)\b"), ("hardware", r"core|GPU|TPU|H\d00|A\d00"))
                   if not re.search(pattern, said)]
        assert not missing, f"{file} does not say {', '.join(missing)}; or write 'Untried' in its first line"


def shapes_of(variant: str):
    """The stage that a config builds, by shapes alone; a diffusion model's first stage from the demo's autoencoder."""
    import jax

    from ldm_jax import choices, config_file, experiment
    from ldm_jax.core.keys import base_key
    from ldm_jax.interop.described import autoencoder_of
    from ldm_jax.interop.zoo import ZOO
    from ldm_jax.models.first_stage import FirstStage
    from ldm_jax.models.units import unit_of

    config, first = config_file.load(str(ROOT / variant)), None
    experiment.check_keys(config)
    channels = 1 if "demo" in variant and config["task"] != "autoencoder" else 3
    if config.get("first_stage", "pixels") != "pixels":
        own = config_file.load(str(ROOT / "configs/demo/autoencoder.py"))
        file, _, word = variant.partition(":")
        published = runpy_module(file).get("FIRST_STAGES", {}).get(word, word)
        module = (autoencoder_of(ZOO[published]) if published in ZOO
                  else choices.autoencoder_of(own, choices.Facts(1, own["data"]["resolution"], 10)))
        first = FirstStage(module, unit_of(module.latent_channels))
    built = experiment.build(config, choices.Facts(channels if first else 3, config["data"]["resolution"], 10), first)
    hash(built)
    return jax.eval_shape(built.stage().init, base_key(0))


QUICK = ("vq-f4-noattn", "bsr-sr")  # of the published ones, which differ in numbers only; the others are slow


@pytest.mark.parametrize("variant", [pytest.param(v, marks=[pytest.mark.slow] * (":" in v and v.partition(":")[2] not in QUICK))
                                     for v in VARIANTS])
def test_a_config_builds(variant):
    """Catches a shipped config that was left behind by a renamed key or a changed default."""
    import jax

    assert jax.tree.leaves(shapes_of(variant).params)


@pytest.fixture(scope="module")
def demo_first_stage(tmp_path_factory):
    from ldm_jax import config_file

    config = config_file.load(str(ROOT / "configs/demo/autoencoder.py"))
    folder = tmp_path_factory.mktemp("demo") / "autoencoder"
    save_untrained(config | {"latent_units": {"images": 32}}, folder)
    return folder


AGAIN = pytest.mark.slow


@pytest.mark.parametrize("name", [pytest.param("autoencoder", marks=AGAIN), "ldm", pytest.param("classifier", marks=AGAIN)])
def test_a_dry_run_of_the_demo_is_quick_and_tells_what_would_be_trained(name, demo_first_stage, tmp_path):
    """Catches a dry run that compiles, trains, writes, or leaves out what it was asked for. The seconds are printed (pytest -s)."""
    extra = [f"--config.first_stage={demo_first_stage}"] if name != "autoencoder" else []
    began = time.perf_counter()
    command = [sys.executable, "train.py", f"--config=configs/demo/{name}.py", "--dry_run", f"--workdir={tmp_path / 'run'}", *extra]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    seconds = time.perf_counter() - began
    print(f"dry run of configs/demo/{name}.py: {seconds:.1f} s")
    assert done.returncode == 0, done.stderr
    for told in ("conv_in", "Total:", "MiB", "optimizer", "ema", "mesh {'data': 1", "GFLOP", "learning rate", "seed 0, batch"):
        assert told in done.stdout, f"{told} is not told:\n{done.stdout}"
    assert ("schedule of 1000 levels" in done.stdout and "latent [8, 8," in done.stdout) == (name != "autoencoder")
    assert seconds < 3 * DRY_RUN_S and not (tmp_path / "run").exists()


def test_a_middle_in_the_words_of_a_config():
    """Catches a middle taken as the dict it is written as, one that is overlooked, and a key of it that nothing reads."""
    from ldm_jax.choices import network_of
    from ldm_jax.core.errors import UserError
    from ldm_jax.models.levels import MiddleSpec

    section = dict(name="unet", time_width=16, levels=(dict(width=8, blocks=1, down="none"),))
    made = network_of({"network": section | {"middle": dict(attention="transformer", heads=2)}}, 3)
    assert made.middle == MiddleSpec("transformer", 2) and made.reads_tokens
    assert network_of({"network": section}, 3).middle is None
    with pytest.raises(UserError, match=r"config.network.middle.heds: .*it takes: heads"):
        network_of({"network": section | {"middle": dict(heds=2)}}, 3)


def test_an_unknown_kind_lists_the_known_ones():
    """Catches a kind that fails with a traceback, or without the names to choose from; and a file without its argument."""
    from ldm_jax import config_file
    from ldm_jax.core.errors import UserError

    for argument in ("configs/published.py:sd3", "configs/published.py"):
        with pytest.raises(UserError, match="expected a kind after the colon, one of kl-f4, .*sdxl-refiner"):
            config_file.load(str(ROOT / argument))


@pytest.mark.parametrize("kind, average, rate, peak", [
    ("vq-f4", 0.0, dict(name="constant", warmup=0), 3.6e-5), ("sd-vae", 0.9999, dict(name="constant", warmup=0), 4.5e-5),
    ("celeba256", 0.9999, dict(name="constant", warmup=0), 9.6e-5),
    ("lsun-churches256", 0.9999, dict(name="constant", warmup=10_000), 5e-5),
    ("cin256-v2", 0.0, dict(name="constant", warmup=0), 1e-4), ("text2img-large", 0.0, dict(name="constant", warmup=0), 5e-5),
    ("rdm-imagenet", 0.9999, dict(name="constant", warmup=100), 1e-4), ("rdm-ffhq", 0.9999, dict(name="constant", warmup=10_000), 1e-4),
    ("inpainting-big", 0.9999, dict(name="cosine", warmup=1000, steps=50_000, end=1.28e-8), 1.28e-5),
    ("sd1", 0.9999, dict(name="constant", warmup=10_000), 1e-4), ("sd2-inpainting", 0.9999, dict(name="constant", warmup=10_000), 5e-5)])
def test_averages_and_rates_are_as_published(kind, average, rate, peak):
    """Catches one warm-up, average or form of the rate for all kinds; the numbers are the authors'."""
    module = runpy_module("configs/published.py")
    config = module["get_config"](kind)
    assert config.ema.decay == average and config.learning_rate.to_dict() == pytest.approx(rate | {"peak": peak})
    assert set(module["UNPUBLISHED"]) < set(module["ARGUMENTS"]) and "celeba256" not in module["UNPUBLISHED"]


def test_runs_saved_before_a_key_was_there_go_on():
    """Mistake: a key that came later, of which what was before is not known: the run of an older version is refused."""
    config = plain(runpy_module("configs/demo/ldm.py")["get_config"]())
    without = {key: value for key, value in config.items() if key not in LATER or key == "sampling"}
    without["data"] = {key: value for key, value in config["data"].items() if key not in DATA_LATER}
    without["sampling"] = {key: value for key, value in config["sampling"].items() if key != "threshold"}
    assert differences(without, config) and not differences(completed(without), config)
