"""Variations of a picture of the shapes: a model that is told the picture's own embedding beside the time. Untried.

The embedder and its database are those of configs/demo/retrieval.py.
Command: python train.py --config=configs/demo/variations.py --workdir=runs/shapes/variations --config.first_stage=runs/shapes/autoencoder
"""

from configs.demo import retrieval, shapes_unconditional


def get_config():
    config = retrieval.get_config()
    config.data.fields = dict(embeddings=dict(name="own_embedding", database="runs/shapes/database", embedder=""))
    config.conditioner = dict(name="tokens", width=retrieval.WIDTH, count=1, drop=0.1, into="vector")
    config.network.levels = shapes_unconditional.levels("plain")
    return config
