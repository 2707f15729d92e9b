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
LORA = flags.DEFINE_multi_string("lora", None, "A LoRA, PATH or PATH:SCALE: a run that trained one, or a file; may be repeated.")
WEIGHTS = flags.DEFINE_enum("weights", "ema", ["ema", "raw"], "The moving average where the run kept one, or the raw weights.")
BATCH = flags.DEFINE_integer("batch_size", 16, "Images at a time; it does not change them.")
ROUNDING = flags.DEFINE_enum("rounding", "round", ["round", "truncate"], "To uint8; truncate is what the LDM scripts do.")
PROCESSES = entry.process_flags()


def main() -> None:
    from ldm_jax import output, pipeline, workdir

    named = {flag.name: output.parse_choice(flag.value, f"--{flag.name}") for flag in (SAMPLER, GRID, THRESHOLD)}
    sampling = named | {"steps": STEPS.value, "guidance": output.parse_guidance(GUIDANCE.value)}
    pictures = output.pictures_of(INIT.value, MASK.value, STRENGTH.value)
    request = output.Request(NUMBER.value, SEED.value, output.parse_labels(LABELS.value), BATCH.value, ROUNDING.value, sampling,
                             output.parse_labels(NEGATIVE.value, "--negative_labels"), pictures=pictures)
    workdir.initialise(*PROCESSES())
    model = pipeline.load(MODEL.value, weights=WEIGHTS.value)
    for path, scale in map(pipeline.parse_lora, LORA.value or ()):
        model = model.with_lora(path, scale)
    if GUIDE.value:
        request = dataclasses.replace(request, guide=pipeline.load(GUIDE.value, weights=WEIGHTS.value, mesh=model.mesh))
    with entry.progress(request.number, "images") as progress:
        output.sample_to(model, request, OUT.value, progress)


if __name__ == "__main__":
    entry.run(main, sys.argv)
