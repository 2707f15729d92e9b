"""Images and texts as CLIP embeddings, of a run of task "embedding" or of a local folder of transformers.

    clip = ldm.load_clip("clip-vit-base-patch32")
    model.sample(model.condition(embeddings=clip.images(neighbours)[None]), seeds=[0])
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import choices
from ldm_jax import experiment as ex
from ldm_jax.checkpoint.bundle import PAGE, STEPS
from ldm_jax.config_tree import from_json
from ldm_jax.core.errors import UserError
from ldm_jax.core.shapes import expect
from ldm_jax.core.trees import content_digest, nested, paths
from ldm_jax.data.prompts import encode_prompts
from ldm_jax.data.tokenizers import Tokenizer, load_tokenizer
from ldm_jax.interop import mapped
from ldm_jax.interop.diffusers_texts import read_clip
from ldm_jax.interop.folder_reader import read_folder
from ldm_jax.interop.places import check, read
from ldm_jax.interop.text_names import clip_text_places, clip_vision_places
from ldm_jax.loading import Opened
from ldm_jax.models.image_encoder import ClipImageEncoder, VisionSpec, fitted
from ldm_jax.models.text_encoder import ClipSpec, ClipTextEncoder
from ldm_jax.ops.images import from_uint8
from ldm_jax.tokenized import open_tokenizers
from ldm_jax.train.report import say
from ldm_jax.train.sharding import make_mesh

PLACES = {"text": "text_encoder", "vision": "image_encoder"}  # of our own embedders' parameters
PART = 64  # images or texts at a time
KINDS = {"CLIPModel": ("text", "vision"), "CLIPVisionModelWithProjection": ("vision",), "CLIPTextModelWithProjection": ("text",)}
OF_TEXT, OF_IMAGES = ("text_model.*", "text_projection.*"), ("vision_model.*", "visual_projection.*")


@dataclasses.dataclass(frozen=True)
class Clip:
    """encoders: "text" and "vision", or one of them, each (module, parameters); tokenizer: of the texts, where the folder has one.

    digest: of the parameters; databases of embeddings say it.
    """

    encoders: Mapping[str, tuple[Any, Any]]
    tokenizer: Any = None
    digest: str = ""

    @property
    def width(self) -> int:
        """Numbers in an embedding."""
        spec = next(iter(self.encoders.values()))[0].spec
        return spec.projection or spec.width

    def images(self, images) -> np.ndarray:
        """Embeddings float32 [N, D] of length 1 of images [N, H, W, 3], uint8 or float in [-1, 1]: the middle square is seen.

        Raises:
          UserError: other shapes, a CLIP of texts only.
        """
        images = np.asarray(images)
        expect("images", images, "N H W C", C=3)
        images = from_uint8(images) if images.dtype == np.uint8 else images
        return self._embedded("vision", images.astype(np.float32))

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings float32 [N, D] of length 1 of texts, each cut to one window; what was cut is told on stderr.

        Raises:
          UserError: no list of texts, a CLIP of images only, or one without its tokenizer.
        """
        encoder, _ = self._encoder("text")
        if self.tokenizer is None:
            raise UserError("texts: this CLIP came without its tokenizer; its folder lacks vocab.json with merges.txt, or tokenizer.json")
        tokenizer = dataclasses.replace(self.tokenizer, length=encoder.spec.length)
        ids, _, lost = encode_prompts(tokenizer, texts, weighted=False)
        for text, end in zip(texts, lost):
            if end:
                say(f"text {text[:40]!r}: too long for the embedder, this was left out: {end!r}")
        return self._embedded("text", ids[:, 0])

    def _encoder(self, name: str) -> tuple[Any, Any]:
        if name not in self.encoders:
            raise UserError(f"this CLIP has no {name} encoder; it has {', '.join(self.encoders)}")
        return self.encoders[name]

    def _embedded(self, name: str, inputs: np.ndarray) -> np.ndarray:
        encoder, params = self._encoder(name)
        return np.concatenate([np.asarray(_unit(encoder, params, inputs[i:i + PART])) for i in range(0, max(len(inputs), 1), PART)])


@functools.partial(jax.jit, static_argnums=0)
def _unit(encoder, params, inputs):
    inputs = fitted(inputs, encoder.spec.side) if inputs.ndim == 4 else inputs
    pooled = encoder.apply({"params": params}, inputs).pooled
    return pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True)


