"""The name tables of networks against the grammar of the published constructors, and against diffusers' own converters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.core.trees import paths
from ldm_jax.core.types import Condition
from ldm_jax.interop.first_stage_names import first_stage_places
from ldm_jax.interop.places import check, read, write
from ldm_jax.interop.unet_names import LABEL_TABLE, unet_options, unet_places
from ldm_jax.models.autoencoder import Autoencoder
from ldm_jax.models.bottleneck import KL, VectorQuantiser
from ldm_jax.models.levels import LevelSpec, MiddleSpec
from ldm_jax.models.unet import UNet
from ldm_jax.nn.attention import PlainAttention
from tests.interop import compvis_grammar as grammar
from tests.nn.parity import agree, random_like


def levels_of(*kinds, down="conv", blocks=2):
    """(width, attention, heads, depth) a level."""
    last = len(kinds) - 1
    return tuple(LevelSpec(kind[0], blocks, *kind[1:], down="none" if i == last else down) for i, kind in enumerate(kinds))


def upscaler_levels():
    return (LevelSpec(32, 1), LevelSpec(64, 1, "transformer", 4, cross_only=True), LevelSpec(64, 1, "transformer", 4, cross_only=True),
            LevelSpec(96, 1, "transformer", 4, down="none"))


# Small networks built as the published are: what the yaml says, ours, channels in, width of the tokens, of the vector.
UNETS = {
    "LDM, plain": (dict(channel_mult=(1, 2, 3), attention_resolutions=(2, 4)),
                   UNet(levels_of((32,), (64, "plain", 2), (96, "plain", 3)), 3, 128), 3, 0, 0),
    "LSUN churches": (dict(channel_mult=(1, 2, 2), attention_resolutions=(1, 2), resblock_updown=True, use_scale_shift_norm=True),
                      UNet(levels_of((32, "plain", 8), (64, "plain", 8), (64,), down="residual"), 3, 128, MiddleSpec("plain", 8),
                           scale_shift=True), 3, 0, 0),
    "inpainting": (dict(channel_mult=(1, 2), attention_resolutions=(2,), resblock_updown=True, num_res_blocks=1),
                   UNet(levels_of((32,), (64, "plain", 8), down="residual", blocks=1), 3, 128), 7, 0, 0),
    "semantic": (dict(channel_mult=(1, 4), attention_resolutions=(32, 16)),
                 UNet(levels_of((32,), (128,)), 3, 128, MiddleSpec("plain", 8)), 6, 0, 0),
    "SD 1": (dict(channel_mult=(1, 2, 2), attention_resolutions=(2, 1), context_dim=24),
             UNet(levels_of((32, "transformer", 8), (64, "transformer", 8), (64,)), 3, 128, MiddleSpec("transformer", 8)), 9, 24, 0),
    "SD 2": (dict(channel_mult=(1, 2), attention_resolutions=(1,), context_dim=40, use_linear=True),
             UNet(levels_of((32, "transformer", 2), (64,)), 3, 128, MiddleSpec("transformer", 4)), 4, 40, 0),
    "SDXL": (dict(channel_mult=(1, 2, 4), attention_resolutions=(4, 2), context_dim=40, use_linear=True, transformer_depth=(0, 1, 2),
                  num_res_blocks=1, adm_in_channels=28),
             UNet(levels_of((32,), (64, "transformer", 2, 1), (128, "transformer", 4, 2), blocks=1), 3, 128), 4, 40, 28),
    "upscaler": (dict(channel_mult=(1, 2, 2, 3), attention_resolutions=(2, 4, 8), context_dim=40, use_linear=True,
                      num_res_blocks=1, disable_self_attentions=(True, True, True, False)),
                 UNet(upscaler_levels(), 3, 128, vector="added"), 7, 40, 0),
}


def shapes_in(network, given, tokens, vector):
    def shape(*sizes):
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    condition = Condition(tokens=shape(1, 2, tokens) if tokens else None, vector=shape(1, vector) if vector else None)
    return jax.eval_shape(network.init, jax.random.key(0), shape(1, 8, 8, given), shape(1), condition)["params"]


@pytest.fixture(scope="module")
def unets():
    """Shapes by path of each of UNETS."""
    return {name: {path: leaf.shape for path, leaf in paths(shapes_in(*row[1:]))} for name, row in UNETS.items()}


@pytest.mark.parametrize("name", UNETS)
def test_names_of_a_unet_are_its_constructors(name, unets):
    """Mistake: a running number off by one, the upsampling's place beside attention, `op` for a residual block, the middle's

    attention forgotten, 1x1 convolutions for linear layers.
    """
    yaml, network = UNETS[name][:2]
    theirs = grammar.unet(32, in_channels=UNETS[name][2], out_channels=3, **yaml)
    check(unet_places(network, "compvis", **unet_options(theirs)), unets[name], theirs, name)


FIRST_STAGES = {
    "KL": (dict(ch_mult=(1, 2, 4), z_channels=4, embed_dim=4), dict(multipliers=(1, 2, 4), latent_channels=4, bottleneck=KL())),
    "KL, attention": (dict(ch_mult=(1, 1, 2), z_channels=3, embed_dim=3, attn_resolutions=(8,)),
                      dict(multipliers=(1, 1, 2), latent_channels=3, bottleneck=KL(), attention=(8,))),
    "VQ": (dict(ch_mult=(1, 2), z_channels=4, embed_dim=4, n_embed=16, attn_resolutions=(16,)),
           dict(multipliers=(1, 2), latent_channels=4, bottleneck=VectorQuantiser(16), attention=(16,))),
    "VQ, no attention": (dict(ch_mult=(1, 2), z_channels=4, embed_dim=4, n_embed=16, attn_type="none"),
                         dict(multipliers=(1, 2), latent_channels=4, bottleneck=VectorQuantiser(16), middle_attention=False)),
}


def autoencoder(**fields):
    model = Autoencoder(channels=3, resolution=32, width=32, blocks=2, **fields)
    return model, jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))["params"]


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_names_of_a_first_stage_are_its_constructors(name):
    """Mistake: the decoder's levels counted from the coarsest, the shortcut at the wrong end of a level, attention in another."""
    yaml, fields = FIRST_STAGES[name]
    model, shapes = autoencoder(**fields)
    theirs = grammar.first_stage(32, resolution=32, **yaml)
    check(first_stage_places(model, "compvis"), {path: leaf.shape for path, leaf in paths(shapes)}, theirs, name)


