"""Samples from a trained model: python sample.py --model=runs/demo/ldm --labels=0-9 --num_samples=100 --out=samples"""

import dataclasses
import sys

from absl import flags

from ldm_jax.cli import entry

MODEL = flags.DEFINE_string("model", None, "A run, one step of it, a bundle, a folder of diffusers, or a CompVis file.", required=True)
OUT = flags.DEFINE_string("out", "samples", "Where 000000.png ..., grid.png, samples.npz and samples.json are written.")
NUMBER = flags.DEFINE_integer("num_samples", 16, "How many images; image i has seed --seed + i.")
SEED = flags.DEFINE_integer("seed", 0, "The first image's seed, 0 to 2^32 - 1.")
LABELS = flags.DEFINE_string("labels", "", "Classes, as 0,1,2 or 0-9; image i has label i modulo their number.")
SAMPLER = flags.DEFINE_string("sampler", "", 'A name, or {"name":"ddim","eta":1.0}; empty: the model\'s own.')
GRID = flags.DEFINE_string("grid", "", "The steps' times: a name or a section; empty: the model's own.")
STEPS = flags.DEFINE_integer("steps", None, "Sampling steps; the model's own by default.")
GUIDANCE = flags.DEFINE_string("guidance", "", 'uncond + w (cond - uncond), 1 is off; or {"name":"perturbed","weight":2}.')
NEGATIVE = flags.DEFINE_string("negative_labels", "", "Classes to steer away from, given as --labels; in place of the null.")
GUIDE = flags.DEFINE_string("guide", "", "A second model: a weaker one, or a classifier; --guidance is then its weight.")
THRESHOLD = flags.DEFINE_string("threshold", "", "none, clip, dynamic or a section: limits on pixels; empty: the model's own.")
INIT = flags.DEFINE_string("init_image", "", "A picture to start from, with --strength or --mask.")
MASK = flags.DEFINE_string("mask", "", "A picture: --init_image is made anew where it is white, and kept where it is black.")
OUTPAINT = flags.DEFINE_string("outpaint", "", "LEFT,TOP,RIGHT,BOTTOM: pixels to make around --init_image, as 0,0,64,0.")
STRENGTH = flags.DEFINE_float("strength", None, "How much of the way is run from --init_image: above 0, up to 1.")
LORA = flags.DEFINE_multi_string("lora", None, "A LoRA, PATH or PATH:SCALE: a run that trained one, or a file; may be repeated.")
KIND = flags.DEFINE_string("kind", "", "Which published model a file is, where its tensors fit several, as sd2; see docs/published.md.")
VARIANT = flags.DEFINE_string("variant", "", "Which weights of a folder of diffusers, as fp16; empty: the plain ones.")
SIZE = flags.DEFINE_string("size", "", "WIDTHxHEIGHT of the images, as 512x768; empty: as trained.")
TILE = flags.DEFINE_integer("tile", None, "Decode by overlapping tiles of this side in latents, for large images; 64 is usual.")
WINDOW = flags.DEFINE_string("window", "", "Denoise on overlapping windows of this side in latents, for sizes beyond the trained; 32,0.5.")
DECODE_BATCH = flags.DEFINE_integer("decode_batch", None, "Images decoded at a time; 1 takes the least memory. All of a batch by default.")
DTYPE = flags.DEFINE_string("dtype", "", "What to compute in: bfloat16 (half the memory) or float32; empty: the model's own.")
REFINER = flags.DEFINE_string("refiner", "", "A second model for the last steps, as of SDXL; --handover says from where.")
HANDOVER = flags.DEFINE_float("handover", None, "The share of the way that is done when the --refiner takes over; 0.8 by default.")
PROMPT = flags.DEFINE_multi_string("prompt", [], "A text; repeat it for more, image i has text i modulo their number. (word:1.2) weighs.")
NEGATIVE_PROMPT = flags.DEFINE_multi_string("negative_prompt", [], "Texts to steer away from, given as --prompt.")
PROMPTS_FILE = flags.DEFINE_string("prompts_file", "", "A file with a prompt on each line, after those of --prompt.")
LONG = flags.DEFINE_enum("long_prompts", "", ["", "one", "many"], "A text beyond the encoder's window: loses its end, or is read in many; "
                         "empty: refused.")
