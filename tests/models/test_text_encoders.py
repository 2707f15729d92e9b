"""Text and image encoders against transformers, diffusers and restatements, live on the same random weights.

The weights go through the name tables: strictly compared, read, and written back bit for bit.
"""

import functools

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("diffusers")

from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint  # noqa: E402
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel  # noqa: E402
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD  # noqa: E402

from ldm_jax.core.errors import UserError  # noqa: E402
from ldm_jax.core.trees import paths  # noqa: E402
from ldm_jax.interop.places import check, read, write  # noqa: E402
from ldm_jax.interop.text_names import bert_places, clip_text_places, clip_vision_places  # noqa: E402
from ldm_jax.models.bert_text import BertSpec, BertTextEncoder  # noqa: E402
from ldm_jax.models.image_encoder import ClipImageEncoder, VisionSpec  # noqa: E402
from ldm_jax.models.text_encoder import ClipSpec, ClipTextEncoder  # noqa: E402
from tests.models import text_peers  # noqa: E402
from tests.nn.parity import agree, randomise, to_torch  # noqa: E402

WIDTH, HEADS, LAYERS, IDS, LENGTH = 32, 4, 3, 40, 9
TEXT = np.int32([[38, 5, 7, 39, 39, 39, 39, 39, 39], [38, 1, 2, 3, 4, 5, 6, 7, 39]])  # bos 38, eos 39
PADDED = np.int32([[38, 5, 7, 39, 0, 0, 0, 0, 0], [38, 1, 2, 3, 4, 5, 6, 7, 39]])
SPEC = ClipSpec(WIDTH, LAYERS, HEADS, vocabulary=IDS, length=LENGTH, bos=38, eos=39, pad=39)
OPEN = ClipSpec(WIDTH, LAYERS, HEADS, "gelu", 24, IDS, LENGTH, 38, 39, 0, skip=1)


def nested(flat) -> dict:
    tree: dict = {}
    for path, value in flat:
        *stem, leaf = path.split("/")
        functools.reduce(lambda at, key: at.setdefault(key, {}), stem, tree)[leaf] = value
    return tree


def loaded(encoder, example, places, theirs):
    """Our parameters of a torch module, strictly; what is written back is what was read."""
    tensors = {name: value.detach().numpy() for name, value in theirs.state_dict().items()}
    shapes = jax.eval_shape(lambda: encoder.init(jax.random.key(0), example))["params"]
    check(places, {path: leaf.shape for path, leaf in paths(shapes)}, {name: value.shape for name, value in tensors.items()}, "peer")
    params = nested(read(places, tensors))
    back = dict(write(places, dict(paths(params))))
    assert back.keys() == tensors.keys() and all(np.array_equal(back[name], tensors[name]) for name in tensors)
    return {"params": params}


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip_text_of_transformers(activation):
    """Mistake: the tanh GELU or quick-GELU for the other, no causal mask, q and k exchanged, the text's end at the wrong
    place, the pooled vector before the norm or the projection not transposed, "text_model." where there is none.
    """
    config = transformers.CLIPTextConfig(vocab_size=IDS, hidden_size=WIDTH, intermediate_size=4 * WIDTH, projection_dim=24,
                                         num_hidden_layers=LAYERS, num_attention_heads=HEADS, max_position_embeddings=LENGTH,
                                         hidden_act=activation, bos_token_id=38, eos_token_id=39, pad_token_id=39)
    projected = activation == "gelu"
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    theirs = randomise(kind(config), seed=1)
    spec = ClipSpec(WIDTH, LAYERS, HEADS, activation, 24 * projected, IDS, LENGTH, 38, 39, 39, skip=1, final_norm=False)
    encoder = ClipTextEncoder(spec)
    ours = jax.jit(encoder.apply)(loaded(encoder, TEXT, clip_text_places(encoder, "hf", flat=not projected), theirs), TEXT)
    with torch.no_grad():
        out = theirs(torch.from_numpy(TEXT).long(), output_hidden_states=True)
    agree("last", ours.last, out.last_hidden_state, of=theirs)
    agree("penultimate", ours.tokens, out.hidden_states[-2])
    agree("pooled", ours.pooled, out.text_embeds if projected else out.pooler_output, of=theirs)