def same(ours, theirs):
    assert ours.keys() == theirs.keys(), sorted(ours.keys() ^ theirs.keys())[:5]
    for name, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[name], err_msg=name)


@pytest.mark.parametrize("name", ["SD 1", "SD 2", "SDXL", "upscaler"])
def test_the_two_forms_agree_with_diffusers_converter(name, unets):
    """Mistake: two tensors of one shape exchanged between the forms, which neither names nor shapes alone can show."""
    single_file = pytest.importorskip("diffusers.loaders.single_file_utils")
    network, rng = UNETS[name][1], np.random.default_rng(0)
    ours = {path: rng.standard_normal(shape).astype(np.float32) for path, shape in unets[name].items()}
    options = unet_options(grammar.unet(32, in_channels=4, out_channels=3, **UNETS[name][0]))
    compvis = dict(write(unet_places(network, "compvis", **options), ours))
    table = {LABEL_TABLE["compvis"]: rng.standard_normal((5, 128))} if network.vector == "added" else {}
    config = {"layers_per_block": network.levels[0].blocks,
              "addition_embed_type": options["vector"] or None, "num_class_embeds": 5 if table else None}
    theirs = single_file.convert_ldm_unet_checkpoint({f"model.diffusion_model.{k}": v for k, v in (compvis | table).items()}, config)
    np.testing.assert_array_equal(theirs.pop(LABEL_TABLE["diffusers"], 0), table.get(LABEL_TABLE["compvis"], 0))
    places = unet_places(network, "diffusers", **options)
    assert unet_options({key: leaf.shape for key, leaf in theirs.items()}) == options
    same(theirs, dict(write(places, ours)))
    same(dict(read(places, theirs)), ours)


