"""A readable page of any checkpoint: python -m ldm_jax.cli.inspect --model=runs/demo/ldm
or of all samplers, with their options: python -m ldm_jax.cli.inspect samplers"""

import sys

from absl import flags

from ldm_jax.cli import entry
from ldm_jax.core.errors import UserError

ABOUT = "A run, one step of it, a bundle, a folder of diffusers, or a CompVis file."
MODEL = flags.DEFINE_string("model", "", ABOUT)
KIND = flags.DEFINE_string("kind", "", "Which published model a file is, where its tensors fit several; see docs/published.md.")
VARIANT = flags.DEFINE_string("variant", "", "Which weights of a folder of diffusers, as fp16; empty: the plain ones.")
WORDS = ("samplers",)


def main(what: str = "") -> None:
    if not what and not MODEL.value:
        raise UserError(f"--model is missing: {ABOUT} Or write samplers in its place")
    if what and MODEL.value:
        raise UserError(f"--model does not go with '{what}': that page is of no model")
    from ldm_jax import describe, loading

    print(describe.samplers() if what == "samplers" else describe.page(MODEL.value, loading.Reading(KIND.value, VARIANT.value)))


if __name__ == "__main__":
    entry.run(main, sys.argv, words=() if len(sys.argv) < 2 or sys.argv[1].startswith("-") else WORDS)
