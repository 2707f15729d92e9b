"""The names that LoRAs of U-Nets and CLIP text encoders have in files, read and written.

  kohya: lora_unet_, lora_te_, lora_te1_ or lora_te2_ before the layer's name with every dot an underscore, then .lora_down.weight,
    .lora_up.weight and .alpha. The U-Net's layers are called as in diffusers or as in CompVis; te's as in transformers.
  diffusers: unet., text_encoder. or text_encoder_2. before the layer's name, then .lora_A.weight (down) and .lora_B.weight (up);
    alpha in the header. Older files: .lora.down.weight, .lora_linear_layer.down.weight, attn1.processor.to_q_lora.down.weight.
Layers' names come from the name tables of whole networks, so that every key has a place or is named.
"""

import dataclasses
import fnmatch
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.core.trees import nested
from ldm_jax.interop import lora_places
from ldm_jax.interop.places import Place, prefixed
from ldm_jax.interop.text_names import clip_text_places
from ldm_jax.interop.unet_names import unet_places
from ldm_jax.models.lora import by_kernel
from ldm_jax.models.text_encoder import ClipTextEncoder
from ldm_jax.models.unet import UNet

FORMS = ("kohya", "kohya-compvis", "diffusers")
METADATA = "lora_adapter_metadata"  # in the header of diffusers' files
OTHER_KINDS = {  # what stands where a LoRA's keys would, and is none
    "*dora_scale": "DoRA", "*lora_magnitude_vector*": "DoRA", "*.hada_*": "LoHa", "*.lokr_*": "LoKr", "*.oft_*": "OFT",
    "*.lora_mid.*": "a LoCon in three parts", "*.diff": "full differences", "*.diff_b": "full differences", "*.on_input": "(IA)^3",
    "*.a1.weight": "GLoRA", "*.w_norm": "trained norms", "*.b_norm": "trained norms", "*.lora_B.bias": "LoRA with biases",
    "*.lora_up.bias": "LoRA with biases",
}
ROLES = {"lora_down": "down", "lora_up": "up", "lora_A": "down", "lora_B": "up", "down": "down", "up": "up"}
KOHYA = re.compile(r"(lora_(?:unet|te1|te2|te)_[^.]+)\.(?:(lora_down|lora_up)\.weight|alpha)")
PEFT = re.compile(r"(.+)\.(lora_[AB])(?:\.default)?\.weight")
OLD = re.compile(r"(.+?)(?:\.lora|\.lora_linear_layer|_lora)\.(down|up)\.weight")
OLD_TEXT = {".to_q": ".q_proj", ".to_k": ".k_proj", ".to_v": ".v_proj", ".to_out": ".out_proj"}


@dataclasses.dataclass(frozen=True)
class Part:
    """A network that LoRAs adapt: the name of its component, its prefixes in kohya's files (the first is written), and for each
    spelling of its layers the places of its kernels, in the order in which they are tried."""

    component: str
    kohya: tuple[str, ...]
    tables: Mapping[str, tuple[Place, ...]]


def lora_parts(network: UNet, conditioner, proj: str = "conv") -> tuple[Part, ...]:
    """The U-Net and the CLIP text encoders of a diffusion model.

    Args:
      conditioner: any; its text encoders by its method `encoders`, its parts by its field `parts`.
      proj: how the transformers' proj_in and proj_out are written, as `unet_places` takes it; both are read.
    """
    vector = "text_time"  # the layers of a projected vector have places whether there are any or not: here they are looked up
    tables = {"diffusers": _kernels(unet_places(network, "diffusers", proj, vector), "network/")}
    try:
        tables["compvis"] = _kernels(unet_places(network, "compvis", proj, vector), "network/")
    except UserError:  # a network that this form cannot hold
        pass
    found, parts = list(_text(conditioner, "conditioner/")), [Part("unet", ("lora_unet_",), tables)]
    for i, (path, encoder) in enumerate(found):
        second = i == 1 or getattr(conditioner, "vector", "") == "pooled"  # the refiner has SDXL's second alone
        names = {"hf": _kernels(clip_text_places(encoder, "hf"), path), "flat": _kernels(clip_text_places(encoder, "hf", flat=True), path)}
        if second:
            parts.append(Part("text_encoder_2", ("lora_te2_",), names))
        else:
            parts.append(Part("text_encoder", ("lora_te1_", "lora_te_") if len(found) > 1 else ("lora_te_", "lora_te1_"), names))
    return tuple(parts)


