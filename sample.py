"""Samples from a trained model: python sample.py --model=runs/demo/ldm --labels=0-9 --num_samples=100 --out=samples"""

import dataclasses
import sys

from absl import flags

from ldm_jax.cli import entry

MODEL = flags.DEFINE_string("model", None, "A run folder, one step of it, or a bundle.", required=True)
OUT = flags.DEFINE_string("out", "samples", "Where 000000.png ..., grid.png, samples.npz and samples.json are written.")
NUMBER = flags.DEFINE_integer("num_samples", 16, "How many images; image i has seed --seed + i.")
SEED = flags.DEFINE_integer("seed", 0, "The first image's seed, 0 to 2^32 - 1.")
LABELS = flags.DEFINE_string("labels", "", "Classes, as 0,1,2 or 0-9; image i has label i modulo their number. Empty: unconditional.")
SAMPLER = flags.DEFINE_string("sampler", "", 'A name, or {"name":"ddim","eta":1.0}; empty: the model\'s own.')
GRID = flags.DEFINE_string("grid", "", "The steps' times: a name or a section; empty: the model's own.")
STEPS = flags.DEFINE_integer("steps", None, "Sampling steps; the model's own by default.")
GUIDANCE = flags.DEFINE_string("guidance", "", 'uncond + w (cond - uncond), 1 is off; or {"name":"perturbed","weight":2}.')
NEGATIVE = flags.DEFINE_string("negative_labels", "", "Classes to steer away from, given as --labels; in place of the null.")
GUIDE = flags.DEFINE_string("guide", "", "A second model: a weaker one, or a classifier; --guidance is then its weight.")
THRESHOLD = flags.DEFINE_string("threshold", "", "none, clip, dynamic or a section: limits on pixels; empty: the model's own.")
INIT = flags.DEFINE_string("init_image", "", "A picture to start from, with --strength or --mask.")
MASK = flags.DEFINE_string("mask", "", "A picture: --init_image is made anew where it is white, and kept where it is black.")
STRENGTH = flags.DEFINE_float("strength", None, "How much of the way is run from --init_image: above 0, up to 1.")
SIZE = flags.DEFINE_string("size", "", "WIDTHxHEIGHT of the images, as 512x768; empty: as trained.")
TILE = flags.DEFINE_integer("tile", None, "Decode by overlapping tiles of this side in latents, for large images; 64 is usual.")
DECODE_BATCH = flags.DEFINE_integer("decode_batch", None, "Images decoded at a time; 1 takes the least memory. All of a batch by default.")
DTYPE = flags.DEFINE_string("dtype", "", "What to compute in: bfloat16 (half the memory) or float32; empty: the model's own.")
REFINER = flags.DEFINE_string("refiner", "", "A second model for the last steps, as of SDXL; --handover says from where.")
HANDOVER = flags.DEFINE_float("handover", None, "The share of the way that is done when the --refiner takes over; 0.8 by default.")
WEIGHTS = flags.DEFINE_enum("weights", "ema", ["ema", "raw"], "The moving average where the run kept one, or the raw weights.")
BATCH = flags.DEFINE_integer("batch_size", 16, "Images at a time; it does not change them.")
ROUNDING = flags.DEFINE_enum("rounding", "round", ["round", "truncate"], "To uint8; truncate is what the LDM scripts do.")
PROCESSES = entry.process_flags()


def main() -> None:
    from ldm_jax import output, pipeline, sizes, workdir

    named = {flag.name: output.parse_choice(flag.value, f"--{flag.name}") for flag in (SAMPLER, GRID, THRESHOLD)}
    sampling = named | {"steps": STEPS.value, "guidance": output.parse_guidance(GUIDANCE.value)}
    pictures = output.pictures_of(INIT.value, MASK.value, STRENGTH.value)
    request = output.Request(NUMBER.value, SEED.value, output.parse_labels(LABELS.value), BATCH.value, ROUNDING.value, sampling,
                             output.parse_labels(NEGATIVE.value, "--negative_labels"), pictures=pictures,
                             making={"size": sizes.parse_size(SIZE.value), "tile": TILE.value, "decode_batch": DECODE_BATCH.value,
                                     "handover": HANDOVER.value})
    workdir.initialise(*PROCESSES())
    loaded = {"weights": WEIGHTS.value, "dtype": DTYPE.value or None}
    model = pipeline.load(MODEL.value, **loaded)
    for flag in (GUIDE, REFINER):
        if flag.value:
            request = dataclasses.replace(request, **{flag.name: pipeline.load(flag.value, mesh=model.mesh, **loaded)})
    with entry.progress(request.number, "images") as progress:
        output.sample_to(model, request, OUT.value, progress)


if __name__ == "__main__":
    entry.run(main, sys.argv)
