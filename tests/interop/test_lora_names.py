"""LoRAs of a small SDXL in every layout: against torch's modules, and against diffusers' own converters, live."""

import json
import types

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from ldm_jax.core.errors import UserError  # noqa: E402
from ldm_jax.core.trees import paths  # noqa: E402
from ldm_jax.interop.lora_names import METADATA, lora_metadata, lora_parts, read_lora, write_lora  # noqa: E402
from ldm_jax.interop.places import prefixed, read  # noqa: E402
from ldm_jax.interop.text_names import clip_text_places  # noqa: E402
from ldm_jax.interop.unet_names import unet_places  # noqa: E402
from ldm_jax.models.condition import Unconditional  # noqa: E402
from ldm_jax.models.levels import LevelSpec, MiddleSpec  # noqa: E402
from ldm_jax.models.lora import by_kernel, nested  # noqa: E402
from ldm_jax.models.text_condition import ClipText, TwoClipText  # noqa: E402
from ldm_jax.models.unet import UNet  # noqa: E402
from tests.nn.parity import agree  # noqa: E402

NETWORK = UNet((LevelSpec(32, 2), LevelSpec(64, 2, "transformer", 2, 2, down="none")), 4, 128)
SMALL = dict(width=16, layers=2, heads=2, vocabulary=20, bos=18, eos=19, pad=19)
KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
CONDITIONER = TwoClipText(first=SMALL, second=SMALL | {"projection": 8})


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def parts():
    return lora_parts(NETWORK, CONDITIONER)


@pytest.fixture(scope="module")
def modules():
    """{component: {layer, as torch calls it: the shape of its weight}} of everything that multiplies."""
    unet = diffusers.UNet2DConditionModel(
        in_channels=4, out_channels=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), norm_num_groups=32,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), block_out_channels=(32, 64), layers_per_block=2, cross_attention_dim=24,
        attention_head_dim=2, transformer_layers_per_block=(1, 2), addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16)
    small = transformers.CLIPTextConfig(vocab_size=20, hidden_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                                        max_position_embeddings=77, projection_dim=8)
    texts = {"text_encoder": transformers.CLIPTextModel(small), "text_encoder_2": transformers.CLIPTextModelWithProjection(small)}
    found = {}
    for component, module in {"unet": unet, **texts}.items():
        layers = {name: tuple(layer.weight.shape) for name, layer in module.named_modules()
                  if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)}
        deep = component != "unet"  # files have "text_model." always, this version of transformers in one of the two
        found[component] = {name if not deep or name.startswith("text_") else f"text_model.{name}": shape for name, shape in layers.items()}
    return found


def difference(entry):
    """As models.lora.difference, which is tested beside it, without compiling a program for each shape."""
    down, up, rank = entry["down"].astype(np.float64), entry["up"].astype(np.float64), entry["down"].shape[-1]
    alpha = entry.get("alpha", np.float32(rank)) / rank
    return np.concatenate([a * d @ u for a, d, u in zip(alpha, down, up)], axis=1) if up.ndim == 3 else alpha * (down @ up)


def file_of(modules, layout, alphas=True):
    """A LoRA of every layer as a tool of torch's writes it: {layer: (down, up, alpha)} and {key: array}. Ranks differ."""
    made, tensors = {}, {}
    for component, layers in modules.items():
        for i, (layer, shape) in enumerate(layers.items()):
            rank, ones = 2 + 2 * (i % 5 == 1), (1,) * (len(shape) - 2)
            down, up = draw(rank, *shape[1:], seed=i), draw(shape[0], rank, *ones, seed=i)
            alpha = 3.0 + i % 2 if alphas else float(rank)
            made[component, layer] = (down, up, alpha)
            if layout == "kohya":
                key = KOHYA[component] + layer.replace(".", "_")
                tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
                tensors |= {f"{key}.alpha": np.asarray(alpha, np.float32)} if alphas else {}
            else:
                tensors |= {f"{component}.{layer}.lora_A.weight": down, f"{component}.{layer}.lora_B.weight": up}
                tensors |= {f"{component}.{layer}.alpha": np.asarray(alpha, np.float32)} if alphas else {}
    return made, tensors


