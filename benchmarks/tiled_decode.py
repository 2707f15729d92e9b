"""Memory of decoding one large image with Stable Diffusion's first stage, whole and by tiles.

    python benchmarks/tiled_decode.py --sides=512,1024     # minutes: it compiles each program, and runs none

Counted by XLA's buffer assignment: the temporaries of one program. No weights are needed. Found on a CPU, 2026-11-20, jax 0.10.2,
float32, one image: side 512: 0.75 GiB whole and by tiles of 64 latents; 1024: 3.00 and 0.75; 2048: 32.25 and 0.75.
"""

import argparse
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from ldm_jax import tiles  # noqa: E402
from ldm_jax.models.autoencoder import Autoencoder  # noqa: E402
from ldm_jax.models.bottleneck import KL  # noqa: E402
from ldm_jax.models.first_stage import FirstStage  # noqa: E402
from ldm_jax.models.tiling import starts  # noqa: E402
from ldm_jax.models.units import unit_of  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", default="512,1024")
    parser.add_argument("--tile", type=int, default=64)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    module = Autoencoder(channels=3, resolution=256, width=128, multipliers=(1, 2, 4, 4), blocks=2, latent_channels=4, bottleneck=KL(),
                         dtype=options.dtype)
    stage = FirstStage(module, unit_of(4))
    params = jax.eval_shape(lambda key: module.init(key, jnp.zeros((1, 256, 256, 3))), jax.random.key(0))["params"]
    for side in map(int, options.sides.split(",")):
        latent = jax.ShapeDtypeStruct((1, side // 8, side // 8, 4), jnp.float32)
        whole = tiles.decode.lower(stage, params, latent).compile().memory_analysis().temp_size_in_bytes
        corner, size = np.int32([0, 0]), (min(options.tile, side // 8),) * 2
        tile = tiles.decode_tile.lower(stage, size, params, latent, corner).compile().memory_analysis().temp_size_in_bytes
        number = len(starts(side // 8, size[0])) ** 2
        print(f"{side}x{side}, {options.dtype}: whole {whole / 2**30:.2f} GiB; {number} tiles of {size[0]} latents "
              f"{tile / 2**30:.2f} GiB", flush=True)


if __name__ == "__main__":
    main()