def _text(conditioner, path: str) -> Iterator[tuple[str, ClipTextEncoder]]:
    for i, part in enumerate(getattr(conditioner, "parts", ())):
        yield from _text(part, f"{path}parts_{i}/")
    for name, encoder in conditioner.encoders().items() if hasattr(conditioner, "encoders") else ():
        if isinstance(encoder, ClipTextEncoder):
            yield f"{path}{name}/", encoder


def _kernels(places: Iterable[Place], prefix: str) -> tuple[Place, ...]:
    return tuple(place for place in prefixed(places, ours=prefix) if place.ours.endswith("/kernel"))


def _layers(part: Part, spelled: Callable[[str], str]) -> dict[str, tuple[Place, int]]:
    """{a layer's name, as it is spelled there: its place, and which of the place's tensors it is}."""
    found: dict[str, tuple[Place, int]] = {}
    for table in part.tables.values():
        for place in table:
            for i, name in enumerate(place.theirs):
                found.setdefault(spelled(name.removesuffix(".weight")), (place, i))
    return found


def _spelled_kohya(prefix: str) -> Callable[[str], str]:
    return lambda layer: prefix + layer.replace(".", "_")


def read_lora(tensors: Mapping[str, np.ndarray], parts: tuple[Part, ...], where: str, metadata: Mapping[str, str] | None = None) -> dict:
    """The LoRA tree of a file in any of the layouts; arrays keep their element type.

    Args:
      where: the file, for messages. metadata: of its header.

    Raises:
      UserError: keys of another kind of adapter (which is named), keys without a place in this model, half a LoRA, shapes that do not
        go together.
    """
    for pattern, kind in OTHER_KINDS.items():
        for name in tensors:
            if fnmatch.fnmatchcase(name, pattern):
                raise UserError(f"{where}: {name} is of {kind}; only plain LoRA (down, up, alpha) is read")
    layers: dict[str, tuple[Place, int]] = {}
    for part in parts:
        for prefix in part.kohya:
            layers |= _layers(part, _spelled_kohya(prefix))
        layers |= _layers(part, lambda layer, part=part: f"{part.component}.{layer}")
    unknown, halves = [], {}
    for name in tensors:
        layer, role = _taken_apart(name, {part.component for part in parts})
        if layer in layers and role:
            halves.setdefault(layer, {})[role] = tensors[name]
        else:
            unknown.append(name)
    if unknown:
        told = ", ".join(f"{name} {list(tensors[name].shape)}" for name in unknown[:5])
        raise UserError(f"{where}: {len(unknown)} of {len(tensors)} keys have no place in this model: {told}"
                        f"{', ...' if unknown[5:] else ''}; is it a LoRA of this model's kind?")
    if not halves:
        raise UserError(f"{where}: holds no LoRA")
    alphas = _alphas(metadata, where)
    placed: dict[str, tuple[Place, dict]] = {}
    for layer, half in halves.items():
        if half.keys() | {"alpha"} != {"down", "up", "alpha"}:
            raise UserError(f"{where}: {layer} has {' and '.join(half)}; expected down, up and perhaps alpha")
        place, i = layers[layer]
        if "alpha" not in half and (alpha := alphas(layer, half["down"].shape[0])) is not None:
            half["alpha"] = np.float32(alpha)
        one = placed.setdefault(place.ours, (place, {}))[1]
        if i in one:
            raise UserError(f"{where}: {layer} is there twice, by two names")
        try:
            one[i] = lora_places.ours(place.layout, half)
        except ValueError as error:
            raise UserError(f"{where}: {layer}: {error}") from None
    entries = {}
    for path, (place, found) in placed.items():
        try:
            entries[path] = lora_places.joined(found, len(place.theirs))
        except ValueError as error:
            raise UserError(f"{where}: {', '.join(place.theirs)}: {error}") from None
    return nested(entries)


def _taken_apart(name: str, components: set[str]) -> tuple[str, str]:
    """(the layer as `_layers` spells it, "down", "up" or "alpha") of a key; ("", "") for no LoRA's."""
    if found := KOHYA.fullmatch(name):
        return found[1], ROLES[found[2]] if found[2] else "alpha"
    name = name.removeprefix("base_model.model.").replace(".processor.", ".")
    if name.endswith(".alpha"):
        layer, role = name.removesuffix(".alpha"), "alpha"
    elif found := PEFT.fullmatch(name) or OLD.fullmatch(name):
        layer, role = found[1], ROLES[found[2]]
    else:
        return "", ""
    layer = layer if layer.split(".")[0] in components | {"text_encoder", "text_encoder_2"} else f"unet.{layer}"
    if "_lora." in name:  # the oldest names are of attention processors, not of layers
        stem, _, last = layer.rpartition(".")
        text = layer.startswith("text_encoder")
        layer = f"{stem}{OLD_TEXT.get(f'.{last}', f'.{last}')}" if text else layer + ".0" * (last == "to_out")
    return layer, role


