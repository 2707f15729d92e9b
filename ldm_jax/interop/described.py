"""Descriptions made into modules and into the tensors that a file of them has; and a file in a sentence, for messages."""

import jax
import jax.numpy as jnp

from ldm_jax.core.errors import UserError
from ldm_jax.core.trees import paths
from ldm_jax.core.types import Condition
from ldm_jax.interop.description import Description
from ldm_jax.interop.first_stage_names import first_stage_places
from ldm_jax.interop.places import Place, check, prefixed
from ldm_jax.interop.prefixes import FIRST_STAGE, NETWORK
from ldm_jax.interop.structure import SeenNetwork, Shapes
from ldm_jax.interop.traits import Traits, traits_of_row
from ldm_jax.interop.unet_names import unet_places
from ldm_jax.models.autoencoder import Autoencoder
from ldm_jax.models.bottleneck import BOTTLENECKS
from ldm_jax.models.levels import LevelSpec, MiddleSpec
from ldm_jax.models.unet import UNet

LINEAR_PROJECTIONS = ("sd2", "sdxl")  # how the kinds begin that store proj_in and proj_out as linear layers


def unet_of(described: Description) -> UNet:
    """The network of a Description that has one."""
    section = {key: value for key, value in described.sections["network"].items() if key != "name"}
    levels = tuple(LevelSpec(**level) for level in section.pop("levels"))
    return UNet(levels, described.first_stage["latent_channels"], middle=MiddleSpec(**section.pop("middle")), **section)


def autoencoder_of(described: Description) -> Autoencoder:
    """The first stage of a Description."""
    section = {key: value for key, value in described.first_stage.items() if key not in ("name", "bottleneck")}
    bottleneck = dict(described.first_stage["bottleneck"])
    return Autoencoder(described.channels, described.resolution, bottleneck=BOTTLENECKS[bottleneck.pop("name")](**bottleneck), **section)


def unet_shapes(described: Description) -> dict[str, tuple[int, ...]]:
    """path -> shape of the network's parameters; nothing is computed."""
    net, traits = unet_of(described), traits_of_row(described)
    latent, side = traits["latent"], net.factor
    extra = latent + 1 if traits["extra"] == "masked" else traits["extra"]
    vector = net.time_width if net.vector == "added" else traits["vector_width"]
    condition = Condition(tokens=_array(1, 2, traits["tokens"]) if net.reads_tokens else None,
                          vector=_array(1, vector) if vector else None, image=_array(1, side, side, extra) if extra else None)
    return _flat(jax.eval_shape(net.init, jax.random.key(0), _array(1, side, side, latent), _array(1), condition))


def autoencoder_shapes(described: Description) -> dict[str, tuple[int, ...]]:
    """path -> shape of the first stage's parameters; nothing is computed."""
    module = autoencoder_of(described)
    return _flat(jax.eval_shape(module.init, jax.random.key(0), _array(1, module.factor, module.factor, described.channels)))


def _array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _flat(variables) -> dict[str, tuple[int, ...]]:
    return {path: tuple(leaf.shape) for path, leaf in paths(variables["params"])}


def single_file_places(described: Description) -> tuple[tuple[Place, ...], dict[str, tuple[int, ...]]]:
    """(the places of network and first stage in a CompVis single file, the shapes of ours)."""
    bare = not described.sections
    stage, ours = first_stage_places(autoencoder_of(described), "compvis"), autoencoder_shapes(described)
    if bare:
        return stage, ours
    ours = {f"first_stage/{path}": shape for path, shape in ours.items()}
    ours |= {f"network/{path}": shape for path, shape in unet_shapes(described).items()}
    proj = "linear" if described.kind.startswith(LINEAR_PROJECTIONS) else "conv"
    network = unet_places(unet_of(described), "compvis", proj, "text_time" if "network/vector_0/kernel" in ours else "")
    return (*prefixed(network, "network/", NETWORK), *prefixed(stage, "first_stage/", FIRST_STAGE)), ours


def single_file_shapes(described: Description) -> dict[str, tuple[int, ...]]:
    """name -> shape of network and first stage in a CompVis single file."""
    places, ours = single_file_places(described)
    return {name: shape for place in places for name, shape in place.shapes(ours[place.ours]).items()}


def misfit(described: Description, shapes: Shapes) -> str:
    """The first tensors of a file's network and first stage that a Description does not have, or has of another shape."""
    places, ours = single_file_places(described)
    own = (NETWORK, FIRST_STAGE) if described.sections else ("encoder.", "decoder.", "quant")
    try:
        check(places, ours, {name: shape for name, shape in shapes.items() if name.startswith(own)}, "")
    except UserError as error:
        return str(error).removeprefix(": ")
    return "its network and first stage have these tensors, its conditioner has others"


def looks_like(traits: Traits, net: SeenNetwork | None) -> str:
    """A file in words."""
    told = []
    if net is not None:
        attended = [f"{a} attention" if a == "plain" else f"{d} {a}s" for a, d in zip(traits["attended"], traits["depth"])]
        levels = ", ".join(f"{level['width']} ({word})" if level["attention"] != "none" else str(level["width"])
                           for level, word in zip(net.levels, attended))
        told.append(f"a U-Net of {net.channels[0]} -> {net.channels[1]} channels, levels of {levels}"
                    + f", tokens of {net.tokens}" * bool(net.tokens) + f", a vector of {net.vector}" * bool(net.vector)
                    + f", {net.labels} labels" * bool(net.labels))
    if traits["factor"]:
        codes = f"VQ of {traits['codes']} codes" if traits["codes"] else "KL"
        told.append(f"a {codes} autoencoder f{2 ** (traits['factor'] - 1)} with {traits['latent']} latent channels")
    if net is not None and traits["encoders"]:
        told.append(f"conditioners {', '.join(traits['encoders'])}")
    return "; ".join(told)
