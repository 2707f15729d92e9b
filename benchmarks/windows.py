"""Seams of samples that are made by windows, against hard edges and against the whole: python benchmarks/windows.py [--model=RUN]

A seam is told by the steps between neighbouring latents: their mean size across the edges of windows, by that everywhere else; 1 is no
seam. "of one row" is of what windows change in the denoised estimate of noise at equal levels, "of the sample" of what all rows end with.
Without a model a small U-Net with random parameters stands in, whose norms and attention see each window alone, as a trained one's do.

Found with random parameters, --number=2 --times=2 --steps=10, on a CPU, 2026-11-20, jax 0.10.2: one row 1.596 with hard edges, 1.232 with
an overlap of a half, 1.154 of three quarters (rms from the whole 0.362, 0.288, 0.258); samples 1.017, 1.003, 0.982, and whole 1.001.
"""

import argparse
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from ldm_jax.core.types import Condition, Level  # noqa: E402
from ldm_jax.diffusion.prediction import PREDICTIONS, denoiser  # noqa: E402
from ldm_jax.diffusion.sample import image_keys, sample  # noqa: E402
from ldm_jax.diffusion.samplers import INDEX, table_for  # noqa: E402
from ldm_jax.diffusion.schedule import scaled_linear  # noqa: E402
from ldm_jax.diffusion.windows import Window, Windowed  # noqa: E402
from ldm_jax.models.levels import LevelSpec  # noqa: E402
from ldm_jax.models.unet import UNet  # noqa: E402
from ldm_jax.ops.tiling import starts  # noqa: E402
from ldm_jax.sampling import NetworkCall, parts_of  # noqa: E402


def of_random(channels: int = 4):
    """(denoise, params, schedule, time input, condition, latent side, step) of a small network, each parameter moved at random."""
    levels = (LevelSpec(width=16, blocks=1, attention="none", heads=1, depth=1, down="conv"),
              LevelSpec(width=32, blocks=1, attention="plain", heads=4, depth=1, down="none"))
    network, schedule = UNet(out_channels=channels, levels=levels, time_width=32), scaled_linear()
    params = network.init(jax.random.key(0), jnp.zeros((1, 8, 8, channels)), jnp.zeros(1), Condition())["params"]
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    params = jax.tree.unflatten(tree, [x + 0.1 * np.float32(rng.standard_normal(x.shape)) for x in leaves])
    denoise = denoiser(NetworkCall(network), PREDICTIONS["v"]())
    return denoise, {"network": params}, schedule, INDEX, Condition(), (8, 8, channels), network.factor


def of_run(path: str, number: int):
    import ldm_jax as ldm

    model = ldm.load(path)
    objective = model.experiment.objective
    condition = model.condition(**{"labels": [i % 10 for i in range(number)]} if "label" in model.experiment.conditioner.fields else {})
    return (parts_of(model.experiment).denoise(), model.params, objective.schedule, objective.time_input, model.spread(condition, number),
            model.experiment.latent_shape, model.experiment.network.factor)


def seam(x: np.ndarray, edges: list[int]) -> float:
    """Steps along both axes of square latents [B, s, s, c] across `edges`, by those that are not."""
    steps = np.concatenate([np.abs(np.diff(x, axis=2)).mean((0, 1, 3))[None], np.abs(np.diff(x, axis=1)).mean((0, 2, 3))[None]]).mean(0)
    at = np.zeros(len(steps), bool)
    at[[e - 1 for e in edges]] = True
    return float(steps[at].mean() / steps[~at].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="")
    parser.add_argument("--times", type=int, default=3, help="how many times the trained side")
    parser.add_argument("--number", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20, help="of ddim; 0 measures one row alone")
    parser.add_argument("--overlaps", default="0,0.25,0.5,0.75", help="0 is a hard edge")
    options = parser.parse_args()
    denoise, params, schedule, time_input, condition, (side, _, channels), step = (
        of_run(options.model, options.number) if options.model else of_random())
    size = (side * options.times, side * options.times, channels)
    keys = image_keys(range(options.number))
    table = table_for(schedule, options.steps or 1, "ddim", time_input=time_input)
    noisy = jax.random.normal(jax.random.key(1), (options.number, *size))
    level, time = Level(jnp.float32(0.5**0.5), jnp.float32(0.5**0.5)), jnp.full(options.number, 400.0)
    whole = None
    for overlap in (None, *map(float, options.overlaps.split(","))):
        window = Window(side)
        object.__setattr__(window, "overlap", overlap)  # 0, which Window refuses, is a hard edge
        by = denoise if overlap is None else Windowed(denoise, window, step)
        with np.errstate(divide="ignore"):
            one = np.asarray(jax.jit(by)(params, noisy, level, time, condition)[0])
            made = np.asarray(sample(by, params, table, size, keys, condition)) if options.steps else one
        whole = one if whole is None else whole
        places = starts(size[0], side, overlap or 0.0, step)
        edges = sorted({edge for place in places for edge in (place, place + side)} - {0, size[0]})
        count, far = len(places) ** 2, np.sqrt(np.mean((one - whole) ** 2) / np.mean(whole**2))
        if overlap is None:
            print(f"whole: seam of the sample {seam(made, edges):.3f}" if options.steps else "whole", flush=True)
            continue
        ends = f", of the sample {seam(made, edges):.3f}" if options.steps else ""
        print(f"{count} windows, overlap {overlap:.2f}: seam of one row {seam(one - whole, edges):.3f}{ends}; rms from the whole {far:.3f}",
              flush=True)


if __name__ == "__main__":
    main()
