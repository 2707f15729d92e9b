"""Retrieval-augmented diffusion on the shapes: a picture told by the embeddings of its four nearest training pictures. Untried.

The embedder and its database come first, and the first stage of configs/demo/shapes_autoencoder.py:
  python train.py --config=configs/demo/embedding.py --workdir=runs/shapes/embedding
  python -m ldm_jax.cli.embed --model=runs/shapes/embedding --config=configs/demo/retrieval.py --out=runs/shapes/database
Command: python train.py --config=configs/demo/retrieval.py --workdir=runs/shapes/retrieval --config.first_stage=runs/shapes/autoencoder
"""

from configs.base import ldm

DATABASE = "runs/shapes/database"


def get_config():
    config = ldm()
    config.data.update(source=dict(name="shapes"), resolution=32, batch=64)
    config.data.fields = dict(embeddings=dict(name="neighbours", database=DATABASE, k=4))
    config.network.update(time_width=128, levels=(
        dict(width=48, blocks=1, attention="none", heads=1, depth=1, down="conv"),
        dict(width=96, blocks=2, attention="transformer", heads=4, depth=1, down="none")))
    config.conditioner = dict(name="tokens", width=32, count=4, drop=0.1, into="tokens")
    config.learning_rate.update(peak=1e-3, warmup=100, steps=3000)
    config.run.update(steps=3000, log_every=250, evaluate_every=1000, preview_every=1000, save_every=1000)
    return config
