"""A cache in the place of a run's images and texts: what it must have been made of, and whether it was."""

import pathlib
from collections.abc import Mapping, Sequence

from ldm_jax import choices, data_choices
from ldm_jax import experiment as ex
from ldm_jax.checkpoint.manifest import relative_path
from ldm_jax.config_tree import DATA_LATER
from ldm_jax.core.errors import UserError
from ldm_jax.core.trees import content_digest, paths
from ldm_jax.data.batches import fingerprint
from ldm_jax.data.cache import SPLITS, open_cache
from ldm_jax.data.cached import Cached
from ldm_jax.loading import LoadedFirstStage
from ldm_jax.models.condition import frozen_paths
from ldm_jax.train.loop import fetch

TOLD = {"source": "other training data", "held_out": "other held-out data", "transforms": "other transforms", "resolution": "another size",
        "seed": "another seed of the transforms", "variants": "another number of variants",
        "first_stage": "another encoder, a first stage"}


def setting(config: Mapping, name: str):
    """config.data.variants or config.data.cache, checked for its type.

    Raises:
      UserError: not a whole number from 0, not a text.
    """
    value = config["data"].get(name, DATA_LATER[name])
    if name == "variants":
        return choices.whole(value, "config.data.variants")
    if not isinstance(value, str):
        raise UserError(f"config.data.cache={value!r}: expected a folder made by python -m ldm_jax.cli.encode, or '' to read images")
    return value


def made_of(config: Mapping, sources: Sequence, first: LoadedFirstStage) -> dict:
    """What fixes the latents of a cache, JSON-able; sources: of train and test.

    Raises:
      UserError: transforms that draw, or captions that are drawn, and no number of variants.
    """
    transforms, variants = data_choices.transforms(config), setting(config, "variants")
    told = _drawn_captions(sources)
    draws = told or any(transform.draws for transform in transforms)
    if draws and not variants:
        what, other = ("caption", "a source of one caption a record") if told else ("transforms", "transforms that draw nothing")
        raise UserError(f"config.data.variants=0 draws the {what} of every image afresh, and a cache holds a number of draws: set it to "
                        f"how many, as --config.data.variants=8; or take {other}")
    of_train, of_test = (fingerprint(source, seed=0, batch=1, transforms=transforms) for source in sources)
    return {"source": of_train["source"], "held_out": of_test["source"], "transforms": of_train["transforms"],
            "resolution": config["data"]["resolution"], "seed": config["seed"] if draws else None,
            "variants": variants if draws else 1, "first_stage": first.digest}


def _drawn_captions(sources: Sequence) -> bool:
    """Whether training draws one of several captions of a record."""
    return any(getattr(source, "draws", False) for source in sources)


def kept_texts(conditioner, fields: Mapping, sources: Sequence = ()) -> dict[str, dict]:
    """{batch field of ids: what makes it} of the texts whose states may be kept: those that one frozen encoder alone reads, and none of
    sources that draw captions, for states are kept once a record.

    fields: the makers, as of `data_choices.fields_of`.
    """
    if _drawn_captions(sources):
        return {}
    parts = [part for part in getattr(conditioner, "parts", (conditioner,)) if getattr(part, "specs", None)]
    read = [(name, part.trained) for part in parts for name in part.specs if name.startswith("tokens")]
    names = [name for name, trained in read if not trained and sum(other == name for other, _ in read) == 1]
    makers = {name: maker for maker in fields.values() for name in maker.gives}
    return {name: makers[name].describe() for name in names if name in makers}


def encoders_digest(conditioner, params: Mapping) -> str:
    """Of all that a conditioner does not train. params: of the diffusion model."""
    frozen = frozen_paths(conditioner)
    return content_digest({path: fetch(leaf) for path, leaf in paths(params) if path.startswith(frozen)})


def in_place(config: Mapping, sources: Sequence, first: LoadedFirstStage | None, experiment: ex.Experiment,
             fields: Mapping) -> tuple[Cached, Cached]:
    """The records of config.data.cache in the place of the sources of train and test.

    Raises:
      UserError: no cache, a damaged one, one made of something else (what), or one that lacks what the conditioner reads.
    """
    folder = setting(config, "cache")
    check_task(config, first)
    cache = open_cache(folder)
    now, was = made_of(config, sources, first), cache.made_of
    differing = [f"{told} ({_short(was.get(key))}, here {_short(now[key])})" for key, told in TOLD.items() if was.get(key) != now[key]]
    if differing:
        raise UserError(f"{folder!r} was made of something else: {'; '.join(differing)}. Encode again with this config, or set it to ''")
    images = "image" in getattr(experiment.conditioner, "fields", ())
    if images and not cache.keeps["image"]:
        raise UserError(f"{folder!r} holds no images, and config.conditioner reads them: encode again with --images, or set it to ''")
    texts = kept_texts(experiment.conditioner, fields, sources)
    kept = cache.keeps["text"]
    if kept and texts and kept != texts:
        raise UserError(f"{folder!r} holds the states of other texts: {_short(kept)}, here {_short(texts)}. Encode again with this config")
    made = tuple(Cached(source, cache, split, images, bool(texts)) for source, split in zip(sources, SPLITS))
    for cached in made:
        data_choices.check_image(config, cached, fields)
    return made


def check_task(config: Mapping, first: LoadedFirstStage | None) -> None:
    """Raises UserError: a task without latents."""
    if config["task"] == "autoencoder":
        raise UserError("a cache holds what a first stage says of images, and config.task='autoencoder' is one to be trained on them")
    if first is None:
        raise UserError("a cache holds latents, and there is no first stage to make any: set config.first_stage to a run of one")


def check_texts(source, conditioner, params) -> None:
    """Raises UserError: a run reads the states of another text encoder than the one in its parameters. source: of its training data."""
    if not isinstance(source, Cached) or not source.covers:
        return
    wanted, found = source.cache.made_of["encoders"], encoders_digest(conditioner, params)
    if found != wanted:
        raise UserError(f"config.data.cache: {str(source.cache.folder)!r} holds the states of another text encoder (digest {wanted[:12]}, "
                        f"here {found[:12]}): encode again with this config, or set it to ''")


def seen_from(config: Mapping, workdir) -> Mapping:
    """The config with its cache named as seen from the workdir, so that both may move together."""
    folder = setting(config, "cache")
    if not folder:
        return config
    return dict(config) | {"data": dict(config["data"]) | {"cache": relative_path(pathlib.Path(folder), workdir)}}


def _short(value) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
