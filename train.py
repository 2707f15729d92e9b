"""Trains a stage, or goes on where the workdir's run was left:

python train.py --config=configs/demo/autoencoder.py --workdir=runs/demo/autoencoder [--config.run.steps=500 ...]
"""

import sys

from absl import flags

from ldm_jax import config_file
from ldm_jax.cli import entry

CONFIG = config_file.config_flag()
WORKDIR = flags.DEFINE_string("workdir", "", "Where the run lives: config.json, checkpoints/, metrics.jsonl, previews/.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what would be trained, and every error of the config, and stop.")
PROCESSES = entry.process_flags()


def main() -> None:
    config = config_file.read_flag(CONFIG)
    from ldm_jax import launch, workdir

    workdir.initialise(*PROCESSES())
    if DRY_RUN.value:
        from ldm_jax import describe

        print(describe.dry_run(config))
    else:
        launch.train(config, WORKDIR.value)


if __name__ == "__main__":
    entry.run(main, sys.argv)
