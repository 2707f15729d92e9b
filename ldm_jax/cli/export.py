"""A model in another layout: python -m ldm_jax.cli.export --model=runs/demo/ldm --out=exported --format=diffusers

bundle: our own, self-contained. diffusers: a folder that its stock pipelines load. compvis: one .safetensors file.
kohya, kohya-compvis, peft: the LoRA of a run, one .safetensors file."""

from absl import flags

from ldm_jax.cli import entry

LORAS = {"kohya": "kohya", "kohya-compvis": "kohya-compvis", "peft": "diffusers"}
MODEL = flags.DEFINE_string("model", None, "A run, one step of it, a bundle, a folder of diffusers, or a CompVis file.", required=True)
OUT = flags.DEFINE_string("out", None, "The folder or file to write, new.", required=True)
FORMAT = flags.DEFINE_enum("format", "bundle", ["bundle", "diffusers", "compvis", *LORAS], "The layout.")
WEIGHTS = flags.DEFINE_enum("weights", "ema", ["ema", "raw"], "The moving average where the run kept one, or the raw weights.")
DTYPE = flags.DEFINE_enum("dtype", "", ["", "float32", "float16", "bfloat16"], "What the numbers are written in; empty: as they are.")
KIND = flags.DEFINE_string("kind", "", "Which published model a file is, where its tensors fit several; see docs/published.md.")
VARIANT = flags.DEFINE_string("variant", "", "Which weights of a folder of diffusers, as fp16; empty: the plain ones.")


def main() -> None:
    from ldm_jax import adapted, loading, publishing

    if FORMAT.value in LORAS:
        print(adapted.export_lora(MODEL.value, OUT.value, LORAS[FORMAT.value], weights=WEIGHTS.value, dtype=DTYPE.value))
        return
    reading = loading.Reading(KIND.value, VARIANT.value)
    print(publishing.publish(MODEL.value, OUT.value, FORMAT.value, weights=WEIGHTS.value, dtype=DTYPE.value, reading=reading,
                             progress=entry.progress))


if __name__ == "__main__":
    entry.run(main)
