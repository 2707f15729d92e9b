"""What the layouts of others have no place for, folded into what they have: latent units, a class's vector, layers that nothing reads.

Everything is computed in float64 and rounded once.
"""

from collections.abc import Mapping

import numpy as np

from ldm_jax.models.units import LatentUnits


def one_scale(units: LatentUnits) -> float | None:
    """The factor that stock readers multiply latents by, where that is all the units are: mean 0 and one std. Else None."""
    if any(units.mean) or len(set(units.std)) > 1:
        return None
    return float(f"{1.0 / units.std[0]:.12g}")  # a published factor comes back as it was written


def units_folded(tree: Mapping, units: LatentUnits) -> dict:
    """A first stage's tree whose raw latents are what (latent - mean) / std was: stock readers then need no factor.

    KL: the encoder's last 1x1 map gives means (m - mean) / std and log-variances less 2 ln std; VQ: the codebook moves with
    the latents, and the one std of all channels keeps which code is nearest. The decoder's first 1x1 map undoes it.
    """
    mean, std = np.asarray(units.mean, np.float64), np.asarray(units.std, np.float64)
    first, last = tree["quant_conv"], tree["post_quant_conv"]
    kernel, bias = _wide(first["kernel"]), _wide(first["bias"])
    c = len(mean)
    kernel[:, :c], bias[:c] = kernel[:, :c] / std, (bias[:c] - mean) / std
    if "bottleneck" not in tree:
        bias[c:] -= 2 * np.log(std)
    back = _wide(last["kernel"])
    changed = {"quant_conv": {"kernel": kernel, "bias": bias},
               "post_quant_conv": {"kernel": std[:, None] * back, "bias": _wide(last["bias"]) + mean @ back}}
    if "bottleneck" in tree:
        changed["bottleneck"] = {"codebook": (_wide(tree["bottleneck"]["codebook"]) - mean) / std}
    return dict(tree) | {name: {key: array.astype(np.float32) for key, array in part.items()} for name, part in changed.items()}


def vector_folded(network: Mapping, table) -> tuple[dict, np.ndarray]:
    """(the network without its vector's two layers, the table [n, time width] that adds the same): a class vector [n, D] goes
    through linear, SiLU, linear on its way to the time embedding, and there are but n of them.
    """
    first, second = network["vector_0"], network["vector_2"]
    hidden = _wide(table) @ _wide(first["kernel"]) + _wide(first["bias"])
    hidden = hidden / (1 + np.exp(-hidden))
    added = hidden @ _wide(second["kernel"]) + _wide(second["bias"])
    return {name: part for name, part in network.items() if name not in ("vector_0", "vector_2")}, added.astype(np.float32)


def _wide(array) -> np.ndarray:
    return np.array(array, np.float64)
