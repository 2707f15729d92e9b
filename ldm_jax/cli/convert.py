"""Files of others into ours: python -m ldm_jax.cli.convert lpips --vgg=vgg16.pth --heads=vgg.pth --out=lpips.safetensors"""

import sys

from absl import flags

from ldm_jax.cli import entry

VGG = flags.DEFINE_string("vgg", "", "torchvision's VGG16 weights (.pth or .safetensors).")
HEADS = flags.DEFINE_string("heads", "", "The linear heads of LPIPS (vgg.pth or .safetensors); empty: they are in --vgg's file.")
OUT = flags.DEFINE_string("out", "", "The file to write, .safetensors.")


def main(what: str) -> None:
    from ldm_jax import describe

    print(describe.convert(what, VGG.value, HEADS.value, OUT.value))


if __name__ == "__main__":
    entry.run(main, sys.argv, words=("lpips",))
