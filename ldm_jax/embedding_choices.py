"""The sections of a config of task "embedding" to the objects that they name; the rest of it is read in choices.py."""

from collections.abc import Mapping

from ldm_jax.choices import Facts
from ldm_jax.core.choose import choose, fill
from ldm_jax.core.errors import UserError
from ldm_jax.models.embedder import EMBEDDERS
from ldm_jax.train.embedding_stage import Contrastive


def network_of(config: Mapping, facts: Facts):
    """The Embedder of a config, for images of the data's size.

    Raises:
      UserError: grey images, or numbers that do not fit together.
    """
    if facts.channels != 3:
        raise UserError(f"config.data: images have {facts.channels} channel, and CLIP's image encoder reads 3")
    return choose(EMBEDDERS, config["network"], "config.network", side=facts.resolution)


def with_embedders(config: Mapping, fields: Mapping) -> dict:
    """The config with the digest of the embedder in each section of config.data.fields whose maker reads its embeddings.

    A model keeps what it was trained on, and is told nothing of another.
    """
    known = {name: maker.opened.embedder for name, maker in fields.items() if hasattr(maker, "embedder")}
    if not known:
        return dict(config)
    sections = {name: section | {"embedder": known[name]} if name in known else section for name, section in
                config["data"]["fields"].items()}
    return dict(config) | {"data": config["data"] | {"fields": sections}}


def loss_of(config: Mapping) -> Contrastive:
    return fill(Contrastive, config["loss"], "config.loss")
