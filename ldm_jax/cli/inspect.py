"""A readable page of any checkpoint: python -m ldm_jax.cli.inspect --model=runs/demo/ldm"""

from absl import flags

from ldm_jax.cli import entry

MODEL = flags.DEFINE_string("model", None, "A run folder, one step of it, or a bundle.", required=True)


def main() -> None:
    from ldm_jax import describe

    print(describe.page(MODEL.value))


if __name__ == "__main__":
    entry.run(main)
