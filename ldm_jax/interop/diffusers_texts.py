"""config.json of text encoders, transformers' CLIP and diffusers' LDMBert, and the numbers of ours, both ways."""

from collections.abc import Mapping
from typing import Any

from ldm_jax.core.errors import UserError
from ldm_jax.interop.diffusers_keys import BERT, CLIP, check_keys

OLD_END = 2  # an eos_token_id of old configs: the text ends at its largest id


def read_clip(config: Mapping[str, Any], tokenizer: Mapping[str, Any], skip: int = 0, final_norm: bool = True) -> dict:
    """A CLIPTextModel's or CLIPTextModelWithProjection's numbers, as `clip_text` takes them.

    Args:
      tokenizer: its tokenizer_config.json, for what fills a window; {} to guess by the activation.
      skip, final_norm: the hidden state that the pipeline takes.

    Raises:
      UserError: another class, or a setting that our encoder has not.
    """
    check_keys(config, CLIP, "text encoder")
    kind = _class(config)
    if kind not in ("CLIPTextModel", "CLIPTextModelWithProjection"):
        raise UserError(f"text encoder {kind}: expected CLIPTextModel or CLIPTextModelWithProjection")
    width, activation = config.get("hidden_size", 512), config.get("hidden_act", "quick_gelu")
    if config.get("intermediate_size", 2048) != 4 * width or config.get("layer_norm_eps", 1e-5) != 1e-5:
        raise UserError(f"text encoder: intermediate_size={config.get('intermediate_size', 2048)}, layer_norm_eps="
                        f"{config.get('layer_norm_eps', 1e-5)}: expected {4 * width} (4 hidden_size) and 1e-5")
    if activation not in ("quick_gelu", "gelu"):
        raise UserError(f"text encoder: hidden_act={activation!r}: expected quick_gelu or gelu")
    vocabulary, end = config.get("vocab_size", 49408), config.get("eos_token_id", OLD_END)
    end = vocabulary - 1 if end == OLD_END or end is None or end >= vocabulary else end
    begin = config.get("bos_token_id")
    begin = begin if begin and begin < vocabulary and begin != end and config.get("eos_token_id") != OLD_END else vocabulary - 2
    fills = _token(tokenizer.get("pad_token"))
    pad = (0 if fills == "!" else end) if fills else (end if activation == "quick_gelu" else 0)
    return dict(width=width, layers=config.get("num_hidden_layers", 12), heads=config.get("num_attention_heads", 8), activation=activation,
                projection=config.get("projection_dim", 512) if kind.endswith("Projection") else 0, vocabulary=vocabulary,
                length=config.get("max_position_embeddings", 77), bos=begin, eos=end, pad=pad, skip=skip, final_norm=final_norm)


def write_clip(spec: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of an encoder; one with a projection is a CLIPTextModelWithProjection."""
    kind = "CLIPTextModelWithProjection" if spec["projection"] else "CLIPTextModel"
    return dict(architectures=[kind], model_type="clip_text_model", hidden_size=spec["width"], intermediate_size=4 * spec["width"],
                num_hidden_layers=spec["layers"], num_attention_heads=spec["heads"], hidden_act=spec["activation"], layer_norm_eps=1e-5,
                projection_dim=spec["projection"] or spec["width"], vocab_size=spec["vocabulary"], max_position_embeddings=spec["length"],
                bos_token_id=spec["bos"], eos_token_id=spec["eos"], pad_token_id=spec["pad"])


def last_told(spec: Mapping[str, Any]) -> dict:
    """The encoder of which stock pipelines of one text encoder take the last layer: without the layers that are not told, and without
    a projection, which they do not use.

    Raises:
      UserError: tokens without the final norm, which these pipelines always apply.
    """
    if not spec["final_norm"]:
        raise UserError("config.conditioner.final_norm=False: diffusers' pipelines of one text encoder apply the final norm")
    return dict(spec) | dict(layers=spec["layers"] - spec["skip"], skip=0, projection=0)


def read_bert(config: Mapping[str, Any]) -> dict:
    """A LDMBertModel's numbers, as `bert_text` takes them.

    Raises:
      UserError: another class, or a setting that our encoder has not.
    """
    check_keys(config, BERT, "bert")
    if _class(config) != "LDMBertModel":
        raise UserError(f"bert {_class(config)}: expected LDMBertModel")
    width, vocabulary = config.get("d_model", 1280), config.get("vocab_size", 30522)
    if config.get("encoder_ffn_dim", 5120) != 4 * width or config.get("activation_function", "gelu") != "gelu":
        raise UserError(f"bert: encoder_ffn_dim={config.get('encoder_ffn_dim', 5120)}, activation_function="
                        f"{config.get('activation_function', 'gelu')!r}: expected {4 * width} (4 d_model) and gelu")
    marks = (101, 102) if vocabulary > 102 else (vocabulary - 3, vocabulary - 2)
    return dict(width=width, layers=config.get("encoder_layers", 32), heads=config.get("encoder_attention_heads", 8),
                head_width=config.get("head_dim", 64), vocabulary=vocabulary, length=config.get("max_position_embeddings", 77),
                bos=marks[0], eos=marks[1], pad=config.get("pad_token_id", 0), logits=True)


def write_bert(spec: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of LDM's text encoder."""
    return dict(architectures=["LDMBertModel"], model_type="ldmbert", d_model=spec["width"], encoder_ffn_dim=4 * spec["width"],
                encoder_layers=spec["layers"], encoder_attention_heads=spec["heads"], head_dim=spec["head_width"],
                vocab_size=spec["vocabulary"], max_position_embeddings=spec["length"], pad_token_id=spec["pad"],
                activation_function="gelu")


def _class(config: Mapping[str, Any]) -> str:
    return str((config.get("architectures") or [config.get("_class_name")])[0])


def _token(value) -> str:
    """A token in a tokenizer_config.json: a string, or a dict with its "content"."""
    return str(value.get("content", "")) if isinstance(value, Mapping) else value or ""