def deltas(made):
    """{our kernel path: what torch adds to the weight, in our layout}."""
    names = {"unet": "", "text_encoder": "", "text_encoder_2": ""}
    places = {"unet": prefixed(unet_places(NETWORK, "diffusers", vector="text_time"), "network/")}
    for i, component in enumerate(("text_encoder", "text_encoder_2")):
        places[component] = prefixed(clip_text_places(CONDITIONER.encoders()[f"encoder_{i + 1}"], "hf"), f"conditioner/encoder_{i + 1}/")
    wanted = {}
    for component in names:
        weights = {}
        for (owner, layer), (down, up, alpha) in made.items():
            if owner == component:
                product = up.reshape(up.shape[:2]) @ down.reshape(down.shape[0], -1)
                weights[f"{layer}.weight"] = alpha / down.shape[0] * product.reshape(up.shape[0], *down.shape[1:])
        kernels = [place for place in places[component] if place.theirs[0] in weights]
        assert sum(len(place.theirs) for place in kernels) == len(weights)
        wanted |= dict(read(kernels, weights))
    return wanted


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_a_lora_of_every_layer_changes_the_kernels_as_torchs_does(layout, modules, parts):
    """Mistakes: a layer under another's name, q, k and v of one kernel exchanged, up and down exchanged, alpha without the rank or of
    another layer, a convolution's positions turned, a text encoder taken for the other."""
    made, tensors = file_of(modules, layout)
    found, wanted = by_kernel(read_lora(tensors, parts, "file")), deltas(made)
    assert found.keys() == wanted.keys()
    for path, entry in found.items():
        agree(path, difference(entry), wanted[path], 1e-6)


@pytest.mark.parametrize("form", ["kohya", "kohya-compvis", "diffusers"])
def test_what_is_written_is_read_again_bit_for_bit(form, modules, parts):
    """Mistakes: a key that is not written, an alpha that is folded, ones or blocks misplaced; a rank made equal that stays so."""
    tensors = {name: leaf.astype(np.float16) if "alpha" not in name else leaf for name, leaf in file_of(modules, "kohya")[1].items()}
    tree = read_lora(tensors, parts, "file")
    written = dict(write_lora(tree, parts, form))
    again = read_lora(written, parts, "again", lora_metadata(tree, parts, form))
    for (path, one), (other, two) in zip(paths(tree), paths(again), strict=True):
        assert path == other and np.asarray(one).dtype == np.asarray(two).dtype and np.array_equal(one, two), path
    if form == "kohya":
        assert written.keys() == tensors.keys()
        equal = [name for name, leaf in written.items() if leaf.shape == tensors[name].shape and np.array_equal(leaf, tensors[name])]
        assert len(equal) > 0.9 * len(tensors)  # all but the parts of a kernel whose ranks differ


@pytest.mark.parametrize("form", ["kohya", "kohya-compvis"])
def test_diffusers_converters_make_of_ours_what_we_write_for_diffusers(form, modules, parts):
    """Mistakes: CompVis' lists counted wrongly, a layer that no other tool would find; and the older names that the converters give,
    of attention processors, read as other layers."""
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers, _maybe_map_sgm_blocks_to_diffusers
    from diffusers.utils.state_dict_utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft

    unet = {layer: shape for layer, shape in modules["unet"].items() if form == "kohya-compvis" or "add_embedding" not in layer}
    tree = read_lora(file_of(modules | {"unet": unet}, "kohya", alphas=False)[1], parts, "file")  # theirs know add_embedding in one form
    ours = {name: leaf for name, leaf in write_lora(tree, parts, form) if not name.endswith(".alpha")}
    given = {name: torch.from_numpy(leaf.copy()) for name, leaf in ours.items()}
    if form == "kohya-compvis":
        given = _maybe_map_sgm_blocks_to_diffusers(given, types.SimpleNamespace(layers_per_block=2))
    old, _ = _convert_non_diffusers_lora_to_diffusers(given)
    modern = convert_unet_state_dict_to_peft({name: leaf for name, leaf in old.items() if name.startswith("unet.")})
    for component in ("text_encoder", "text_encoder_2"):
        modern |= convert_state_dict_to_peft({name: leaf for name, leaf in old.items() if name.startswith(f"{component}.")})
    for theirs, name in (("down", "A"), ("up", "B")):  # which this converter leaves as it was
        modern[f"text_encoder_2.text_projection.lora_{name}.weight"] = modern.pop(f"text_encoder_2.text_projection.lora.{theirs}.weight")
    written = dict(write_lora(tree, parts, "diffusers"))
    assert written.keys() == modern.keys()
    for name in modern:
        np.testing.assert_array_equal(modern[name].numpy(), written[name], err_msg=name)
    again = read_lora({name: leaf.numpy() for name, leaf in old.items()}, parts, "the converter's")
    for (path, one), (other, two) in zip(paths(tree), paths(again)):
        if not path.endswith("alpha"):
            assert path == other and np.array_equal(one, two), path


