"""CLIP embeddings against transformers, live on random weights."""

import functools
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from ldm_jax.clip import load_clip  # noqa: E402
from ldm_jax.core.errors import UserError  # noqa: E402
from tests.data.vocabularies import clip_folder  # noqa: E402
from tests.nn.parity import agree, randomise, to_torch  # noqa: E402

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TALL = np.random.default_rng(0).integers(0, 256, (2, 40, 25, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """(their model, its folder with a vocabulary)."""
    folder = clip_folder(tmp_path_factory.mktemp("clip") / "clip")
    known = len(json.loads((folder / "vocab.json").read_text("utf-8")))
    layers = dict(num_hidden_layers=2, num_attention_heads=2, hidden_size=16, intermediate_size=64)
    text = dict(vocab_size=known, max_position_embeddings=8, bos_token_id=known - 2, eos_token_id=known - 1, pad_token_id=known - 1)
    config = transformers.CLIPConfig(text_config=layers | text, vision_config=layers | dict(image_size=12, patch_size=4),
                                     projection_dim=6)
    theirs = transformers.CLIPModel(config).eval()
    for i, part in enumerate((theirs.text_model, theirs.vision_model, theirs.text_projection, theirs.visual_projection)):
        randomise(part, seed=i)
    theirs.save_pretrained(folder)
    return theirs, folder


def test_embeddings_are_those_of_transformers(clip):
    """Mistake: the square stretched, the picture cropped before it is made small, no antialiasing, no unit length, texts padded or cut
    otherwise, one encoder's projection on the other.
    """
    theirs, folder = clip
    ours = load_clip(folder)
    resize = functools.partial(torch.nn.functional.interpolate, mode="bicubic", antialias=True, align_corners=False)
    pixels = resize(to_torch(TALL / np.float32(255)), (19, 12))
    pixels = (pixels[:, :, 3:15].clamp(0, 1) - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    texts = ["a red cat", "a dog: a dog, a cat and more"]
    with torch.no_grad():
        images = theirs.get_image_features(pixels).pooler_output
        agree("images", ours.images(TALL), images / images.norm(dim=-1, keepdim=True))
        ids = transformers.CLIPTokenizer.from_pretrained(folder)(texts, padding="max_length", max_length=8, truncation=True).input_ids
        told = theirs.get_text_features(torch.tensor(ids)).pooler_output
        agree("texts", ours.texts(texts), told / told.norm(dim=-1, keepdim=True))


def test_what_a_folder_lacks_is_told(clip, tmp_path):
    """Mistake: a text encoder loaded for images, a setting of another family overlooked, tensors left over in silence."""
    theirs, folder = clip
    transformers.CLIPVisionModelWithProjection(theirs.config.vision_config).save_pretrained(tmp_path / "half")
    half = load_clip(tmp_path / "half")
    with pytest.raises(UserError, match="no text encoder; it has vision"):
        half.texts(["a"])
    with pytest.raises(UserError, match="images"):
        half.images(TALL[..., :1])
    config = json.loads((folder / "config.json").read_text("utf-8"))
    for change, match in ((dict(architectures=["SiglipModel"]), "SiglipModel: expected the folder of CLIPModel"),
                          (dict(vision_config=config["vision_config"] | dict(intermediate_size=32)), "intermediate_size=32"),
                          (dict(vision_config=config["vision_config"] | dict(num_hidden_layers=1)), "is not of this architecture")):
        (folder / "config.json").write_text(json.dumps(config | change), "utf-8")
        with pytest.raises(UserError, match=match):
            load_clip(folder)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    (folder / "vocab.json").unlink()
    with pytest.raises(UserError, match="came without its tokenizer"):
        load_clip(folder).texts(["a"])
