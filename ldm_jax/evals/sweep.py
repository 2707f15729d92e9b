"""The share of the asked class against a weight of guidance: the measure of classifier guidance (arXiv 2105.05233, section 4.3)."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.evals.digits import Split, evaluate_digits
from ldm_jax.evals.report import show, table


def sweep_digits(sample: Callable, scales: Sequence[float], labels, train: Split, held_out: Split, *,
                 settings: Mapping | None = None) -> dict:
    """Evaluates the samples of each scale against the digits, from the same seeds.

    Args:
      sample: scale -> uint8 [N, 32, 32, 1].
      scales: at least one, in the order of the table's rows.
      labels: int [N], the digit that each sample was asked to be.
      train, held_out, settings: see evaluate_digits.

    Returns:
      A JSON-able dict: "rows", one a scale: "scale", "accuracy" (the share p given its asked class by the SVC), "standard_error"
      sqrt(p (1 - p) / N), "frechet_distance" (to the held-out digits), "spread_within_class"; "held_out", the same measures of the
      held-out digits; "gain", the best share less the first row's, and "gain_in_errors", over the standard error of that difference;
      "worst_step_in_errors", the least of the same from a row to the next (below 0: the share falls); "n", "settings".

    Raises:
      UserError: no scale.
    """
    if not scales:
        raise UserError("scales: expected at least one, as 0,1,2,4,8")
    labels, rows, result = np.asarray(labels), [], {}
    for scale in scales:
        result = evaluate_digits(sample(scale), labels, train, held_out)
        rows.append({"scale": float(scale), "accuracy": result["accuracy"]["samples"],
                     "standard_error": standard_error(result["accuracy"]["samples"], len(labels)),
                     "frechet_distance": result["frechet_distance"]["samples"],
                     "spread_within_class": result["spread_within_class"]["samples"]})
    best = max(rows, key=lambda row: row["accuracy"])
    names = ("accuracy", "frechet_distance", "spread_within_class")
    return {"rows": rows, "held_out": {name: result[name]["held_out"] for name in names},
            "best_scale": best["scale"], "gain": best["accuracy"] - rows[0]["accuracy"], "gain_in_errors": in_errors(rows[0], best),
            "worst_step_in_errors": min([in_errors(a, b) for a, b in zip(rows, rows[1:])], default=0.0),
            "n": len(labels), "settings": dict(settings or {})}


def standard_error(share: float, number: int) -> float:
    """sqrt(p (1 - p) / N) of a share p of N."""
    return float(np.sqrt(share * (1 - share) / number))


def in_errors(a: Mapping, b: Mapping) -> float:
    """(share of b - share of a) over the standard error of that difference, the two taken as independent; 0 for equal shares."""
    difference = b["accuracy"] - a["accuracy"]
    error = np.hypot(a["standard_error"], b["standard_error"])
    return float(difference / error) if error else float(np.sign(difference) * np.inf if difference else 0.0)


def page(result: Mapping, title: str = "") -> str:
    """The sweep as a markdown table with what it says of the criterion, and its settings."""
    names = ("accuracy", "standard_error", "frechet_distance", "spread_within_class")
    rows = [[show(row["scale"])] + [row[name] for name in names] for row in result["rows"]]
    rows.append(["held-out digits"] + [result["held_out"].get(name) for name in names])
    lines = [title, ""] if title else []
    lines += [table(["scale", "share of the asked class", "standard error", "Frechet distance", "spread within class"], rows), ""]
    if len(result["rows"]) > 1:
        lines.append(f"best scale {show(result['best_scale'])}: {show(result['gain'])} above the first row, "
                     f"{show(result['gain_in_errors'])} standard errors; worst step {show(result['worst_step_in_errors'])} standard errors")
    lines.append(f"n {result['n']} a scale; settings: " + ", ".join(f"{key} {show(value)}" for key, value in result["settings"].items()))
    return "\n".join(lines)
