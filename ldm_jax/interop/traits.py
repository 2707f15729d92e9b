"""The traits by which a file and the rows of the zoo are compared, the same of both; None is what a file does not show."""

from collections.abc import Mapping, Sequence
from typing import Any

from ldm_jax.interop.description import Description
from ldm_jax.interop.structure import SeenNetwork

Traits = Mapping[str, Any]
REQUIRED = ("bottleneck", "vector", "attention", "extra", "encoders")
"""A row is no relative of a file that lacks one of these. The other traits follow in the order in which they count."""

TEXTS = {"clip_text": ("clip",), "two_clip_text": ("clip", "clip"), "bert_text": ("x_transformers",), "class": ("class",),
         "semantic_map": ("rescaler",)}


def traits_of(net: SeenNetwork | None, stage: Mapping | None, encoders: tuple[str, ...], texts: Sequence[Mapping]) -> Traits:
    """Of a file; encoders: the forms of those in it."""
    network = None
    if net is not None:
        network = dict(levels=net.levels, middle=net.middle, scale_shift=net.scale_shift, width=net.levels[0]["width"], tokens=net.tokens,
                       vector="added" if net.labels else "projected" if net.vector else "none",
                       extra=net.channels[0] - net.channels[1], out=net.channels[1], vector_width=net.vector)
    return _traits(network, stage, encoders if encoders or net is None or not net.tokens else None, texts)


def traits_of_row(row: Description) -> Traits:
    """Of a row of the zoo."""
    if not row.sections:
        return _traits(None, row.first_stage, (), ())
    network, conditioner = row.sections["network"], row.sections["conditioner"]
    parts = conditioner["parts"] if conditioner["name"] == "several" else (conditioner,)
    by_name = {part["name"]: part for part in parts}
    latent = row.first_stage["latent_channels"]
    texts = [text for part in parts for text in _texts(part, row)]
    extra = (("inpainting", latent + 1), ("depth", 1), ("low_resolution", row.channels), ("semantic_map", row.channels))
    sizes = by_name["sizes"]["width"] * by_name["sizes"]["count"] if "sizes" in by_name else 0
    tokens = sum(text["width"] for text in texts if "rows" not in text) or by_name.get("class", {}).get("width", 0)
    tokens = by_name["tokens"]["width"] if "tokens" in by_name else tokens
    told = dict(levels=tuple({"cross_only": False} | level for level in network["levels"]), middle=network["middle"],
                scale_shift=network["scale_shift"], width=network["levels"][0]["width"], tokens=tokens,
                vector="projected" if sizes else "added" if network["vector"] == "added" else "none",
                extra=next((channels for name, channels in extra if name in by_name), 0), out=latent,
                vector_width=sizes and sizes + texts[-1]["projection"])
    return _traits(told, row.first_stage, tuple(form for part in parts for form in _forms(part)), texts)


def _texts(part: Mapping, row: Description) -> list[dict]:
    """The numbers of the encoders of a conditioner, as `recognise` reads them."""
    if part["name"] == "class":
        return [dict(rows=row.classes + (part["drop"] > 0), width=part["width"])]
    if part["name"] == "semantic_map":
        return []
    return [part["first"], part["second"]] if part["name"] == "two_clip_text" else [part] if part["name"] in TEXTS else []


def _forms(part: Mapping) -> tuple[str, ...]:
    specs = {"two_clip_text": ("first", "second")}.get(part["name"], ())
    clips = [part[key] for key in specs] or [part]
    return tuple({"quick_gelu": "hf", "gelu": "openclip"}[clip["activation"]] if form == "clip" else form
                 for form, clip in zip(TEXTS.get(part["name"], ()), clips))


def _traits(network: Mapping | None, stage: Mapping | None, encoders: tuple[str, ...] | None, texts: Sequence[Mapping]) -> Traits:
    def each(key):
        return network and tuple(level[key] for level in network["levels"])

    def of(section, key):
        return section and section[key]

    latent = of(stage, "latent_channels") or of(network, "out")
    extra = of(network, "extra")
    attention = network and ("transformer" if network["middle"]["attention"] == "transformer" else "plain")
    rows = next((text["rows"] for text in texts if "rows" in text), None)
    widths = each("width")
    return {
        "bottleneck": stage and stage["bottleneck"]["name"], "vector": of(network, "vector"), "attention": attention,
        "extra": None if extra is None else "masked" if extra and extra == latent + 1 else extra, "encoders": encoders,
        "scale_shift": of(network, "scale_shift"), "down": each("down"), "attended": each("attention"), "crossing": each("cross_only"),
        "depth": each("depth"), "middle": network and network["middle"]["depth"],
        "factor": stage and len(stage["multipliers"]), "middle_attention": of(stage, "middle_attention"), "latent": latent,
        "blocks": each("blocks"), "multipliers": widths and tuple(w / widths[0] for w in widths),
        "stage": stage and (stage["width"], stage["multipliers"], stage["blocks"], len(stage["attention"])),
        "codes": stage and stage["bottleneck"].get("codes", 0), "rows": rows, "length": texts[0].get("length") if texts else None,
        "tokens": of(network, "tokens"), "vector_width": of(network, "vector_width"), "width": widths and widths[0],
        "texts": tuple((text.get("layers"), text["width"], text.get("vocabulary")) for text in texts if "layers" in text) or None,
    }
