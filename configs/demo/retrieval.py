"""Retrieval-augmented diffusion on the shapes: a picture is told by the embeddings of its four nearest training pictures. Untried.

The embedder and its database come first, beside the first stage:
  python train.py --config=configs/demo/embedding.py --workdir=runs/shapes/embedding
  python -m ldm_jax.cli.embed --model=runs/shapes/embedding --config=configs/demo/retrieval.py --out=runs/shapes/database
Command: python train.py --config=configs/demo/retrieval.py --workdir=runs/shapes/retrieval --config.first_stage=runs/shapes/autoencoder
"""

from configs.demo import shapes_unconditional

WIDTH = 32  # of configs/demo/embedding.py


def get_config():
    config = shapes_unconditional.get_config()
    config.data.fields = dict(embeddings=dict(name="neighbours", database="runs/shapes/database", k=4, embedder=""))
    config.conditioner = dict(name="tokens", width=WIDTH, count=4, drop=0.1, into="tokens")
    config.network.levels = shapes_unconditional.levels("transformer")
    config.sampling.guidance = 2.0
    return config
