"""The shapes world's measures as tables: beside the first stage's reconstructions and the true images, and over guidance weights."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.evals.report import show, table
from ldm_jax.evals.shapes_judges import JUDGES
from ldm_jax.evals.shapes_reading import Held, Shown
from ldm_jax.evals.sweep import in_errors

MAIN = {"text": "all_right", "class": "class_right", "map": "mean_iou", "layout": "object_right", "super_resolution": "psnr_gain_db",
        "inpainting": "consistent", "retrieval": "class_among", "unconditional": "valid"}
"""The measure of a task that a sweep is judged by."""
GOOD, STEP = 0.95, 2.0  # a share that no weight need raise; standard errors that count


def evaluate_shapes(samples: np.ndarray, held: Held, tasks: Sequence[str], reconstructed: np.ndarray | None = None, *,
                    settings: Mapping | None = None) -> dict:
    """Measures samples of the shapes world by its oracle.

    Args:
      samples: uint8 [N, R, R, 3], image i of what record i says.
      held: the N records.
      tasks: names of JUDGES.
      reconstructed: uint8 [N, R, R, 3], the true images through the first stage.
      settings: how the samples were made, copied into the result.

    Returns:
      A JSON-able dict, "task/measure" to columns: "samples", the mean (see the judges for what of), and its "standard_error"; the same of
      the scenes with one thing, "one_object" and "one_object_error"; "of", how many images, things or classes the mean is of; and, as
      what can be reached, "first_stage" and "truth": the same measure of the reconstructions and of the true images. None where there
      is nothing to measure. "n" and "settings".

    Raises:
      UserError: images that are not those of the records.
    """
    for name, images in (("samples", samples), ("reconstructed", reconstructed)):
        if images is not None and (images.shape != held.images.shape or images.dtype != np.uint8):
            raise UserError(f"{name}: expected uint8 {list(held.images.shape)}, one for each record; got {images.dtype} "
                            f"{list(images.shape)}")
    columns = {"first_stage": reconstructed, "truth": held.images}
    shown = {name: Shown(images) for name, images in columns.items() if images is not None}
    everything, single, result = np.ones(len(samples), bool), held.single, {}
    ours = Shown(samples)
    for task in tasks:
        beside = {name: JUDGES[task](images, held) for name, images in shown.items()}
        for name, measure in JUDGES[task](ours, held).items():
            (mean, error, of), (one, one_error, _) = measure.of(everything), measure.of(single)
            row = {"samples": mean, "standard_error": error, "one_object": one, "one_object_error": one_error, "of": of}
            result[f"{task}/{name}"] = row | {column: found[name].of(everything)[0] for column, found in beside.items()}
    return result | {"n": {"samples": len(samples), "one_object": int(single.sum())}, "settings": dict(settings or {})}


def sweep_shapes(sample: Callable, scales: Sequence[float], held: Held, tasks: Sequence[str],
                 reconstructed: np.ndarray | None = None, *, settings: Mapping | None = None) -> dict:
    """`evaluate_shapes` at each weight of guidance, and whether guidance helps.

    Args:
      sample: scale -> uint8 [N, R, R, 3], of the same records and seeds at each.
      scales: at least one, in the order of the table's rows.

    Returns:
      A JSON-able dict: "rows", one a scale: "scale", and "measures" as `evaluate_shapes` gives them; "verdicts", for the main measure
      of each task: "best_scale", "best", "from_1" (the best less the one at weight 1, or at the first where there is no 1) and
      "from_1_in_errors", over the standard error of that difference (the two taken as independent, which they are not: the records
      and seeds are the same, so that a difference is rather more certain than told); "worst_step_in_errors", the least of the same from
      a row to the next (below 0: it falls); "helps", whether the best is 0.95 or more, or above weight 1 by more than two errors;
      "steady", whether no step falls by more than two; "n", "settings".

    Raises:
      UserError: no scale.
    """
    if not scales:
        raise UserError("scales: expected at least one, as 1,1.5,2,3,4")
    rows, counts = [], {}
    for scale in scales:
        found = evaluate_shapes(sample(scale), held, tasks, reconstructed)
        counts = found["n"]
        rows.append({"scale": float(scale), "measures": {name: value for name, value in found.items() if "/" in name}})
    verdicts = {f"{task}/{MAIN[task]}": _verdict(rows, f"{task}/{MAIN[task]}") for task in tasks}
    return {"rows": rows, "verdicts": verdicts, "n": counts, "settings": dict(settings or {})}


def _verdict(rows: Sequence[Mapping], name: str) -> dict:
    measured = [row["measures"][name] | {"scale": row["scale"]} for row in rows]
    found = [{"accuracy": row["samples"], "standard_error": row["standard_error"], "scale": row["scale"]} for row in measured]
    if any(row["accuracy"] is None for row in found):
        return {}
    best = max(found, key=lambda row: row["accuracy"])
    plain = next((row for row in found if row["scale"] == 1), found[0])
    gain, worst = in_errors(plain, best), min([in_errors(a, b) for a, b in zip(found, found[1:])], default=0.0)
    return {"best_scale": best["scale"], "best": best["accuracy"], "from_1": best["accuracy"] - plain["accuracy"], "from_1_in_errors": gain,
            "worst_step_in_errors": worst, "helps": bool(best["accuracy"] >= GOOD or gain > STEP), "steady": bool(worst >= -STEP)}


def shapes_page(result: Mapping, title: str = "") -> str:
    """A sweep as markdown: a table of the main measures with their errors, one of all measures, what they say, and the settings."""
    lines = [title, ""] if title else []
    names, first = list(result["rows"][0]["measures"]), result["rows"][0]["measures"]
    for name in result["verdicts"]:
        keys = ("samples", "standard_error", "one_object", "one_object_error")
        rows = [[show(row["scale"])] + [row["measures"][name][key] for key in keys] for row in result["rows"]]
        rows += [[word, first[name].get(key)] + [None] * 3 for word, key in (("first stage", "first_stage"), ("true images", "truth"))]
        lines += [table(["weight", _plain(name), "standard error", "one object", "its error"], rows), ""]
    each = [[_plain(name)] + [row["measures"][name]["samples"] for row in result["rows"]] for name in names]
    lines += [table(["measure"] + [f"weight {show(row['scale'])}" for row in result["rows"]], each), ""]
    for name, told in result["verdicts"].items() if len(result["rows"]) > 1 else ():
        lines.append(f"{_plain(name)}: " + (_verdict_told(told) if told else "nothing to measure"))
    lines.append(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in result["n"].items()) + " a weight; settings: "
                 + ", ".join(f"{key} {show(value)}" for key, value in result["settings"].items()))
    return "\n".join(lines)


def _verdict_told(told: Mapping) -> str:
    return (f"best weight {show(told['best_scale'])}, {show(told['best'])}: {show(told['from_1'])} above weight 1, "
            f"{show(told['from_1_in_errors'])} standard errors: guidance {'helps' if told['helps'] else 'DOES NOT HELP'} (asked: above "
            f"{show(STEP)}, or {show(GOOD)} reached); worst step {show(told['worst_step_in_errors'])} standard errors: "
            + ("steady" if told["steady"] else "IT FALLS"))


def _plain(name: str) -> str:
    return name.replace("_", " ")
