"""Measures a model on held-out data: python -m ldm_jax.cli.evaluate --model=runs/demo/ldm [--measure=likelihood]

Of a model of the shapes: whether samples obey the held-out records' captions, maps, boxes, ...; a picture of some by --picture=FILE.png
Over several weights of guidance, the share of the asked class at each: --scales=1,1.5,2,4, or, with a classifier's scales,
--model=runs/demo/unconditional --guide=runs/demo/classifier --scales=0,1,2,4,8
"""

import dataclasses

from absl import flags

from ldm_jax.cli import entry
from ldm_jax.core.errors import UserError

MODEL = flags.DEFINE_string("model", None, "A run folder, one step of it, or a bundle.", required=True)
OUT = flags.DEFINE_string("out", "", "A JSON file for the numbers; the table is printed in any case.")
MEASURE = flags.DEFINE_enum("measure", "quality", ["quality", "likelihood"],
                            "Quality: of samples or reconstructions. Likelihood: of the test split.")
NUMBER = flags.DEFINE_integer("num_samples", None, "Of a diffusion model: 1000 on digits, class after class; 256 on shapes, a record each.")
SEED = flags.DEFINE_integer("seed", 0, "The first sample's seed, or the seed of a likelihood's draws.")
SAMPLER = flags.DEFINE_string("sampler", "", "A name or a section; empty: the model's own.")
GRID = flags.DEFINE_string("grid", "", "The steps' times: a name or a section; empty: the model's own.")
STEPS = flags.DEFINE_integer("steps", None, "Sampling steps; the model's own by default.")
GUIDANCE = flags.DEFINE_string("guidance", "", "A weight, or a section, as sample.py takes; the model's own by default.")
TIMES = flags.DEFINE_integer("likelihood_times", 32, "Transitions of the bound drawn for each image, even; 0 for every one.")
VARIANCE = flags.DEFINE_enum("posterior_variance", "large", ["small", "large"], "Of the bound's reverse steps: beta-tilde or beta.")
IMAGES = flags.DEFINE_integer("images", 0, "A likelihood's images, the first of the test split; 0 for all.")
ODE_IMAGES = flags.DEFINE_integer("ode_images", 0, "How many of them also by the probability-flow equation, which is slow.")
ODE_STEPS = flags.DEFINE_integer("ode_steps", 32, "Its steps, of four evaluations each.")
ODE_PROBES = flags.DEFINE_integer("ode_probes", 8, "Draws of its trace estimate; 0 for the exact trace.")
GUIDE = flags.DEFINE_string("guide", "", "A classifier whose gradient guides the samples, or a weaker model; see --scales.")
SCALES = flags.DEFINE_string("scales", "", "Weights to compare, as 0,1,2,4: the guide's, or of --guidance where there is no guide.")
PICTURE = flags.DEFINE_string("picture", "", "On shapes: a PNG of what some samples were told, the samples and the truth.")
WEIGHTS = flags.DEFINE_enum("weights", "ema", ["ema", "raw"], "The moving average where the run kept one, or the raw weights.")
BATCH = flags.DEFINE_integer("batch_size", 100, "Images at a time.")
PROCESSES = entry.process_flags()

OF_QUALITY = (NUMBER, SAMPLER, GRID, STEPS, GUIDANCE, GUIDE, SCALES, PICTURE)
OF_LIKELIHOOD = (TIMES, VARIANCE, IMAGES, ODE_IMAGES, ODE_STEPS, ODE_PROBES)


def main() -> None:
    likely = MEASURE.value == "likelihood"
    for flag in OF_QUALITY if likely else OF_LIKELIHOOD:
        if flag.present:
            other = "quality" if likely else "likelihood"
            raise UserError(f"--{flag.name} belongs to --measure={other}; this is --measure={MEASURE.value}")
    if PICTURE.value and (SCALES.value or GUIDE.value):
        raise UserError(f"--picture beside --{'scales' if SCALES.value else 'guide'}: a picture shows one way of sampling, with the "
                        "model's own guidance or --guidance; ask for it in a call of its own")

    from ldm_jax import evaluate, pipeline, shapes_tasks, workdir

    evaluate.check_out(OUT.value)
    scales = evaluate.parse_scales(SCALES.value, GUIDE.value, GUIDANCE.value)
    shapes_tasks.check_picture(PICTURE.value)
    request = _likelihood() if likely else _samples()
    workdir.initialise(*PROCESSES())
    model = pipeline.load(MODEL.value, weights=WEIGHTS.value)
    for flag in OF_QUALITY if model.experiment.task != "diffusion" else ():
        if flag.present:
            raise UserError(f"--{flag.name} is for samples; a model of task {model.experiment.task} is measured on the test split")
    if PICTURE.value and not shapes_tasks.is_shapes(model):
        raise UserError(f"--picture={PICTURE.value}: there are pictures of models of the shapes only")
    if not likely and NUMBER.value is None:
        request = dataclasses.replace(request, number=evaluate.default_number(model))
    guide = pipeline.load(GUIDE.value, weights=WEIGHTS.value, mesh=model.mesh) if GUIDE.value else None
    with entry.progress(evaluate.total(model, request) * max(len(scales), 1), "images") as progress:
        if scales:
            result = evaluate.sweep(model, request, scales, guide, progress)
        else:
            result = evaluate.evaluate(model, request, progress)
    print(evaluate.told(result, f"{MODEL.value}: {model.describe()}", OUT.value), flush=True)
    if PICTURE.value:
        shapes_tasks.write_picture(model, request, PICTURE.value, MODEL.value)


def _samples():
    from ldm_jax import output

    sampling = {"sampler": output.parse_choice(SAMPLER.value, "--sampler"), "grid": output.parse_choice(GRID.value, "--grid"),
                "steps": STEPS.value, "guidance": output.parse_guidance(GUIDANCE.value)}
    return output.Request(1 if NUMBER.value is None else NUMBER.value, SEED.value, batch_size=BATCH.value, sampling=sampling)


def _likelihood():
    from ldm_jax.likelihood import Likely

    return Likely(TIMES.value, VARIANCE.value, IMAGES.value, ODE_IMAGES.value, ODE_STEPS.value, ODE_PROBES.value, SEED.value, BATCH.value)


if __name__ == "__main__":
    entry.run(main)