def test_plain_attention_takes_three_loras_or_one():
    """Mistakes: q's LoRA added to k; a part without a LoRA that is refused, or that gets another's; CompVis' fused qkv read without its
    heads, or written as if the parts shared their down."""
    network, path = UNet((LevelSpec(32, 1, "plain", 4, down="none"),), 3, 128), "network/middle/attention_1/qkv/kernel"
    parts = lora_parts(network, Unconditional())
    layer = "unet.mid_block.attentions.0.to_"
    shapes = {"A": (2, 32), "B": (32, 2)}
    file = {f"{layer}{part}.lora_{half}.weight": draw(*shapes[half], seed=ord(part)) for part in "qv" for half in "AB"}
    tree = read_lora(file, parts, "file")
    q, v = (file[f"{layer}{part}.lora_B.weight"] @ file[f"{layer}{part}.lora_A.weight"] for part in "qv")
    wanted = np.concatenate([q.T, np.zeros((32, 32)), v.T], axis=1)
    agree("three", difference(by_kernel(tree)[path]), wanted, 1e-6)
    assert dict(write_lora(tree, parts, "diffusers")).keys() == file.keys()
    fused = dict(write_lora(tree, parts, "kohya-compvis"))
    key = "lora_unet_middle_block_1_qkv"
    down, up, alpha = (fused[f"{key}.{name}"] for name in ("lora_down.weight", "lora_up.weight", "alpha"))
    assert down.shape == (6, 32, 1) and up.shape == (96, 6, 1)
    head_major = (alpha / 6 * up[..., 0] @ down[..., 0]).reshape(4, 3, 8, 32).transpose(1, 0, 2, 3).reshape(96, 32)
    agree("fused", head_major, wanted.T, 1e-6)
    agree("fused, read", difference(by_kernel(read_lora(fused, parts, "fused"))[path]), wanted, 1e-6)
    one = nested({path: {"down": draw(32, 2), "up": draw(2, 96)}})
    agree("one, parted", difference(by_kernel(read_lora(dict(write_lora(one, parts, "diffusers")), parts, "parted"))[path]),
          difference(by_kernel(one)[path]), 1e-6)


LAYER = "lora_unet_conv_in"
GOOD = {f"{LAYER}.lora_down.weight": draw(2, 4, 3, 3), f"{LAYER}.lora_up.weight": draw(32, 2, 1, 1)}
HALF = {f"{LAYER}.lora_down.weight": draw(2, 4, 3, 3)}