CLIP_SKIP = flags.DEFINE_integer("clip_skip", None, "Layers of the CLIP text encoder to leave out at its end, beside the model's own.")
TOKENIZER = flags.DEFINE_string("tokenizer", "", "A folder with the vocabulary of the text encoder, or one of each, by commas.")
DEPTH = flags.DEFINE_multi_string("depth_image", [], "A depth picture of the images' size, near is bright; repeat it for more.")
LOW_RES = flags.DEFINE_multi_string("low_res", [], "A small picture to enlarge; repeat it for more, image i has picture i modulo them.")
MAP = flags.DEFINE_multi_string("map", [], "A picture of class numbers (grey, or a palette's) that the images follow; repeat it for more.")
BOXES = flags.DEFINE_string("boxes", "", 'JSON with {"boxes": [[left, top, right, bottom]], "labels": [3]}, 0 to 1, or a list of them.')
UNCONDITIONAL = flags.DEFINE_bool("unconditional", False, "Tell a conditional model nothing, which is refused without.")
NOISE_LEVEL = flags.DEFINE_integer("noise_level", None, "How much --low_res is noised first; 20 is usual.")
EMBEDDER = flags.DEFINE_string("embedder", "", "A run of task embedding, or a folder with a CLIP, for what follows.")
DATABASE = flags.DEFINE_string("database", "", "A folder of embeddings that python -m ldm_jax.cli.embed wrote.")
OF_PROMPT = flags.DEFINE_multi_string("neighbours_of_prompt", [], "A text: the --k nearest records of --database are told; repeatable.")
OF_IMAGE = flags.DEFINE_multi_string("neighbours_of_image", [], "The same of a picture; may be repeated.")
NEAREST = flags.DEFINE_integer("k", None, "How many neighbours are told; 4 by default.")
VARIATION = flags.DEFINE_multi_string("variation_of", [], "Tell a picture's own embedding, to vary it; may be repeated.")
ORIGINAL = flags.DEFINE_string("original_size", "", "WIDTHxHEIGHT that the model is told the picture had; by default --size.")
CROP = flags.DEFINE_string("crop", "", "LEFT,TOP where it is told that the picture was cropped; by default 0,0.")
TARGET = flags.DEFINE_string("target_size", "", "WIDTHxHEIGHT that it is told of the crop; by default --size.")
AESTHETIC = flags.DEFINE_float("aesthetic", None, "The rating that it is told; 6 by default.")
WEIGHTS = flags.DEFINE_enum("weights", "ema", ["ema", "raw"], "The moving average where the run kept one, or the raw weights.")
BATCH = flags.DEFINE_integer("batch_size", 16, "Images at a time; it does not change them.")
ROUNDING = flags.DEFINE_enum("rounding", "round", ["round", "truncate"], "To uint8; truncate is what the LDM scripts do.")
PROCESSES = entry.process_flags()


def main() -> None:
    from ldm_jax import output, pipeline, sizes, workdir
    from ldm_jax.retrieved import retrieval_of
    from ldm_jax.said import Said, check_texts, parse_pair, read_prompts, with_last

    for flag in (PROMPT, OF_PROMPT):
        check_texts(flag.value, f"--{flag.name}")
    prompts = tuple(PROMPT.value) + (read_prompts(PROMPTS_FILE.value) if PROMPTS_FILE.value else ())
    numbers = {flag.name: parse_pair(flag.value, f"--{flag.name}") for flag in (ORIGINAL, CROP, TARGET)}
    numbers |= {flag.name: flag.value for flag in (NOISE_LEVEL, AESTHETIC, CLIP_SKIP)}
    near = retrieval_of(EMBEDDER.value, DATABASE.value, {"texts": OF_PROMPT.value, "images": OF_IMAGE.value, "variations": VARIATION.value},
                        NEAREST.value)
    said = Said(prompts, tuple(NEGATIVE_PROMPT.value), LONG.value, tuple(DEPTH.value), tuple(LOW_RES.value), numbers,
                maps=tuple(MAP.value), boxes=BOXES.value, retrieval=near, unconditional=UNCONDITIONAL.value)
    named = {flag.name: output.parse_choice(flag.value, f"--{flag.name}") for flag in (SAMPLER, GRID, THRESHOLD)}
    sampling = named | {"steps": STEPS.value, "guidance": output.parse_guidance(GUIDANCE.value)}
    pictures = output.pictures_of(INIT.value, MASK.value, STRENGTH.value, OUTPAINT.value)
    size = output.size_of(sizes.parse_size(SIZE.value), pictures)
    request = output.Request(NUMBER.value, SEED.value, output.parse_labels(LABELS.value), BATCH.value, ROUNDING.value, sampling,
                             output.parse_labels(NEGATIVE.value, "--negative_labels"), pictures=pictures,
                             making={"size": size, "tile": TILE.value, "decode_batch": DECODE_BATCH.value,
                                     "window": sizes.parse_window(WINDOW.value), "handover": HANDOVER.value}, said=said)
    workdir.initialise(*PROCESSES())
    loaded = {"weights": WEIGHTS.value, "dtype": DTYPE.value or None}
    model = pipeline.load(MODEL.value, kind=KIND.value, variant=VARIANT.value, **loaded | ({"dtype": None} if LORA.value else {}))
    folders = TOKENIZER.value.split(",") if TOKENIZER.value else []
    model = model.with_tokenizer(*folders) if folders else model
    for path, scale in map(pipeline.parse_lora, LORA.value or ()):
        model = model.with_lora(path, scale)
    model = model.in_dtype(DTYPE.value) if LORA.value and DTYPE.value else model
    for flag in (GUIDE, REFINER):
        if flag.value:
            other = with_last(pipeline.load(flag.value, mesh=model.mesh, **loaded), folders)
            request = dataclasses.replace(request, **{flag.name: other})
    with entry.progress(request.number, "images") as progress:
        output.sample_to(model, request, OUT.value, progress)


if __name__ == "__main__":
    entry.run(main, sys.argv)