def _alphas(metadata: Mapping[str, str] | None, where: str) -> Callable[[str, int], float | None]:
    """(layer, rank) -> the alpha that a file's header says, None where it says none."""
    if not metadata or METADATA not in metadata:
        return lambda layer, rank: None
    try:
        said = dict(json.loads(metadata[METADATA]))
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: its header's {METADATA} is not JSON: {error}") from None

    def alpha(layer: str, rank: int) -> float | None:
        component, _, inner = layer.partition(".")
        if said.get(f"{component}.use_dora"):
            raise UserError(f"{where}: is of DoRA; only plain LoRA (down, up, alpha) is read")
        patterns = said.get(f"{component}.alpha_pattern") or {}
        value = next((patterns[key] for key in patterns if inner == key or inner.endswith(f".{key}")), said.get(f"{component}.lora_alpha"))
        if value is None:
            return None
        return float(value) * (rank ** 0.5 if said.get(f"{component}.use_rslora") else 1.0)

    return alpha


def write_lora(tree, parts: tuple[Part, ...], form: str) -> Iterator[tuple[str, np.ndarray]]:
    """(key, array) of a file in one of FORMS; `lora_metadata` is its header.

    Raises:
      UserError: an unknown form, or kernels that it has no names for.
    """
    if form not in FORMS:
        raise UserError(f"form={form!r}: expected one of {', '.join(FORMS)}")
    for layer, half in _foreign(tree, parts, form):
        if form == "diffusers":
            yield f"{layer}.lora_A.weight", half["down"]
            yield f"{layer}.lora_B.weight", half["up"]
        else:
            yield f"{layer}.lora_down.weight", half["down"]
            yield f"{layer}.lora_up.weight", half["up"]
            yield f"{layer}.alpha", np.asarray(half.get("alpha", np.float32(half["down"].shape[0])))


def _foreign(tree, parts: tuple[Part, ...], form: str) -> Iterator[tuple[str, dict]]:
    """(layer as the form spells it, its down, up and alpha) of every kernel."""
    entries = by_kernel(tree)
    wanted = {"kohya-compvis": ("compvis", "hf")}.get(form, ("diffusers", "hf"))
    for part in parts:
        table = next((part.tables[name] for name in wanted if name in part.tables), ())
        spelled = _spelled_kohya(part.kohya[0]) if form != "diffusers" else lambda layer, part=part: f"{part.component}.{layer}"
        for place in table:
            if place.ours in entries:
                parted = lora_places.parted(entries.pop(place.ours), len(place.theirs))
                for i, half in parted.items():
                    yield spelled(place.theirs[i].removesuffix(".weight")), lora_places.theirs(place.layout, half)
    if entries:
        raise UserError(f"{form}: {len(entries)} kernels have no name there: {', '.join(list(entries)[:5])}")


def lora_metadata(tree, parts: tuple[Part, ...], form: str) -> dict[str, str]:
    """The header of a file of `write_lora`: in diffusers' layout it says ranks and alphas, as peft's LoraConfig takes them."""
    if form != "diffusers":
        return {"format": "pt"}
    said: dict[str, object] = {}
    found = {layer: (half["down"].shape[0], float(half.get("alpha", half["down"].shape[0]))) for layer, half in _foreign(tree, parts, form)}
    for component in dict.fromkeys(layer.partition(".")[0] for layer in found):
        mine = {layer.partition(".")[2]: value for layer, value in found.items() if layer.startswith(f"{component}.")}
        (rank, alpha), _ = Counter(mine.values()).most_common(1)[0]
        said |= {f"{component}.r": rank, f"{component}.lora_alpha": alpha, f"{component}.target_modules": sorted(mine),
                 f"{component}.rank_pattern": {layer: r for layer, (r, _) in mine.items() if r != rank},
                 f"{component}.alpha_pattern": {layer: a for layer, (_, a) in mine.items() if a != alpha}}
    return {"format": "pt", METADATA: json.dumps(said, indent=2, sort_keys=True)}
