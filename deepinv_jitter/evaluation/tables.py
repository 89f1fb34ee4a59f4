r"""Tables as text, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable

FORMATS = ("text", "markdown", "csv")


def rendered(
    rows: list[dict], shown: Callable[[dict], dict[str, str]], format: str
) -> str:
    """A table for each metric, of the columns shown of each row; all of them for csv."""
    if format not in FORMATS:
        raise ValueError(f"format must be one of {FORMATS}, got {format!r}.")
    if format == "csv":
        file = io.StringIO()
        write_csv(file, rows)
        return file.getvalue()
    tables: dict[str, list[list[str]]] = {}
    for row in rows:
        cells = shown(row)
        table = tables.setdefault(row["metric"], [])
        if not table:
            table.append([f"{row['metric']} ({row['better']} is better)", *cells])
        table.append([row["condition"], *cells.values()])
    left, between, right = "", "  ", ""
    if format == "markdown":
        left, between, right = "| ", " | ", " |"
        for table in tables.values():
            # The bars of a norm would be columns
            table[0] = [cell.replace("|", "\\|") for cell in table[0]]
            table.insert(1, ["---", *["--:"] * (len(table[0]) - 1)])
    lines = [line for table in tables.values() for line in table]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]

    def aligned(line: list[str]) -> str:
        first, *numbers = zip(line, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(n.rjust(width) for n, width in numbers)]
        return left + between.join(cells) + right

    return "\n\n".join("\n".join(map(aligned, table)) for table in tables.values())


def interval(row: dict) -> str:
    return f"[{row['low']:.4g}, {row['high']:.4g}]"


def write_csv(file: io.TextIOBase, records: list[dict]) -> None:
    names = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow(
            {k: int(v) if isinstance(v, bool) else v for k, v in record.items()}
        )
