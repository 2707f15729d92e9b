"""Names that libraries have changed over the years, brought to one form: that of the files on the hub today.

Attention of diffusers before 0.15: `query`, `key`, `value`, `proj_attn`, today `to_q`, `to_k`, `to_v`, `to_out.0`. CLIP of
transformers: with `text_model.` (`vision_model.`), also where a file has the flat names that transformers 5.6 has in memory.
"""

import fnmatch
from collections.abc import Iterable, Mapping

import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.interop.mapped import pick

ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
FLAT = ("embeddings.", "encoder.", "final_layer_norm.", "pre_layrnorm.", "post_layernorm.")
# buffers that hold no weight: 0 1 2 ..., a triangle of -inf
CONSTANTS = ("*position_ids", "*.attn_mask")


def attention_name(name: str) -> str:
    """A name of diffusers in today's form: mid_block.attentions.0.query.weight -> mid_block.attentions.0.to_q.weight."""
    parts = name.split(".")
    if len(parts) > 2 and parts[-2] in ATTENTION and "attentions" in parts:
        parts[-2] = ATTENTION[parts[-2]]
    return ".".join(parts)


def clip_name(name: str, vision: bool = False) -> str:
    """A name of transformers' CLIP with its `text_model.` or `vision_model.`."""
    return ("vision_model." if vision else "text_model.") + name if name.startswith(FLAT) else name


def today(tensors: Mapping[str, np.ndarray], clip: bool, where: str) -> Mapping[str, np.ndarray]:
    """The tensors of one component of a diffusers folder under today's names, without constant buffers.

    Args:
      clip: of transformers' CLIP, text or vision, and not of diffusers.
      where: whose they are, for the message.

    Raises:
      UserError: a tensor that is there under its old and its new name.
    """
    vision = any(name.endswith("embeddings.patch_embedding.weight") for name in tensors)
    kept = [name for name in tensors if not any(fnmatch.fnmatchcase(name, pattern) for pattern in CONSTANTS)]
    return pick(tensors, renamed(kept, lambda name: clip_name(name, vision) if clip else attention_name(name), where))


def renamed(names: Iterable[str], rule, where: str) -> dict[str, str]:
    """{rule(name): name}.

    Raises:
      UserError: two names that become one.
    """
    found: dict[str, str] = {}
    for name in names:
        new = rule(name)
        if new in found:
            raise UserError(f"{where}: {found[new]} and {name} are two names of one tensor; the file was put together wrongly")
        found[new] = name
    return found
