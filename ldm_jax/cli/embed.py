"""A database of the embeddings of a config's data, and each record's nearest ones, for retrieval-augmented diffusion and for variations:

python -m ldm_jax.cli.embed --model=runs/shapes/embedding --config=configs/demo/retrieval.py --out=runs/shapes/database"""

from absl import flags

from ldm_jax.cli import entry
from ldm_jax.config_file import config_flag, read_flag

CONFIG = config_flag()
MODEL = flags.DEFINE_string("model", None, "The embedder: a run of task embedding, or a folder of transformers with a CLIP.", required=True)
OUT = flags.DEFINE_string("out", None, "The folder of the database, new.", required=True)
K = flags.DEFINE_integer("k", 20, "How many nearest training records are kept of each record, itself left out.")
WEIGHTS = flags.DEFINE_enum("weights", "ema", ["ema", "raw"], "The moving average where the run kept one, or the raw weights.")


def main() -> None:
    config = read_flag(CONFIG)

    from ldm_jax import clip, embedded

    print(embedded.write_database(clip.load_clip(MODEL.value, WEIGHTS.value), config, OUT.value, K.value, entry.progress))


if __name__ == "__main__":
    entry.run(main)
