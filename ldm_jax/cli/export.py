"""A self-contained bundle of a run: python -m ldm_jax.cli.export --model=runs/demo/ldm --out=bundle"""

from absl import flags

from ldm_jax.cli import entry

MODEL = flags.DEFINE_string("model", None, "A run folder, one step of it, or a bundle.", required=True)
OUT = flags.DEFINE_string("out", None, "The folder to write, new or empty.", required=True)
WEIGHTS = flags.DEFINE_enum("weights", "ema", ["ema", "raw"], "The moving average where the run kept one, or the raw weights.")
LORA = flags.DEFINE_enum("lora", "", ["", "kohya", "kohya-compvis", "diffusers"],
                         "Of a LoRA's run: the LoRA alone, as one safetensors file --out in this layout.")


def main() -> None:
    from ldm_jax import pipeline

    if LORA.value:
        return print(pipeline.export_lora(MODEL.value, OUT.value, LORA.value, weights=WEIGHTS.value))
    print(pipeline.export(MODEL.value, OUT.value, WEIGHTS.value))


if __name__ == "__main__":
    entry.run(main)
