"""One file of CompVis or Stability AI taken apart: network, first stage, conditioner, each under its own names.

Every tensor of the file ends in a part, or in the short list of what may be left out, or the file is refused.
"""

import dataclasses
import fnmatch
import re
from collections.abc import Mapping

import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.interop.mapped import pick, shapes
from ldm_jax.interop.old_names import clip_name, renamed
from ldm_jax.interop.prefixes import CONDITIONER, EMA, FIRST_STAGE, TRACKED

BOOKKEEPING = ("decay", "num_updates")
SCALE = "scale_factor"
EMBEDDER = re.compile(r"(cond_stage_model|conditioner\.embedders\.\d+)\.transformer\.")
SCHEDULE = ("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
            "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
            "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2", "lvlb_weights")
IGNORABLE = (
    *SCHEDULE, SCALE,  # rebuilt from the schedule's section; read below
    "logvar",  # per level, of the training loss
    "denoiser.sigmas",  # the schedule again
    *(f"low_scale_model.{name}" for name in SCHEDULE),  # the noise that the upscaler's low resolution is given
    "loss.*", "first_stage_model.loss.*",  # perceptual network and discriminator
    "depth_model.*",  # depth is an input of ours
    "unconditional_guidance_vex",  # of retrieval models, whose null is zeros
    "*position_ids", "*.attn_mask",  # 0 1 2 ...; a triangle of -inf
    "*.logit_scale",  # of CLIP's training
)


@dataclasses.dataclass(frozen=True)
class Split:
    """A file's parts.

    Fields:
      parts: part -> name without its prefix -> array, made when it is asked for.
      weights: "ema" or "raw": which of the two the first of the parts holds. "raw" is all there is in a file without a
        `model_ema.`; published files of that kind hold the average under the raw names.
      scale_factor: the file's own, None where it has none.
      ignored: names left out, and why the second copy of a part was.
    """

    parts: Mapping[str, Mapping[str, np.ndarray]]
    weights: str
    scale_factor: float | None
    ignored: tuple[str, ...]


def split(tensors: Mapping[str, np.ndarray], prefixes: Mapping[str, str], weights: str = "ema", where: str = "the file") -> Split:
    """Takes a file apart.

    Args:
      tensors: of the whole file; nothing is read but `scale_factor` and, of a second copy, what it is compared by.
      prefixes: part -> how its names begin, as {"network": "model.diffusion_model.", "first_stage": "first_stage_model.",
        "conditioner": "cond_stage_model."}; "" takes what no other part has. A name goes to its longest prefix.
      weights: "ema" takes the values of `model_ema.` for the part that it tracks, where the file has them; "raw" never.
      where: the file, for the message.

    Raises:
      UserError: a tensor that is of no part and not ignorable; a part without tensors; an average that lacks a tensor of
        its part, has one more, or one of another shape; a scale factor that is not one positive number.
    """
    if weights not in ("ema", "raw"):
        raise UserError(f"weights={weights!r}: expected 'ema' or 'raw'")
    all_shapes = shapes(tensors)
    average = _average(all_shapes, where) if weights == "ema" else {}
    rest = [name for name in all_shapes if not name.startswith(EMA)]
    ignored = [name for name in rest if any(fnmatch.fnmatchcase(name, pattern) for pattern in IGNORABLE)]
    left = set(ignored)
    found: dict[str, list[str]] = {part: [] for part in prefixes}
    unknown, longest_first = [], sorted(prefixes, key=lambda part: -len(prefixes[part]))
    for name in (name for name in rest if name not in left):
        part = next((part for part in longest_first if name.startswith(prefixes[part])), None)
        (unknown if part is None else found[part]).append(name)
    copies = _second_first_stage(tensors, unknown, prefixes, where)
    unknown = [name for name in unknown if name not in copies]
    if unknown:
        raise UserError(f"{where}: {len(unknown)} tensors are of no part of the model: {', '.join(unknown[:5])}"
                        f"{' ...' if len(unknown) > 5 else ''}; parts begin with {', '.join(map(repr, prefixes.values()))}")
    empty = [f"{part} ({prefixes[part]!r}...)" for part in prefixes if not found[part]]
    if empty:
        raise UserError(f"{where}: no tensors of {', '.join(empty)}")
    parts = {}
    for part, names in found.items():
        inner = renamed(names, lambda name, start=prefixes[part]: _today(name).removeprefix(start), where)
        parts[part] = pick(tensors, {new: average.get(old, old) for new, old in inner.items()})
    ignored += [f"{len(copies)} tensors of cond_stage_model: the first stage again"] if copies else []
    return Split(parts, "ema" if average else "raw", _scale(tensors, where), tuple(ignored))


def ema_name(name: str) -> str:
    """The name under which LitEma keeps a parameter: model.diffusion_model.out.2.bias -> model_ema.diffusion_modelout2bias."""
    return EMA + name.removeprefix(TRACKED).replace(".", "")


def _average(found: Mapping[str, tuple[int, ...]], where: str) -> dict[str, str]:
    """{name: its average's name}: built forward, since dots are lost. What is averaged is the network, or a bare first stage whole."""
    kept = [name for name in found if name.startswith(EMA) and name.removeprefix(EMA) not in BOOKKEEPING]
    if not kept:
        return {}
    root = TRACKED if any(name.startswith(TRACKED) for name in found) else ""
    tracked = [name for name in found if name.startswith(root) and not name.startswith(EMA)]
    forward = renamed(tracked, ema_name, where)
    extra = [name for name in kept if name not in forward]
    if extra:
        raise UserError(f"{where}: {len(extra)} tensors of {EMA} average nothing in the file: {', '.join(extra[:5])}")
    pairs = {forward[name]: name for name in kept}
    missing = [name for name in tracked if name not in pairs and not any(fnmatch.fnmatchcase(name, p) for p in IGNORABLE)]
    wrong = [f"{name} is missing" for name in missing]
    wrong += [f"{new} is {list(found[new])}, {old} is {list(found[old])}" for old, new in pairs.items() if found[new] != found[old]]
    if wrong:
        raise UserError(f"{where}: its average {EMA} does not fit its network: {'; '.join(wrong[:5])}; weights='raw' reads the others")
    return pairs


def _second_first_stage(tensors, unknown: list[str], prefixes: Mapping[str, str], where: str) -> set[str]:
    """The names of a first stage that is there twice, as of models whose condition is an image that it encodes."""
    first, second = FIRST_STAGE, CONDITIONER
    names = {name for name in unknown if name.startswith(second)}
    if first not in prefixes.values() or not names or not all(first + name.removeprefix(second) in tensors for name in names):
        return set()
    for name in sorted(names):
        if not np.array_equal(tensors[name], tensors[first + name.removeprefix(second)]):
            raise UserError(f"{where}: {name} differs from {first + name.removeprefix(second)}: two first stages are not read")
    return names


def _today(name: str) -> str:
    """A name inside FrozenCLIPEmbedder as transformers writes it today; others as they are."""
    embedder = EMBEDDER.match(name)
    return embedder[0] + clip_name(name.removeprefix(embedder[0])) if embedder else name


def _scale(tensors: Mapping[str, np.ndarray], where: str) -> float | None:
    if SCALE not in tensors:
        return None
    value = np.asarray(tensors[SCALE], np.float64)
    if value.size != 1 or not np.isfinite(value).all() or not (value > 0).all():
        raise UserError(f"{where}: {SCALE} is {value.tolist()!s:.60}, expected one positive number")
    return float(value.reshape(()))
