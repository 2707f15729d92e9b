"""Our tables against diffusers' schedulers, run live on one toy network and the same noise."""

import numpy as np
import pytest

from ldm_jax.diffusion.grids import GRIDS
from ldm_jax.diffusion.path import Path
from ldm_jax.diffusion.samplers import SAMPLERS
from ldm_jax.diffusion.schedule import scaled_linear
from ldm_jax.diffusion.table import run_on_host

torch = pytest.importorskip("torch", reason="torch is not installed: no independent implementation to compare with")
diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: no independent implementation to compare with")

SD = scaled_linear()
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
SIZE = (2, 8)


def toy(x, time):
    """A noise estimate, nonlinear in the point and the time, in float64."""
    return np.tanh(0.9 * x + 8e-4 * time) + 0.1 * np.sin(3 * x)


def ours(name, grid, steps, draws, x, **options) -> tuple[np.ndarray, Path]:
    grid = {"name": grid} if isinstance(grid, str) else dict(grid)
    path = GRIDS[grid.pop("name")](SD, steps, **grid)
    table = SAMPLERS[name](path, **options)

    def denoise(x, alpha, sigma, time):
        noise = toy(x, time)
        return (x - sigma * noise) / alpha, noise

    return run_on_host(table, denoise, x, draws), path


def theirs(scheduler, steps, x, draws=None, ratio=None, monkeypatch=None, **options):
    """Runs a scheduler in float64; in sigma-space (`ratio` = sigma/alpha of the first level) if it has scaled inputs."""
    scheduler.set_timesteps(steps)
    alpha = 1 if ratio is None else 1 / np.sqrt(1 + ratio**2)
    point = torch.tensor(x / alpha, dtype=torch.float64)
    for i, t in enumerate(scheduler.timesteps):
        seen = scheduler.scale_model_input(point, t)
        noise = torch.tensor(toy(seen.numpy(), float(t)))
        if monkeypatch is not None:
            monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *a, i=i, **k: torch.tensor(draws[i]))
        own = {k: (v(i) if callable(v) else v) for k, v in options.items()}
        point = scheduler.step(noise, t, point, **own).prev_sample
    return point.numpy()


@pytest.fixture
def noise():
    rng = np.random.default_rng(7)
    return rng.standard_normal(SIZE), rng.standard_normal((1000, *SIZE))


def close(got, wanted):
    """1e-5 of values of order 1: the peers hold their tables in float32."""
    difference = np.abs(got - wanted).max()
    print(f"largest difference {difference:.1e}, values up to {np.abs(wanted).max():.2f}")
    np.testing.assert_allclose(got, wanted, atol=1e-5 * max(1.0, np.abs(wanted).max()))


@pytest.mark.parametrize("steps", [1, 10, 25])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(steps, eta, noise):
    """Catches the direction's weight sqrt(1 - alpha-bar') without the draw's variance taken out."""
    peer = diffusers.DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing="trailing")
    wanted = theirs(peer, steps, noise[0], eta=eta, variance_noise=lambda i: torch.tensor(noise[1][i]))
    close(ours("ddim", "trailing", steps, noise[1], noise[0], eta=eta)[0], wanted)


@pytest.mark.parametrize("steps", [10, 50])
def test_ddim_as_stable_diffusion_ships_it(steps, noise):
    """Catches the grid's + 1, and a table that cannot end at the level of time 0 (set_alpha_to_one=False)."""
    peer = diffusers.DDIMScheduler(**BETAS, clip_sample=False, steps_offset=1, set_alpha_to_one=False)
    close(ours("ddim", {"name": "leading", "end": "lowest"}, steps, None, noise[0])[0], theirs(peer, steps, noise[0]))


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("steps", [10, 100])
def test_ddpm(variance, steps, noise, monkeypatch):
    """Catches small and large swapped, and a draw in the last step (theirs leaves it out where the time is 0)."""
    peer = diffusers.DDPMScheduler(**BETAS, clip_sample=False, variance_type=f"fixed_{variance}")
    wanted = theirs(peer, steps, noise[0], draws=noise[1], monkeypatch=monkeypatch)
    close(ours("ddpm", {"name": "leading", "offset": 0}, steps, noise[1], noise[0], variance=variance)[0], wanted)


@pytest.mark.parametrize("grid", ["trailing", "linspace"])
@pytest.mark.parametrize("steps", [10, 25])
@pytest.mark.parametrize("name, kind", [("euler", "EulerDiscreteScheduler"), ("heun", "HeunDiscreteScheduler")])
def test_euler_and_heun(name, kind, steps, grid, noise):
    """Catches sigma-space steps moved wrongly to alpha, sigma; Heun's corrector at the wrong level or time."""
    peer = getattr(diffusers, kind)(**BETAS, timestep_spacing=grid)
    spaced = {"name": "linspace", "levels": "linear"} if grid == "linspace" else grid
    got, path = ours(name, spaced, steps, None, noise[0])
    close(got, theirs(peer, steps, noise[0], ratio=float(path.ratios[0])))


@pytest.mark.parametrize("steps", [1, 2, 10, 20, 25])
def test_dpmpp_2m(steps, noise):
    """Catches the ratio r upside down, and the order of the first and last steps."""
    peer = diffusers.DPMSolverMultistepScheduler(**BETAS, timestep_spacing="trailing")
    close(ours("dpmpp_2m", "trailing", steps, None, noise[0])[0], theirs(peer, steps, noise[0]))
