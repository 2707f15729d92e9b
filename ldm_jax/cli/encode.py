"""A cache of latents, and of the states of frozen text encoders, to train from:

python -m ldm_jax.cli.encode --config=configs/demo/ldm.py --config.first_stage=runs/demo/autoencoder --out=runs/demo/cache"""

from absl import flags

from ldm_jax.cli import entry
from ldm_jax.config_file import config_flag, read_flag
from ldm_jax.core.errors import UserError

CONFIG = config_flag()
OUT = flags.DEFINE_string("out", None, "The folder to write, new.", required=True)
VARIANTS = flags.DEFINE_integer("variants", None, "Variants of the random transforms of a record; config.data.variants by default.")
IMAGES = flags.DEFINE_bool("images", False, "Keep the images too, which inpainting and super-resolution read.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of latents and states; bfloat16 halves the size, and is rounded.")
BATCH = flags.DEFINE_integer("batch_size", 0, "Images at a time; 0: config.data.batch.")


def main() -> None:
    config = read_flag(CONFIG)
    if BATCH.value < 0:
        raise UserError(f"--batch_size={BATCH.value}: expected a whole number of images from 1, or 0 for config.data.batch")

    from ldm_jax import encoding

    print(encoding.encode(encoding.with_variants(config, VARIANTS.value), OUT.value,
                          encoding.Wanted(IMAGES.value, DTYPE.value, BATCH.value), entry.progress))


if __name__ == "__main__":
    entry.run(main)
