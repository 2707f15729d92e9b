"""A model in another layout: python -m ldm_jax.cli.export --model=runs/demo/ldm --out=exported --format=diffusers

bundle: our own, self-contained. diffusers: a folder that its stock pipelines load. compvis: one .safetensors file.
kohya, kohya-compvis, peft: the LoRA of a run, one .safetensors file."""

from absl import flags

from ldm_jax.cli import entry
from ldm_jax.core.errors import UserError

LORAS = {"kohya": "kohya", "kohya-compvis": "kohya-compvis", "peft": "diffusers"}
MODEL = flags.DEFINE_string("model", None, "A run, one step of it, a bundle, a folder of diffusers, or a CompVis file.", required=True)
OUT = flags.DEFINE_string("out", None, "The folder or file to write, new.", required=True)
FORMAT = flags.DEFINE_enum("format", "bundle", ["bundle", "diffusers", "compvis", *LORAS], "The layout.")
WEIGHTS = flags.DEFINE_enum("weights", "ema", ["ema", "raw"], "The moving average where the run kept one, or the raw weights.")
DTYPE = flags.DEFINE_enum("dtype", "", ["", "float32", "float16", "bfloat16"], "What the numbers are written in; empty: as they are.")
KIND = flags.DEFINE_string("kind", "", "Which published model a file is, where its tensors fit several; see docs/published.md.")
VARIANT = flags.DEFINE_string("variant", "", "Which weights of a folder of diffusers, as fp16; empty: the plain ones.")

TOKENIZER = flags.DEFINE_string("tokenizer", "", "A folder with the vocabulary of the text encoder, or one of each, by commas.")


def main() -> None:
    from ldm_jax import adapted, loading, publishing

    if FORMAT.value in LORAS:
        for flag in (KIND, VARIANT, TOKENIZER):
            if flag.value:
                raise UserError(f"--{flag.name} does not go with --format={FORMAT.value}: a LoRA is of a run")
        print(adapted.export_lora(MODEL.value, OUT.value, LORAS[FORMAT.value], weights=WEIGHTS.value, dtype=DTYPE.value))
        return
    reading = loading.Reading(KIND.value, VARIANT.value)
    print(publishing.publish(MODEL.value, OUT.value, FORMAT.value, weights=WEIGHTS.value, dtype=DTYPE.value, reading=reading,
                             progress=entry.progress, tokenizers=tuple(TOKENIZER.value.split(",")) if TOKENIZER.value else ()))


if __name__ == "__main__":
    entry.run(main)
