"""The data section of a config to what it names: sources, transforms, and the makers of fields."""

from collections.abc import Mapping

from ldm_jax.core.choose import choose
from ldm_jax.core.errors import UserError
from ldm_jax.data.batches import in_order
from ldm_jax.data.fields import FIELDS
from ldm_jax.data.sources import SOURCES
from ldm_jax.data.transforms import TRANSFORMS

KNOWN = ("classes", "count")  # of a conditioner, which the makers of what it reads are given


def open_source(config: Mapping, split: str):
    """The source of a split, chosen from config.data.source."""
    if config["data"]["source"] == {"name": "images", "folder": ""}:
        raise UserError("config.data.source.folder is empty: name a folder of images, as --config.data.source.folder=photos (a published "
                        "model came without its data, and is not measured on it)")
    return choose(SOURCES, config["data"]["source"], "config.data.source", split=split)


def transforms(config: Mapping) -> tuple:
    return tuple(choose(TRANSFORMS, section, f"config.data.transforms[{i}]", resolution=config["data"]["resolution"])
                 for i, section in enumerate(config["data"]["transforms"]))


def check_image(config: Mapping, source, fields: Mapping | None = None, conditioner=None) -> None:
    """Reads one image as training will, so that a size that does not fit is told before anything is compiled or written.

    It also shows the conditioner, if there is one, what the fields tell of it.
    """
    side = config["data"]["resolution"]
    for batch in in_order(source, transforms(config), batch=1, count=1, resolution=side, fields=fields, threads=0):
        for part in getattr(conditioner, "parts", (conditioner,)) if conditioner is not None else ():
            own = (*part.fields, *getattr(part, "optional", ()))
            part.check({name: batch[name] for name in own if name in batch})


def fields_of(config: Mapping, conditioner, factor: int, tokenizers: Mapping | None = None) -> dict:
    """{section: maker} of config.data.fields, for a conditioner that reads what they make.

    Args:
      factor: image pixels a latent, on a side.
      tokenizers: by field, those that are open already, as a run keeps them.

    Raises:
      UserError: an unknown maker, a field that two of them make, one that the conditioner reads and no batch has.
    """
    sections = config["data"].get("fields", {})
    if not isinstance(sections, Mapping):
        raise UserError(f"config.data.fields={sections!r}: expected sections by field, as dict(map=dict(name='segmentation'))")
    parts = getattr(conditioner, "parts", (conditioner,))
    specs = {name: spec for part in parts for name, spec in getattr(part, "specs", {}).items()}
    known = {name: {key: getattr(part, key) for key in KNOWN if hasattr(part, key)} for part in parts
             for name in getattr(part, "fields", ())}
    made = {}
    for name, section in sections.items():
        given = ({"spec": specs[name]} if name in specs else {}) | known.get(name, {})
        given |= {"opened": (tokenizers or {}).get(name), "field": name, "factor": factor, "resolution": config["data"]["resolution"]}
        made[name] = choose(FIELDS, section, f"config.data.fields.{name}", **given)
        if name not in made[name].gives:
            raise UserError(f"config.data.fields.{name}: '{section['name']}' makes {', '.join(made[name].gives)}; name the section so")
    given = [name for maker in made.values() for name in maker.gives]
    if len(set(given)) != len(given):
        raise UserError(f"config.data.fields: made twice: {', '.join(sorted({name for name in given if given.count(name) > 1}))}")
    return made


def check_fields(conditioner, facts, fields: Mapping) -> None:
    """Raises UserError if the conditioner reads what no training batch of this data has; fields: as of `fields_of`."""
    given = ("image", *("label",) * bool(facts.classes), *(name for maker in fields.values() for name in maker.gives))
    missing = [name for name in conditioner.fields if name not in given]
    if missing:
        raise UserError(f"it reads {', '.join(missing)}, and batches of this data have {', '.join(given)} only: say in config.data.fields "
                        f"how to make {'it' if len(missing) == 1 else 'them'}, as dict({missing[0]}=dict(name=...)), of "
                        + ", ".join(FIELDS))
