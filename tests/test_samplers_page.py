"""docs/samplers.md says what the code does: every sampler, its options, paper and peers, and an order as its benchmark measures it."""

import pathlib

import pytest

from benchmarks import samplers as benchmark
from ldm_jax.diffusion.samplers import ABOUT, SAMPLERS

PAGE = pathlib.Path(__file__).resolve().parents[1] / "docs" / "samplers.md"
TABLE = PAGE.read_text().split("|---|\n")[1].split("\n\n")[0]
MEASURED = {line.split("|")[1].strip(): line.split("|")[3].strip() for line in TABLE.splitlines()}
AGAIN = "; run python benchmarks/samplers.py again"


def test_the_page_is_the_codes():
    """Catches a sampler, an option, a default or a paper that changed while the page did not."""
    assert list(MEASURED) == list(ABOUT) and set(ABOUT) == set(SAMPLERS), AGAIN
    assert PAGE.read_text() == benchmark.page(MEASURED), AGAIN
    wrong = {name: told for name, told in MEASURED.items() if abs(float(told) - ABOUT[name].order) > 0.4}
    assert not wrong, f"ABOUT says otherwise: {wrong}"
    assert (PAGE.parent / "samplers.png").stat().st_size < 500_000


@pytest.mark.parametrize("name", ["ddpm", "dpm_2", "dpmpp_2m"])
def test_measured_again(name):
    """Catches numbers of another version of a sampler."""
    assert abs(benchmark.order(name) - float(MEASURED[name])) < 0.02, AGAIN


def test_every_sampler_is_in_the_picture():
    """Catches a new sampler that nobody can see; euler, ddim and ddpm are its grey lines."""
    panels = [*benchmark.WITHOUT_NOISE.values(), *benchmark.WITH_NOISE.values()]
    shown = {name for lines in panels for name, _ in lines.values()} | {"euler", "ddim", "ddpm", "euler_ancestral"}
    assert shown == set(SAMPLERS)
