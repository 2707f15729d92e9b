"""A readable page of any checkpoint: python -m ldm_jax.cli.inspect --model=runs/demo/ldm
or of all samplers, with their options: python -m ldm_jax.cli.inspect samplers"""

import sys

from absl import flags

from ldm_jax.cli import entry
from ldm_jax.core.errors import UserError

ABOUT = "A run folder, one step of it, or a bundle."
MODEL = flags.DEFINE_string("model", "", ABOUT)
WORDS = ("samplers",)


def main(what: str = "") -> None:
    if not what and not MODEL.value:
        raise UserError(f"--model is missing: {ABOUT} Or write samplers in its place")
    if what and MODEL.value:
        raise UserError(f"--model does not go with '{what}': that page is of no model")
    from ldm_jax import describe

    print(describe.samplers() if what == "samplers" else describe.page(MODEL.value))


if __name__ == "__main__":
    entry.run(main, sys.argv, words=() if len(sys.argv) < 2 or sys.argv[1].startswith("-") else WORDS)
