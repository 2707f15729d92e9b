"""What the sampler files share: the first-order row, the way out of pure noise, the ancestral split, refusals."""

import math

from ldm_jax.core.errors import UserError
from ldm_jax.diffusion.path import Path
from ldm_jax.diffusion.table import Row

LONGEST = 1.5e4
"""Largest weight of a difference of noise estimates, over the sigma reached: times float32's rounding (6e-8) it is 1e-3."""


def straight(level, time: float, reach, **more) -> Row:
    """x+ = alpha' D + sigma' E: exact if D and E stay as they are. What Euler, DDIM and every first-order solver do."""
    return Row(level, time, reach, clean=reach[0], noise=reach[1], **more)


def out_of_noise(path: Path) -> tuple[list[Row], list]:
    """(rows, steps): a straight first row if the path begins in pure noise, and the steps that remain.

    From alpha = 0 a step in ln(alpha/sigma) is infinitely long and may be no node of a higher order: that row has order 1,
    nothing of it is remembered, and the sampler starts at the next level (sampler tables, section 6).
    """
    steps = path.steps()
    if path.alpha[0] > 0:
        return [], steps
    (i, level, reach), rest = steps[0], steps[1:]
    return [straight(level, path.time[i], reach, keep=False)], rest


def split(ratio: float, reached: float, eta: float) -> tuple[float, float]:
    """(down, up): go to sigma/alpha = down without noise, then add up; down^2 + up^2 = reached^2.

    eta 1 is the posterior's deviation up = reached sqrt(1 - reached^2 / ratio^2) (arXiv 2010.02502, equation 16).
    """
    q = reached / ratio
    return reached * math.hypot(math.sqrt((1 - eta) * (1 + eta)), eta * q), eta * reached * math.sqrt((1 - q) * (1 + q))


def check_eta(sampler: str, eta: float) -> None:
    """Raises UserError unless 0 <= eta <= 1."""
    if not (math.isfinite(eta) and 0 <= eta <= 1):
        raise UserError(f"sampler '{sampler}': eta={eta}: expected a number from 0 (deterministic) to 1 (as noisy as ddpm)")


def check_middle(sampler: str, r: float) -> None:
    """Raises UserError unless 0 < r < 1."""
    if not (math.isfinite(r) and 0 < r < 1):
        raise UserError(f"sampler '{sampler}': r={r}: expected a number between 0 and 1, where inside the step it evaluates "
                        "again (published: 0.5)")


def check_order(sampler: str, order: int, highest: int) -> None:
    """Raises UserError unless order is a whole number from 1 to `highest`."""
    if isinstance(order, bool) or order not in range(1, highest + 1):
        raise UserError(f"sampler '{sampler}': order={order}: expected a whole number from 1 to {highest}")


def refuse_long(sampler: str, level, reach, weight: float) -> None:
    """Raises UserError if `weight`, that of a later estimate of noise in the step, would multiply its rounding past use."""
    if reach[1] > 0 and abs(weight) > LONGEST * reach[1]:
        start = f"{level[1] / level[0]:.4g}"
        raise UserError(f"sampler '{sampler}': the step from sigma/alpha {start} to {reach[1] / reach[0]:.4g} is too long: an error "
                        f"of its second noise estimate would be multiplied by {abs(weight) / reach[1]:.0e}; take more steps, the "
                        "grid 'karras', or one of the dpmpp family")
