"""docs/samplers.md says what the code does: every sampler, its options, paper and peers, and an order as its benchmark measures it."""

import pathlib

import pytest

from benchmarks import samplers as benchmark
from ldm_jax.diffusion.samplers import ABOUT, SAMPLERS

PAGE = pathlib.Path(__file__).resolve().parents[1] / "docs" / "samplers.md"
ROWS = {line.split("|")[1].strip(): line for line in PAGE.read_text().split("|---|\n")[-1].splitlines()}
AGAIN = "; run python benchmarks/samplers.py again"


def test_every_sampler_has_its_row():
    """Catches a sampler, an option, a default or a paper that changed while the page did not."""
    assert list(ROWS) == list(ABOUT) and set(ABOUT) == set(SAMPLERS), AGAIN
    for name, line in ROWS.items():
        measured = line.split("|")[3].strip()
        assert line == benchmark.row(name, measured), name + AGAIN
        assert abs(float(measured) - ABOUT[name].order) < 0.4, f"{name}: {measured} measured, ABOUT says {ABOUT[name].order}"
    assert PAGE.read_text() == benchmark.PAGE + "".join(f"{line}\n" for line in ROWS.values()), AGAIN
    assert (PAGE.parent / "samplers.png").stat().st_size < 500_000


@pytest.mark.parametrize("name", ["ddpm", "dpm_2", "dpmpp_2m"])
def test_measured_again(name):
    """Catches numbers of another version of a sampler."""
    assert abs(benchmark.order(name) - float(ROWS[name].split("|")[3])) < 0.02, AGAIN


def test_every_sampler_is_in_the_picture():
    """Catches a new sampler that nobody can see; euler, ddim and ddpm are its grey lines."""
    panels = [*benchmark.WITHOUT_NOISE.values(), *benchmark.WITH_NOISE.values()]
    shown = {name for lines in panels for name, _ in lines.values()} | {"euler", "ddim", "ddpm", "euler_ancestral"}
    assert shown == set(SAMPLERS)