def test_first_stages_of_the_two_forms_agree_with_diffusers_converter():
    """The same of a first stage; the converter knows attention in the middle only."""
    single_file = pytest.importorskip("diffusers.loaders.single_file_utils")
    model, shapes = autoencoder(**FIRST_STAGES["KL"][1])
    ours = dict(paths(random_like(shapes, 0)))
    compvis = {f"first_stage_model.{name}": leaf for name, leaf in write(first_stage_places(model, "compvis"), ours)}
    theirs = single_file.convert_ldm_vae_checkpoint(compvis, {"down_block_types": [""] * 3, "up_block_types": [""] * 3})
    same(theirs, dict(write(first_stage_places(model, "diffusers"), ours)))


def test_plain_attention_is_head_major_in_compvis_files():
    """Mistake: q, k, v first and heads inside, as ours are; a file read so has the right names, shapes and norms, and draws noise."""
    network, heads, width = UNet((LevelSpec(32, 1, "plain", 4, down="none"),), 3, 128), 4, 32
    rng = np.random.default_rng(1)
    x, qkv, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, 3, 2, width), (3 * width, width, 1), (3 * width,)))
    ours = {name: np.ones(width, np.float32) for name in ("norm/scale", "proj_out/bias")} | {"norm/bias": np.zeros(width, np.float32)}
    proj = ours["proj_out/kernel"] = rng.standard_normal((width, width)).astype(np.float32)
    file = {"middle_block.1.qkv.weight": qkv, "middle_block.1.qkv.bias": bias}
    places = [place for place in unet_places(network, "compvis") if place.ours.startswith("middle/attention_1/qkv")]
    ours |= {path.removeprefix("middle/attention_1/"): leaf for path, leaf in read(places, file)}
    tree = {part: {leaf: ours[f"{part}/{leaf}"] for leaf in leaves}
            for part, leaves in (("norm", ("scale", "bias")), ("qkv", ("kernel", "bias")), ("proj_out", ("kernel", "bias")))}
    told = PlainAttention(heads).apply({"params": tree}, x)
    flat = x.reshape(6, 8, 4)  # groups of four channels
    normal = ((flat - flat.mean((0, 2), keepdims=True)) / np.sqrt(flat.var((0, 2), keepdims=True) + 1e-5)).reshape(6, width)
    each = []
    for head in np.split(qkv[:, :, 0] @ normal.T + bias[:, None], heads):  # [3 x 8, positions] of one head
        q, k, v = np.split(head, 3)
        weights = np.exp(q.T @ k / np.sqrt(8.0))
        each.append(v @ (weights / weights.sum(1, keepdims=True)).T)
    agree("plain attention", told, x + (np.concatenate(each).T @ proj + 1.0).reshape(x.shape))


def test_what_a_form_cannot_hold_is_named():
    """Mistake: a middle without attention written under names that the published constructor gives to something else."""
    network = UNet((LevelSpec(32, 1, down="none"),), 3, 128)
    assert len(unet_places(network, "diffusers"))
    with pytest.raises(UserError, match="always has attention in the middle"):
        unet_places(network, "compvis")
    with pytest.raises(UserError, match="form='sgm': expected one of 'compvis', 'diffusers'"):
        unet_places(network, "sgm")
    with pytest.raises(UserError, match="proj='dense': expected one of 'conv', 'linear'"):
        unet_places(network, "diffusers", proj="dense")
    with pytest.raises(UserError, match="form='sgm'"):
        first_stage_places(autoencoder(**FIRST_STAGES["KL"][1])[0], "sgm")
