"""Which model a CompVis or Stability single file holds, from the names and shapes of its tensors alone.

Its structure is read off the tensors (`structure.py`), so that smaller and wider models of a family are recognised too. What no tensor
says (heads, schedule, prediction, the latents' scale) comes from the rows of the zoo that have the same traits; where these rows
disagree, the user has to say which it is.
"""

import dataclasses
from collections.abc import Mapping

from ldm_jax.core.errors import UserError
from ldm_jax.interop import structure
from ldm_jax.interop.described import looks_like, misfit
from ldm_jax.interop.description import Description
from ldm_jax.interop.prefixes import CONDITIONER, EMBEDDERS, FIRST_STAGE, NETWORK
from ldm_jax.interop.structure import SeenNetwork, Shapes, below
from ldm_jax.interop.traits import REQUIRED, Traits, traits_of, traits_of_row
from ldm_jax.interop.zoo import HEADS, ZOO

ENCODERS = (  # prefix, form, a tensor that it has
    (f"{EMBEDDERS}0.transformer.", "hf", "text_model.embeddings.token_embedding.weight"),
    (f"{EMBEDDERS}0.model.", "openclip", "token_embedding.weight"),
    (f"{EMBEDDERS}1.model.", "openclip", "token_embedding.weight"),
    (f"{CONDITIONER}transformer.", "hf", "text_model.embeddings.token_embedding.weight"),
    (f"{CONDITIONER}transformer.", "hf", "embeddings.token_embedding.weight"),
    (f"{CONDITIONER}model.", "openclip", "token_embedding.weight"),
    (f"{CONDITIONER}transformer.", "x_transformers", "token_emb.weight"),
    (CONDITIONER, "class", "embedding.weight"),
    (CONDITIONER, "rescaler", "channel_mapper.weight"),
    (CONDITIONER, "first_stage", "encoder.conv_in.weight"),
)


@dataclasses.dataclass(frozen=True)
class Parts:
    """Where the parts of a model stand in a file.

    network, first_stage: prefixes of their tensors' names ("" in a file of one part alone), None where the file has none.
    conditioner: (prefix, form) of each: forms "hf" (with or without "text_model."), "openclip", "x_transformers" of text encoders,
      "class" (a table), "rescaler", "first_stage" (the same tensors as the first stage, once more). A table of noise levels,
      label_emb, stands in the network.
    proj: whether transformers' proj_in and proj_out are 1x1 convolutions, "conv", or "linear" layers.
    vector: "text_time" where a vector is projected, else "": what `unet_places` takes.
    scale_factor: whether the file has a buffer of that name, which wins over the Description's.
    like: the kinds of the zoo that this model is, or is a relative of.
    """

    network: str | None
    first_stage: str | None
    conditioner: tuple[tuple[str, str], ...]
    proj: str
    vector: str
    scale_factor: bool
    like: tuple[str, ...]


def recognise(shapes: Shapes, kind: str = "", where: str = "") -> tuple[Description, Parts]:
    """What the tensors of a file are a model of.

    Args:
      shapes: name -> shape, all of them.
      kind: of the zoo, or "": which one it is, where tensors do not say. where: the file, for the messages.

    Returns:
      Its Description, `kind` "" unless it is exactly one of the zoo; and where its parts are.

    Raises:
      UserError: no model of this family; an unknown kind, or one that does not fit (the first tensors that differ, and what the file
        looks like); or several kinds that fit, which differ in what no tensor says.
    """
    if kind and kind not in ZOO:
        raise UserError(f"kind={kind!r}: expected one of {', '.join(ZOO)}")
    found, encoders = _prefixes(shapes, where), _encoders(shapes)
    try:
        net = None if found["network"] is None else structure.network(below(shapes, found["network"]))
        stage = None if found["first_stage"] is None else structure.first_stage(below(shapes, found["first_stage"]), 256)
        texts = [_text(below(shapes, prefix), form) for prefix, form in encoders if form != "first_stage"]
    except KeyError as error:
        raise UserError(f"{where}: {error.args[0]} is missing; no U-Net or autoencoder of latent diffusion is without it") from None
    traits = traits_of(net, stage, tuple(form for _, form in encoders if form != "first_stage"), texts)
    seen = _Seen(net, stage, tuple(texts), "scale_factor" in shapes)
    like, described = _choose(traits, seen, kind, where, shapes)
    if described.scale_factor == 0 and not seen.scale:
        raise UserError(f"{where}: it looks like {like[0]}, whose scale_factor stands in the file only, and this file has none; "
                        "use the original checkpoint")
    proj, vector = (net.proj, "text_time" if net.vector else "") if net else ("conv", "")
    return described, Parts(**found, conditioner=encoders, proj=proj, vector=vector, scale_factor=seen.scale, like=like)


@dataclasses.dataclass(frozen=True)
class _Seen:
    net: SeenNetwork | None
    stage: dict | None
    texts: tuple[dict, ...]
    scale: bool


def _prefixes(shapes: Shapes, where: str) -> dict[str, str | None]:
    def prefix(of: str, telling: str) -> str | None:
        return next((p for p in (of, "") if p + telling in shapes), None)

    found = {"network": prefix(NETWORK, "input_blocks.0.0.weight"),
             "first_stage": prefix(FIRST_STAGE, "encoder.conv_in.weight")}
    if found["network"] is None and found["first_stage"] is None:
        raise UserError(f"{where}: no U-Net ({NETWORK}input_blocks...) and no autoencoder ({FIRST_STAGE}encoder... or encoder...) among "
                        f"its {len(shapes)} tensors; the first are {', '.join(list(shapes)[:3])}. Expected a CompVis checkpoint")
    return found


