"""Published models at their full size, with random weights: what loading, sampling and conversion cost here.

    python benchmarks/full_size.py --kind=sd1 --folder=/tmp/sd1     # writes a folder of diffusers, loads it, samples 256x256 in 10 steps
    python benchmarks/full_size.py --kind=sdxl --folder=/tmp/sdxl --convert=/tmp/sdxl.safetensors --dtype=float16

Each part is a process of its own, so that its peak memory is its own. Memory is read from /proc (Linux): the peak resident set, and
of it the peak of what is not a mapped file.
"""

import argparse
import itertools
import json
import pathlib
import subprocess
import sys
import threading
import time
import types
import zlib

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

SIDE, STEPS = 256, 10
BLOCK = np.random.default_rng(0).standard_normal(2**20, np.float32)


class Drawn:
    """A random array made when it is asked for: kernels by fan-in, so that a network of them stays finite."""

    def __init__(self, path: str, shape: tuple[int, ...]):
        self.path, self.shape, self.dtype = path, shape, np.dtype(np.float32)

    def __array__(self, dtype=None, copy=None):
        name = self.path.rsplit("/", 1)[-1]
        if name in ("scale", "bias"):
            return np.full(self.shape, float(name == "scale"), np.float32)
        count, fan_in = int(np.prod(self.shape)), max(int(np.prod(self.shape[:-1])), 1)
        start = zlib.crc32(self.path.encode()) % len(BLOCK)
        return (np.resize(np.roll(BLOCK, start), count) * np.float32(0.7 / fan_in**0.5)).reshape(self.shape)


def vocabulary(folder: pathlib.Path, size: int = 49408) -> pathlib.Path:
    """A tokenizer of CLIP's form and size whose words are all short strings of letters."""
    letters = [chr(c) for c in range(33, 127)]
    tokens, merges = letters + [f"{c}</w>" for c in letters], []
    for end in ("</w>", ""):
        pairs = list(itertools.product(letters, [f"{c}{end}" for c in letters]))
        merges += pairs
        tokens += ["".join(pair) for pair in pairs]
    for first, last in itertools.product(["".join(pair) for pair in itertools.product(letters, letters)], [f"{c}</w>" for c in letters]):
        if len(tokens) == size - 2:
            break
        merges.append((first, last))
        tokens.append(first + last)
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n", "utf-8")
    return folder


def write(kind: str, folder: pathlib.Path, dtype: str) -> None:
    from ldm_jax import published, publishing
    from ldm_jax.checkpoint.manifest import Manifest
    from ldm_jax.interop.zoo import ZOO

    description = ZOO[kind]
    first, whole = published.configs_of(description, "raw")
    made = published.architecture(first, whole, published.units_of(description))
    leaves = {path: Drawn(path, leaf.shape) for path, leaf in made.shapes.items()}
    count = sum(int(np.prod(leaf.shape)) for path, leaf in made.shapes.items() if path.startswith("model/"))
    manifest = Manifest(task="diffusion", config=whole, parameter_count=count, step=0, weights="raw")
    opened = types.SimpleNamespace(manifest=manifest, folder=f"random {kind}")
    tokenizers = (vocabulary(folder.parent / f"{folder.name}_tokenizer"),)
    print(publishing.write_diffusers(publishing.Sayable(description, leaves), opened, folder, dtype, tokenizers))


def sample(folder: pathlib.Path, out: pathlib.Path) -> None:
    began = time.monotonic()
    from PIL import Image

    import ldm_jax as ldm

    model = ldm.load(folder)
    loaded = time.monotonic()
    images = model.sample(model.condition(prompts=["a cat"]), seeds=[0], steps=STEPS, size=(SIDE, SIDE), sampler="ddim", guidance=7.5)
    done = time.monotonic()
    Image.fromarray(images[0]).save(out)
    print(f"loaded in {loaded - began:.1f} s; one {SIDE}x{SIDE} image, {STEPS} steps with guidance, compiled and made in "
          f"{done - loaded:.1f} s")


def convert(folder: pathlib.Path, out: pathlib.Path) -> None:
    from ldm_jax import publishing

    began = time.monotonic()
    print(publishing.publish(folder, out, "compvis"), f"in {time.monotonic() - began:.1f} s")


def watched(function, *arguments) -> None:
    """Calls it, and prints the process's peak memory: all of it, and without mapped files (seen every 20 ms)."""
    peak, stop = [0], threading.Event()

    def look():
        while not stop.wait(0.02):
            peak[0] = max(peak[0], read("RssAnon"))

    def read(name: str) -> int:
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    function(*arguments)
    stop.set()
    watcher.join()
    print(f"peak memory {read('VmHWM') / 2**20:.2f} GiB, without mapped files {peak[0] / 2**20:.2f} GiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", default="sd1")
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="where the random model is written; kept if it is there")
    parser.add_argument("--dtype", default="", help="of the random model")
    parser.add_argument("--convert", type=pathlib.Path, help="convert it to this .safetensors file instead of sampling")
    parser.add_argument("--part", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        parts = {"write": (write, given.kind, given.folder, given.dtype), "convert": (convert, given.folder, given.convert),
                 "sample": (sample, given.folder, given.folder.with_suffix(".png"))}
        watched(*parts[given.part])
        return
    for part in ([] if given.folder.exists() else ["write"]) + (["convert"] if given.convert else ["sample"]):
        print(f"-- {part}", flush=True)
        subprocess.run([sys.executable, __file__, *sys.argv[1:], f"--part={part}"], check=True)


if __name__ == "__main__":
    main()
