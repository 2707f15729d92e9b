"""Measures a model on held-out data: python -m ldm_jax.cli.evaluate --model=runs/demo/ldm [--out=evaluation.json]

Over several weights of guidance, the share of the asked class at each: --scales=1,1.5,2,4, or, with a classifier's scales,
--model=runs/demo/unconditional --guide=runs/demo/classifier --scales=0,1,2,4,8
"""

from absl import flags

from ldm_jax.cli import entry

MODEL = flags.DEFINE_string("model", None, "A run folder, one step of it, or a bundle.", required=True)
OUT = flags.DEFINE_string("out", "", "A JSON file for the numbers; the table is printed in any case.")
NUMBER = flags.DEFINE_integer("num_samples", 1000, "Samples of a diffusion model, class after class; a first stage reads the test split.")
SEED = flags.DEFINE_integer("seed", 0, "The first sample's seed.")
SAMPLER = flags.DEFINE_string("sampler", "", "A name or a section; empty: the model's own.")
GRID = flags.DEFINE_string("grid", "", "The steps' times: a name or a section; empty: the model's own.")
STEPS = flags.DEFINE_integer("steps", None, "Sampling steps; the model's own by default.")
GUIDANCE = flags.DEFINE_float("guidance", None, "Guidance weight; the model's own by default.")
GUIDE = flags.DEFINE_string("guide", "", "A classifier whose gradient guides the samples, or a weaker model; see --scales.")
SCALES = flags.DEFINE_string("scales", "", "Weights to compare, as 0,1,2,4: the guide's, or of --guidance where there is no guide.")
WEIGHTS = flags.DEFINE_enum("weights", "ema", ["ema", "raw"], "The moving average where the run kept one, or the raw weights.")
BATCH = flags.DEFINE_integer("batch_size", 100, "Samples at a time.")
PROCESSES = entry.process_flags()


def main() -> None:
    from ldm_jax import evaluate, output, pipeline, workdir

    evaluate.check_out(OUT.value)
    scales = evaluate.parse_scales(SCALES.value, GUIDE.value, GUIDANCE.value)
    sampling = {"sampler": output.parse_choice(SAMPLER.value, "--sampler"), "grid": output.parse_choice(GRID.value, "--grid"),
                "steps": STEPS.value, "guidance": GUIDANCE.value}
    request = output.Request(NUMBER.value, SEED.value, batch_size=BATCH.value, sampling=sampling)
    workdir.initialise(*PROCESSES())
    model = pipeline.load(MODEL.value, weights=WEIGHTS.value)
    guide = pipeline.load(GUIDE.value, weights=WEIGHTS.value, mesh=model.mesh) if GUIDE.value else None
    with entry.progress(request.number * max(len(scales), 1), "images") as progress:
        if scales:
            result = evaluate.sweep(model, request, scales, guide, progress)
        else:
            result = evaluate.evaluate(model, request, progress)
    print(evaluate.told(result, f"{MODEL.value}: {model.describe()}", OUT.value))


if __name__ == "__main__":
    entry.run(main)