def _encoders(shapes: Shapes) -> tuple[tuple[str, str], ...]:
    return tuple((prefix, form) for prefix, form, telling in ENCODERS if prefix + telling in shapes)


def _text(shapes: Shapes, form: str) -> dict:
    """The numbers of what stands below a conditioner's prefix."""
    if form in ("hf", "openclip"):
        return structure.clip_of(shapes, form)
    if form == "x_transformers":
        return structure.bert_of(shapes)
    if form == "class":
        return dict(rows=shapes["embedding.weight"][0], width=shapes["embedding.weight"][1])
    return dict(channels=shapes["channel_mapper.weight"][0], classes=shapes["channel_mapper.weight"][1])


def _choose(traits: Traits, seen: _Seen, kind: str, where: str, shapes: Shapes) -> tuple[tuple[str, ...], Description]:
    """(the kinds that fit, the description that they give)."""
    rows = {name: traits_of_row(row) for name, row in ZOO.items()}
    fitting = [name for name, row in rows.items() if all(traits[key] in (None, row[key]) for key in REQUIRED)
               and bool(ZOO[name].sections) == (seen.net is not None)]
    exact = [name for name in fitting if all(value in (None, rows[name][key]) for key, value in traits.items())]
    if kind and (kind not in fitting or exact and kind not in exact):
        raise UserError(f"{where}: kind={kind} does not fit: {misfit(ZOO[kind], shapes)}. The file holds {looks_like(traits, seen.net)}"
                        f"{f'; that is {_or(exact)}' if exact else ''}")
    like = [kind] if kind else exact or _nearest(fitting, rows, traits)
    if traits["encoders"] is None and seen.net is not None:  # a model without encoders rather than one that lost them
        like = [name for name in like if rows[name]["encoders"] == ()] or like
    if not like:
        raise UserError(f"{where}: no published model is built like this: it holds {looks_like(traits, seen.net)}; known: {', '.join(ZOO)}")
    described = {name: _described(name, seen) for name in like}
    first = described[like[0]]
    told = [_unsaid(name, d) for name, d in described.items()]
    differing = [key for key in told[0] if any(one[key] != told[0][key] for one in told)]
    if seen.scale:
        differing = [key for key in differing if key != "scale_factor"]
    if differing:
        what = "; ".join(f"{key}: {', '.join(f'{_short(one[key])} ({name})' for name, one in zip(like, told))}" for key in differing)
        raise UserError(f"{where}: it may be {_or(like)}, and no tensor says which. They differ in {what}. Say which it is, as "
                        f"--kind={like[-1]}")
    return tuple(like), dataclasses.replace(first, kind=like[0] if len(like) == 1 and like[0] in exact else "")


def _nearest(fitting: list[str], rows: Mapping[str, Traits], traits: Traits) -> list[str]:
    """Trait after trait, the rows that have it, as long as one has: the nearest relatives."""
    for key, value in traits.items():
        having = [name for name in fitting if value is None or rows[name][key] == value]
        fitting = having or fitting
    return fitting


def _unsaid(name: str, described: Description) -> dict:
    """What decides what a model makes, beside its tensors; kinds that differ in steps or noise of sampling alone need not be told apart."""
    sections = {key: value for key, value in described.sections.items() if key not in ("sampling", "network")}
    return sections | {"heads": HEADS.get(name), "scale_factor": described.scale_factor}


def _or(names: list[str]) -> str:
    return " or ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else names[0]


def _short(value) -> str:
    return str(value.get("name", value)) if isinstance(value, Mapping) else str(value)


def _described(name: str, seen: _Seen) -> Description:
    """The row, with all that the tensors say in its place."""
    row = ZOO[name]
    stage = dict(row.first_stage)
    if seen.stage is not None:
        stage = seen.stage | {"attention": tuple(side * row.resolution // 256 for side in seen.stage["attention"])}
    if seen.net is None:
        return dataclasses.replace(row, first_stage=stage)
    sections, texts = dict(row.sections), list(seen.texts)
    sections["network"] = seen.net.section(HEADS[name])
    sections["conditioner"] = _conditioner(sections["conditioner"], texts, seen.net, len(stage["multipliers"]) - 1)
    tables = [text["rows"] for text in seen.texts if "rows" in text]
    classes = tables[0] - (sections["conditioner"]["drop"] > 0) if tables else row.classes
    return dataclasses.replace(row, first_stage=stage, sections=sections, classes=classes)


def _conditioner(section: dict, texts: list[dict], net: SeenNetwork, halvings: int) -> dict:
    """A row's conditioner in the file's numbers; texts: of the encoders in the file, taken one after the other."""
    name = section["name"]
    if name == "several":
        return section | {"parts": tuple(_conditioner(part, texts, net, halvings) for part in section["parts"])}
    if name == "two_clip_text" and len(texts) > 1:
        return section | {key: section[key] | texts.pop(0) for key in ("first", "second")}
    if name == "clip_text" and texts:
        return section | texts.pop(0)
    if name == "bert_text" and texts:
        return _bert(section | texts.pop(0))
    if name == "class" and texts:
        return section | {"width": texts[0]["width"]}
    if name == "semantic_map" and texts:
        return section | texts[0] | {"halvings": halvings}
    if name == "tokens":
        return section | {"width": net.tokens}
    if name == "low_resolution" and net.labels:
        return section | {"levels": net.labels, "width": net.time_width}
    return section


def _bert(section: dict) -> dict:
    """Marks inside a smaller vocabulary than the published one."""
    vocabulary = section["vocabulary"]
    return section | {key: vocabulary - 3 + i for i, key in enumerate(("bos", "eos")) if section.get(key, -1) >= vocabulary}
