"""Files of others into ours: python -m ldm_jax.cli.convert lpips --vgg=vgg16.pth --heads=vgg.pth --out=lpips.safetensors"""

import sys

from absl import flags

from ldm_jax.cli import entry

VGG = flags.DEFINE_string("vgg", "", "torchvision's VGG16 weights (.pth or .safetensors).")
HEADS = flags.DEFINE_string("heads", "", "The linear heads of LPIPS (vgg.pth or .safetensors).")
OUT = flags.DEFINE_string("out", "", "The file to write, .safetensors.")


def main() -> None:
    from ldm_jax import describe

    print(describe.convert(sys.argv[1], VGG.value, HEADS.value, OUT.value))


if __name__ == "__main__":
    what = sys.argv[1] if len(sys.argv) > 1 else ""
    entry.run(main, sys.argv[:1] + sys.argv[2:])
