"""Training steps from images and from a cache of their latents, in turn: steps a second of each, and their ratio.

    python -m ldm_jax.cli.encode --config=configs/demo/ldm.py --out=runs/demo/cache
    python benchmarks/cached_latents.py --config=configs/demo/ldm.py --cache=runs/demo/cache

Reading is counted: both go through the run's own reader threads. Each pair is a block of steps from images and one from the cache; the
ratio is the median over the pairs, with the smallest and the largest. The processor's seconds, of all threads, stand beside the clock's:
on a machine that does other work they are the quieter measure.
"""

import argparse
import itertools
import pathlib
import sys
import time

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from ldm_jax import launch, states  # noqa: E402
from ldm_jax.config_file import load  # noqa: E402
from ldm_jax.core.keys import base_key  # noqa: E402
from ldm_jax.data.batches import stream  # noqa: E402
from ldm_jax.train import sharding  # noqa: E402


class Way:
    """One way of reading: a job, its compiled step, its state."""

    def __init__(self, config):
        self.job = launch.prepare(config)
        stage, self.key = launch.stage_of(self.job), base_key(0)
        self.state, self.frozen = states.new_state(self.job, stage, self.key), launch.frozen_of(self.job)
        self.step = jax.jit(stage.step, donate_argnums=0)
        data = config["data"]
        self.batches = stream(self.job.source, self.job.transforms, seed=0, batch=data["batch"], resolution=data["resolution"],
                              variants=data["variants"], fields=self.job.fields, threads=config["run"]["reader_threads"])

    def seconds(self, steps: int) -> tuple[float, float]:
        """(of the clock, of the processor) for so many steps."""
        began = time.perf_counter(), time.process_time()
        for batch in itertools.islice(self.batches, steps):
            self.state, told = self.step(self.state, self.frozen, sharding.place(batch, self.job.mesh), self.key)
        self.loss = float(told["loss"])
        return time.perf_counter() - began[0], time.process_time() - began[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/demo/ldm.py")
    parser.add_argument("--first_stage", default="", help="In the place of the config's.")
    parser.add_argument("--cache", required=True)
    parser.add_argument("--variants", type=int, default=0)
    parser.add_argument("--batch", type=int, default=0, help="In the place of the config's.")
    parser.add_argument("--steps", type=int, default=20, help="In a block.")
    parser.add_argument("--pairs", type=int, default=6)
    options = parser.parse_args()
    config = load(options.config)
    config["first_stage"] = options.first_stage or config["first_stage"]
    config["data"] |= {"variants": options.variants, "batch": options.batch or config["data"]["batch"]}
    images, cached = Way(config), Way(config | {"data": config["data"] | {"cache": options.cache}})
    for way in (images, cached):
        way.seconds(2)  # compiles
    pairs = np.asarray([[way.seconds(options.steps) for way in (images, cached)] for _ in range(options.pairs)])  # [pair, way, measure]
    ratios, medians = pairs[:, 0] / pairs[:, 1], np.median(pairs, axis=0)
    for i, (rate, what) in enumerate((("steps/s", "clock"), ("steps a processor's second", "processor"))):
        one, two = options.steps / medians[:, i]
        print(f"batch {config['data']['batch']}, {what}: {one:.3g} {rate} from images, {two:.3g} from the cache: "
              f"{np.median(ratios[:, i]):.2f} times as fast ({ratios[:, i].min():.2f} to {ratios[:, i].max():.2f} over "
              f"{options.pairs} pairs)", flush=True)
    print(f"losses of the last step: {images.loss:.6f}, {cached.loss:.6f}")



if __name__ == "__main__":
    main()