def test_open_clip_text():
    """Mistake: thirds of in_proj in another order, the projection transposed, the penultimate layer without the last norm or
    counted from the other end, a text's end among zeros of padding.
    """
    theirs = randomise(text_peers.OpenClipText(WIDTH, HEADS, LAYERS, IDS, LENGTH, 24), seed=2)
    encoder = ClipTextEncoder(OPEN)
    params = loaded(encoder, PADDED, clip_text_places(encoder, "openclip"), theirs)
    ours = jax.jit(encoder.apply)(params, PADDED)
    with torch.no_grad():
        states, pooled = theirs(torch.from_numpy(PADDED).long())
        agree("penultimate", ours.tokens, theirs.ln_final(states[-2]), of=theirs)
    agree("pooled", ours.pooled, pooled)
    agree("hidden", np.stack(ours.hidden), torch.stack(states), of=theirs)


def test_open_clip_names_are_those_that_diffusers_converts():
    """Mistake: a name of the OpenCLIP layout that only our restatement has."""
    theirs = randomise(text_peers.OpenClipText(WIDTH, HEADS, LAYERS, IDS, LENGTH, WIDTH), seed=3)
    encoder = ClipTextEncoder(ClipSpec(WIDTH, LAYERS, HEADS, "gelu", WIDTH, IDS, LENGTH, 38, 39, 0))
    params = loaded(encoder, TEXT, clip_text_places(encoder, "openclip"), theirs)["params"]
    converted = convert_open_clip_checkpoint(None, {f"x.{name}": value for name, value in theirs.state_dict().items()}, "x.")
    again = nested(read(clip_text_places(encoder, "hf"), {name: value.detach().numpy() for name, value in converted.items()}))
    assert all(np.array_equal(a, dict(paths(again))[path]) for path, a in paths(params))


@pytest.mark.parametrize("form", ["x_transformers", "ldmbert"])
def test_bert_text(form):
    """Mistake: a causal mask, an inner width bound to the model's, a bias on q, k, v, the two norms of a layer exchanged."""
    encoder = BertTextEncoder(BertSpec(WIDTH, 2, 3, 8, IDS, LENGTH, 38, 39, 0))
    if form == "ldmbert":
        theirs = LDMBertModel(LDMBertConfig(vocab_size=IDS, max_position_embeddings=LENGTH, encoder_layers=2, d_model=WIDTH,
                                            encoder_ffn_dim=4 * WIDTH, encoder_attention_heads=3, head_dim=8))
        theirs.config.return_dict = True
    else:
        theirs = text_peers.XTransformer(WIDTH, 2, 3, 8, IDS, LENGTH)
    randomise(theirs, seed=4)
    ours = jax.jit(encoder.apply)(loaded(encoder, PADDED, bert_places(encoder, form), theirs), PADDED)
    with torch.no_grad():
        out = theirs(torch.from_numpy(PADDED).long())
    agree(form, ours, out[0] if form == "ldmbert" else out, of=theirs)


@pytest.mark.parametrize("form", ["hf", "openclip"])
def test_clip_image(form):
    """Mistake: pixels not normalised as CLIP's, patches in another order, the class token last, the first norm left out."""
    spec = VisionSpec(WIDTH, 2, HEADS, "quick_gelu" if form == "hf" else "gelu", 24, 12, 4)
    if form == "hf":
        theirs = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(
            hidden_size=WIDTH, intermediate_size=4 * WIDTH, projection_dim=24, num_hidden_layers=2, num_attention_heads=HEADS,
            image_size=12, patch_size=4, hidden_act="quick_gelu"))
        prefix = ""
    else:
        theirs, prefix = torch.nn.Module(), "visual."
        theirs.visual = text_peers.OpenClipVisual(WIDTH, HEADS, 2, 12, 4, 24)
    randomise(theirs, seed=5)
    encoder = ClipImageEncoder(spec)
    image = np.random.default_rng(0).uniform(-1, 1, (2, 12, 12, 3)).astype(np.float32)
    params = loaded(encoder, image, clip_vision_places(encoder, form), theirs)
    ours = jax.jit(encoder.apply)(params, image)
    pixels = to_torch((image / 2 + 0.5 - np.float32(OPENAI_CLIP_MEAN)) / np.float32(OPENAI_CLIP_STD))
    with torch.no_grad():
        agree("pooled", ours.pooled, theirs(pixels).image_embeds if not prefix else theirs.visual(pixels), of=theirs)
        if form == "hf":
            agree("tokens", ours.tokens, theirs.vision_model(pixels).last_hidden_state, of=theirs)
    with pytest.raises(UserError, match=r"reads \[B, 12, 12, 3\]"):
        encoder.apply(params, image[:, :8])
