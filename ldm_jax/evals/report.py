"""An evaluation's dict as an aligned table, readable as plain text and as markdown."""

from collections.abc import Mapping, Sequence

ASIDE = ("warnings", "n", "classifier", "settings")


def table(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """Markdown rows, columns padded to one width: the first to the left, numbers to the right."""
    cells = [[str(cell) for cell in header]] + [[show(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row):
        parts = [cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))]
        return "| " + " | ".join(parts) + " |"

    rule = "|" + "|".join("-" * (width + 1) + ("-" if i == 0 else ":") for i, width in enumerate(widths)) + "|"
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])


def show(value) -> str:
    """A number to 4 significant digits; whole numbers and words as they are; absent as nothing."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:.4g}"


def report(result: Mapping, title: str = "") -> str:
    """The page that `evaluate` prints: a title, one table row a measure, then counts, settings and warnings.

    A measure that is a dict of numbers ({"samples": ..., "held_out": ...}) fills a column a key.
    """
    measures = {name: value for name, value in result.items() if name not in ASIDE}
    columns: list[str] = []
    for value in measures.values():
        columns += [key for key in (value if isinstance(value, Mapping) else {}) if key not in columns]
    columns = columns or ["value"]
    rows = []
    for name, value in measures.items():
        held = value if isinstance(value, Mapping) else {columns[0]: value}
        rows.append([name.replace("_", " ")] + [held.get(column) for column in columns])
    lines = [title, ""] if title else []
    lines.append(table(["measure"] + [column.replace("_", " ") for column in columns], rows))
    for name in ASIDE[1:]:
        if result.get(name):
            lines += ["", f"{name}: " + ", ".join(f"{key} {show(value)}" for key, value in result[name].items())]
    lines += [f"WARNING {line}" for line in result.get("warnings", ())]
    return "\n".join(lines)
