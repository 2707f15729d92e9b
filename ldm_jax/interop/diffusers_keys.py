"""What may stand under each key of diffusers' and transformers' JSON files that is read here: type and range, in one table per file."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ldm_jax.core.errors import UserError

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


@dataclasses.dataclass(frozen=True)
class Key:
    """kind: int, float (whole ones too), bool or str; least, most: its range; above: above `least`, not from it on; many: a list of them,
    "no", "yes", or "also" one for all; null: whether null is accepted.
    """

    kind: type
    least: float = -math.inf
    most: float = math.inf
    many: str = "no"
    null: bool = False
    above: bool = False

    def fits(self, value) -> bool:
        """Whether a value read from JSON is of this kind."""
        if value is None:
            return self.null
        if isinstance(value, list | tuple):
            return self.many != "no" and 0 < len(value) and all(map(self._one, value))
        return self.many != "yes" and self._one(value)

    def _one(self, value) -> bool:
        if type(value) not in ((int, float) if self.kind is float else (self.kind,)):
            return False
        if self.kind in (bool, str):
            return True
        return self.least <= value <= self.most and not (self.above and value == self.least)

    def __str__(self) -> str:
        told = WORDS[self.kind]
        if math.isfinite(self.most):
            told += f" {'above' if self.above else 'from'} {self.least:g} to {self.most:g}"
        return {"no": told, "yes": f"a list, each {told}", "also": f"{told}, or a list of such"}[self.many] + " or null" * self.null


FLAG, TEXT, TEXTS = Key(bool, null=True), Key(str), Key(str, many="yes")
SIZE = Key(int, 1, 1_000_000)
MAYBE = dataclasses.replace(SIZE, least=0, null=True)
COUNT = Key(int, 1, 1_000)
SIZES, COUNTS = (dataclasses.replace(one, many="also") for one in (SIZE, COUNT))
ID = Key(int, -1, 10_000_000, null=True)
SIDE = dataclasses.replace(SIZES, least=0, null=True)
FACTOR = Key(float, 0, 1e6, null=True, above=True)
BETA = Key(float, 0, 1, above=True)
TIMES = Key(int, 1, 100_000)

UNET = {
    "block_out_channels": dataclasses.replace(SIZE, many="yes"), "layers_per_block": COUNTS, "transformer_layers_per_block": COUNTS,
    "attention_head_dim": SIZES, "cross_attention_dim": SIZES, "only_cross_attention": dataclasses.replace(FLAG, many="also"),
    "mid_block_only_cross_attention": FLAG, "use_linear_projection": FLAG, "add_attention": FLAG, "in_channels": SIZE, "out_channels": SIZE,
    "norm_num_groups": SIZE, "attn_norm_num_groups": MAYBE, "dropout": Key(float, 0, 1), "sample_size": SIDE, "num_class_embeds": MAYBE,
    "projection_class_embeddings_input_dim": MAYBE, "addition_time_embed_dim": MAYBE, "down_block_types": TEXTS, "up_block_types": TEXTS,
}
PLAIN_UNET = UNET | {"attention_head_dim": dataclasses.replace(SIZE, null=True)}
STAGE = {
    "block_out_channels": UNET["block_out_channels"], "layers_per_block": COUNT, "in_channels": SIZE, "latent_channels": Key(int, 1, 4096),
    "norm_num_groups": SIZE, "sample_size": SIDE, "num_vq_embeddings": SIZE, "vq_embed_dim": MAYBE, "scaling_factor": FACTOR,
    "mid_block_add_attention": Key(bool), "down_block_types": TEXTS, "up_block_types": TEXTS,
}
SCHEDULER = {
    "num_train_timesteps": TIMES, "beta_start": BETA, "beta_end": BETA, "trained_betas": Key(float, 0, 1, many="yes", null=True),
    "beta_schedule": TEXT, "prediction_type": TEXT, "timestep_spacing": TEXT, "final_sigmas_type": TEXT,
    "steps_offset": Key(int, 0, 100_000), "clip_sample_range": dataclasses.replace(FACTOR, null=False), "clip_sample": FLAG,
    "set_alpha_to_one": FLAG, "lower_order_final": FLAG, "rescale_betas_zero_snr": FLAG, "use_karras_sigmas": FLAG,
    "use_exponential_sigmas": FLAG, "use_beta_sigmas": FLAG,
}
CLIP = {
    "architectures": dataclasses.replace(TEXTS, null=True), "hidden_size": SIZE, "intermediate_size": SIZE, "num_hidden_layers": COUNT,
    "num_attention_heads": SIZE, "projection_dim": SIZE, "hidden_act": TEXT, "layer_norm_eps": Key(float, 0, 1),
    "vocab_size": Key(int, 4, 10_000_000), "max_position_embeddings": SIZE, "eos_token_id": ID, "bos_token_id": ID,
}
BERT = {
    "architectures": CLIP["architectures"], "d_model": SIZE, "encoder_ffn_dim": SIZE, "encoder_layers": COUNT, "head_dim": SIZE,
    "encoder_attention_heads": SIZE, "vocab_size": CLIP["vocab_size"], "max_position_embeddings": SIZE,
    "pad_token_id": dataclasses.replace(ID, least=0, null=False), "activation_function": TEXT,
}
INDEX = {"max_noise_level": Key(int, 0, 100_000), "force_zeros_for_empty_prompt": FLAG}


def check_keys(config: Mapping[str, Any], table: Mapping[str, Key], where: str) -> None:
    """Raises UserError for the first key whose value is not what the table says."""
    for key, accepted in table.items():
        if key in config and not accepted.fits(config[key]):
            raise UserError(f"{where}: {key}={config[key]!r:.80}: expected {accepted}")


def each(value, count: int, what: str) -> tuple:
    """A value for each of `count` levels; one stands for all.

    Raises:
      UserError: a list of another length. what: the key, for the message.
    """
    if not isinstance(value, list | tuple):
        return (value,) * count
    if len(value) != count:
        raise UserError(f"{what}={str(value):.80}: expected {count}, one for each level, or one for all")
    return tuple(value)