@pytest.mark.parametrize("tensors, told", [
    (GOOD | {f"{LAYER}.dora_scale": draw(32)}, "is of DoRA"), ({f"{LAYER}.hada_w1_a": draw(2, 2)}, "is of LoHa"),
    ({f"{LAYER}.lokr_w1": draw(2, 2)}, "is of LoKr"), (GOOD | {f"{LAYER}.lora_mid.weight": draw(2, 2)}, "LoCon"),
    (GOOD | {"lora_unet_down_blocks_9_resnets_0_conv1.alpha": draw()}, r"1 of 3 keys have no place in this model: lora_unet_down_blocks_9"),
    (GOOD | {"lora_te3_text_projection.alpha": draw()}, "1 of 3 keys"), (GOOD | {"step": draw(1)}, "1 of 3 keys"),
    (HALF, "has down; expected"),
    (GOOD | {"unet.conv_in.lora_A.weight": draw(2, 4, 3, 3), "unet.conv_in.lora_B.weight": draw(32, 2, 1, 1)}, "is there twice"),
    (HALF | {f"{LAYER}.lora_up.weight": draw(32, 3, 1, 1)}, r"down \[2, 4, 3, 3\], up \[32, 3, 1, 1\] do not go together"),
    (HALF | {f"{LAYER}.lora_up.weight": draw(32, 2, 3, 3)}, "do not go together"), ({}, "holds no LoRA"),
])
def test_what_is_no_lora_of_this_model_is_named(tensors, told, parts):
    """Mistakes: a DoRA whose magnitudes are left out in silence; a key that nothing reads; half a LoRA; the same layer twice."""
    with pytest.raises(UserError, match=told):
        read_lora(tensors, parts, "file")


def test_a_header_says_alpha(parts):
    """Mistakes: the header's alpha left out (peft then scales by alpha / r, we by 1), a pattern's for another layer, rank-stabilised
    scales (alpha / sqrt r) taken for plain ones, a DoRA that only the header tells."""
    file = {f"unet.{layer}.lora_{half}.weight": draw(*shape) for layer, wide in (("conv_in", (4, 3, 3)), ("time_embedding.linear_1", (32,)))
            for half, shape in (("A", (4, *wide)), ("B", (32 if layer == "conv_in" else 128, 4)))}
    file["unet.conv_in.lora_B.weight"] = draw(32, 4, 1, 1)
    said = {"unet.lora_alpha": 8, "unet.alpha_pattern": {"linear_1": 2.0}}

    def alphas(**more):
        tree = by_kernel(read_lora(file, parts, "file", {METADATA: json.dumps(said | {f"unet.{k}": v for k, v in more.items()})}))
        return [float(tree[f"network/{path}/kernel"]["alpha"]) for path in ("conv_in", "time_0")]

    assert alphas() == [8, 2] and alphas(use_rslora=True) == [16, 4]
    with pytest.raises(UserError, match="DoRA"):
        alphas(use_dora=True)
    with pytest.raises(UserError, match="not JSON"):
        read_lora(file, parts, "file", {METADATA: "{"})


def test_one_text_encoder_has_its_own_prefix():
    """Mistakes: SD's single encoder written as SDXL's first, or the refiner's, SDXL's second, as a first."""
    for vector, component, prefix in (("none", "text_encoder", "lora_te_"), ("pooled", "text_encoder_2", "lora_te2_")):
        part = lora_parts(NETWORK, ClipText(**SMALL, vector=vector))[1]
        assert part.component == component and part.kohya[0] == prefix


def test_published_trainers_count_as_many_layers():
    """Mistake: a family of layers without names. Their logs say, of SDXL: 722 in the U-Net's transformers, 788 with its convolutions
    (LyCORIS), 72 and 192 in the text encoders; of SD 1: 192."""
    sd1 = UNet((*(LevelSpec(width, 2, "transformer", 8) for width in (320, 640, 1280)), LevelSpec(1280, 2, down="none")), 4, 1280,
               MiddleSpec("transformer", 8))
    sdxl = UNet((LevelSpec(320, 2), LevelSpec(640, 2, "transformer", 10, 2), LevelSpec(1280, 2, "transformer", 20, 10, down="none")),
                4, 1280)
    texts = TwoClipText(first={}, second=dict(width=1280, layers=32, heads=20, projection=1280))
    layers = {part.component: [name for place in part.tables.get("diffusers", part.tables.get("hf")) for name in place.theirs]
              for part in lora_parts(sdxl, texts, "linear")}
    assert sum(".attentions." in name for name in layers["unet"]) == 722
    assert sum("blocks." in name or "mid_block." in name for name in layers["unet"]) == 788
    assert [sum(".layers." in name for name in layers[part]) for part in ("text_encoder", "text_encoder_2")] == [72, 192]
    assert sum(".attentions." in name for place in lora_parts(sd1, Unconditional())[0].tables["diffusers"] for name in place.theirs) == 192