def load_clip(folder, weights: str = "ema") -> Clip:
    """The embedder of a run of task "embedding", a step or a bundle of it; or of a folder of transformers.

    The latter with config.json, weights and vocabulary files, of a CLIPModel or of its image or text half with projection. weights: "ema"
    or "raw", of a run.

    Raises:
      UserError: another task or class, a setting that our encoders have not, tensors that do not fit, damaged files.
    """
    path = pathlib.Path(folder)
    if not path.exists():
        raise UserError(f"{folder} does not exist: expected a run of task embedding, or a folder of transformers with a CLIP")
    if (path / "checkpoints").is_dir() or (path / PAGE).is_file() or path.parent.name == STEPS:
        return _trained(folder, weights)
    part = read_folder(folder).components.get("")
    kind = "" if part is None else (part.config.get("architectures") or [""])[0]
    if kind not in KINDS:
        raise UserError(f"{folder}: {kind or 'no CLIP'}: expected the folder of {', '.join(KINDS)}")
    made = {name: (_text if name == "text" else _vision)(part.config, kind) for name in KINDS[kind]}
    encoders = {}
    for name, (encoder, places, example, others) in made.items():
        shapes = dict(paths(jax.eval_shape(lambda e=encoder, x=example: e.init(jax.random.key(0), x))["params"]))
        ignorable = ("logit_scale", *others) if len(made) > 1 else ("logit_scale",)
        check(places, {path: leaf.shape for path, leaf in shapes.items()}, mapped.shapes(part.tensors), str(folder), ignorable)
        params = nested({path: jnp.asarray(array, jnp.float32) for path, array in read(places, part.tensors)})
        encoders[name] = encoder, params
    return Clip(encoders, _tokenizer(part.folder) if "text" in encoders else None,
                content_digest({name: jax.device_get(params) for name, (_, params) in encoders.items()}))


def _trained(folder, weights: str) -> Clip:
    opened = Opened(folder)
    if opened.manifest.task != "embedding":
        raise UserError(f"{folder}: expected a model of task embedding, or a CLIP of transformers; this one is of task "
                        f"{opened.manifest.task}")
    config = from_json(opened.manifest.config)
    experiment = ex.build(config, choices.Facts(**config.pop("facts")))
    params = opened.params(weights, ex.parameter_shapes(experiment), make_mesh())["network"]
    encoders = {name: (experiment.network.encoders()[place], params[place]) for name, place in PLACES.items()}
    tokenizers = open_tokenizers(experiment.conditioner, opened.tokenizers) if opened.tokenizers else (None,)
    return Clip(encoders, tokenizers[0], content_digest(jax.device_get(params)))


def _text(config: Mapping, kind: str):
    told = {**config.get("text_config", {}), "projection_dim": config.get("projection_dim", 512)} if kind == "CLIPModel" else config
    spec = read_clip({**told, "architectures": ["CLIPTextModelWithProjection"]}, {})
    encoder = ClipTextEncoder(ClipSpec(**spec))
    return encoder, clip_text_places(encoder, "hf"), np.zeros((1, 3), np.int32), OF_IMAGES


def _vision(config: Mapping, kind: str):
    told = {**config.get("vision_config", {}), "projection_dim": config.get("projection_dim", 512)} if kind == "CLIPModel" else config
    width = told.get("hidden_size", 768)
    fixed = {"intermediate_size": (told.get("intermediate_size", 3072), 4 * width), "num_channels": (told.get("num_channels", 3), 3),
             "layer_norm_eps": (told.get("layer_norm_eps", 1e-5), 1e-5)}
    wrong = [f"{name}={found} (expected {wanted})" for name, (found, wanted) in fixed.items() if found != wanted]
    if wrong:
        raise UserError(f"image encoder: {', '.join(wrong)}: not of CLIP's form")
    encoder = ClipImageEncoder(VisionSpec(width, told.get("num_hidden_layers", 12), told.get("num_attention_heads", 12),
                                          told.get("hidden_act", "quick_gelu"), told.get("projection_dim", 512),
                                          told.get("image_size", 224), told.get("patch_size", 32)))
    return encoder, clip_vision_places(encoder, "hf"), np.zeros((1, encoder.spec.side, encoder.spec.side, 3), np.float32), OF_TEXT


def _tokenizer(folder: pathlib.Path) -> Tokenizer | None:
    there = any((folder / name).exists() for name in ("vocab.json", "tokenizer.json"))
    return load_tokenizer(folder, "clip") if there else None
