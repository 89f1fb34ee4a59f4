r"""Tables as text, Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import math
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from statistics import median
from typing import NamedTuple

from .. import checks

#: No line of a table is longer, in characters.
WIDTH = 100

#: Where the first column of a table and a head are wrapped.
FIRST, HEAD = 30, 22

#: How numbers of one kind are written.
Write = Callable[[float], str]

#: How cells that stand out are marked: in text, Markdown and LaTeX.
MARKS = {"best": "*", "undecided": "~", "": " "}
BOLD = {"best": "**{}**", "undecided": "*{}*", "": "{}"}
SHAPES = {"best": r"\textbf{%s}", "undecided": r"\underline{%s}", "": "%s"}

LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"\\": r"\textbackslash{}", "|": r"\textbar{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}"}
)


class Cell(NamedTuple):
    """A text, and how it stands out: as the best, or as undecided."""

    text: str
    mark: str = ""


@dataclass
class Table:
    """A title, the heads of all columns, and rows of cells of which the first is their name."""

    title: str
    head: list[str]
    rows: list[list[Cell]]

    def text(self) -> str:
        """Lines of at most 100 characters; columns that do not fit go below."""
        title = textwrap.wrap(self.title, WIDTH)
        marked = any(cell.mark for row in self.rows for cell in row)
        blocks = []
        for head, rows in self._blocks(marked):
            above, below = _above(head), [line for row in rows for line in _below(row, marked)]
            first, *rest = _widths(above + below)
            form = "  ".join([f"{{:{first}}}", *(f"{{:>{width}}}" for width in rest)])
            lines = [form.format(*line).rstrip() for line in above + below]
            lines.insert(len(above), "-" * max(map(len, lines)))
            blocks.append("\n".join(lines))
        return "\n".join([*title, "\n\n".join(blocks)])

    def markdown(self) -> str:
        """The same blocks as pipes and dashes, the best in bold and the undecided in italics."""
        blocks = []
        for head, rows in self._blocks(False):
            texts = [[BOLD[c.mark].format(c.text) for c in row] for row in rows]
            blocks.append(markdown([head, *texts], numbers=True))
        return "\n\n".join([f"**{in_markdown(self.title)}**", *blocks])

    def latex(self) -> str:
        """A tabular for booktabs, the best in bold and the undecided underlined."""
        blocks = list(self._blocks(False))
        most = max(len(head) for head, _ in blocks)
        lines = [f"% {' '.join(self.title.split())}", r"\begin{tabular}{l%s}" % ("r" * (most - 1))]
        for number, (head, rows) in enumerate(blocks):
            heads = [[Cell(text) for text in line] for line in _above(head)]
            lines += [r"\midrule" if number else r"\toprule", *_latex(heads, most), r"\midrule"]
            lines += _latex(rows, most)
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])

    def _blocks(self, marked: bool) -> Iterable[tuple[list[str], list[list[Cell]]]]:
        """The table cut so that each part, with the first column, is narrow enough."""
        lines = _above(self.head) + [c for r in self.rows for c in _below(r, marked)]
        widths = _widths(lines)
        count = len(widths) - 1
        fitting = max(1, (WIDTH - widths[0]) // (max(widths[1:]) + 2))
        if widths[0] + sum(w + 2 for w in widths[1:]) <= WIDTH:
            fitting = count
        # As many columns in each part, or one less
        size = math.ceil(count / math.ceil(count / fitting))
        for start in range(1, count + 1, size):
            part = slice(start, start + size)
            rows = [[row[0], *row[part]] for row in self.rows]
            yield [self.head[0], *self.head[part]], rows


def _widths(lines: Iterable[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*lines, strict=True)]


def _above(head: list[str]) -> list[tuple[str, ...]]:
    """The lines of the heads, which end on one line."""
    cells = [_wrapped(h, HEAD if i else FIRST)[::-1] for i, h in enumerate(head)]
    return list(zip_longest(*cells, fillvalue=""))[::-1]


def _below(row: list[Cell], marked: bool) -> list[tuple[str, ...]]:
    """The lines of a row, whose name may need several."""
    first, *rest = row
    texts = [[c.text + MARKS[c.mark] * marked] for c in rest]
    return list(zip_longest(_wrapped(first.text, FIRST), *texts, fillvalue=""))


def _wrapped(text: str, width: int) -> list[str]:
    return [line for part in text.split("\n") for line in textwrap.wrap(part, width) or [""]]


def _escaped(text: str) -> str:
    text = " ".join(text.split()).translate(LATEX)
    # As in 0.5 x noise
    text = re.sub(r"(?<![\w.+-])(\d+(?:\.\d+)?) x (?=noise|signal)", r"$\1\\times$ ", text)
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", text)


def _latex(rows: list[list[Cell]], count: int) -> Iterator[str]:
    for row in rows:
        cells = [SHAPES[cell.mark] % _escaped(cell.text) for cell in row]
        yield f"{' & '.join(cells + [''] * (count - len(cells)))} \\\\"


def markdown(rows: Iterable[Iterable[object]], numbers: bool = False) -> str:
    """A Markdown table of rows, the head first; numbers stand on the right of all but the first."""
    cells = [[in_markdown(str(cell)) for cell in row] for row in rows]
    widths = [max(3, width) for width in _widths(cells)]
    ends = ["-", *("-:"[numbers] for _ in widths[1:])]
    rule = ["-" * (w - 1) + end for w, end in zip(widths, ends, strict=True)]
    lines = [
        " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True))
        for line in (cells[0], rule, *cells[1:])
    ]
    return "\n".join(f"| {line} |" for line in lines)


def in_markdown(text: str) -> str:
    """A text on one line, with bars, as of a norm, that begin no column."""
    return " ".join(text.split()).replace("|", "\\|")


def rendered(
    tables: list[Table], records: list[dict], above: list[str], below: list[str], format: str
) -> str:
    """Tables between lines of words; the records alone for csv."""
    checks.choice("format", format, ("text", "markdown", "csv"))
    if format == "csv":
        return as_csv(records)
    plain = format == "text"
    shown = [table.text() if plain else table.markdown() for table in tables]
    first, last = (
        "\n".join(
            textwrap.fill(line, WIDTH, subsequent_indent="  ") if plain else f"- {line}"
            for line in lines
        )
        for lines in (above, below)
    )
    return "\n\n".join(filter(None, [first, *shown, last]))


def latex(tables: list[Table], notes: list[str], path: str | os.PathLike | None) -> str:
    """Tables for LaTeX below notes as comments, written to a file if there is a path."""
    comments = [f"% {' '.join(line.split())}" for line in notes]
    text = "\n".join([*comments, *(table.latex() for table in tables)]) + "\n"
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text


def digits(rows: list[dict]) -> list[Write]:
    """
    How to write the numbers of each row: to the place that the intervals of their means leave
    certain, or that its own leaves if they are not of one size.
    """
    common = _places(rows)
    places = [_places([row]) if common is None else common for row in rows]
    return [partial(_number, places=own) for own in places]


def _places(rows: list[dict]) -> int | None:
    """The decimals of numbers of one size, neither large nor small."""
    sizes = [abs(row["mean"]) for row in rows if math.isfinite(row["mean"])]
    largest = max(sizes, default=0.0) or 1.0
    halves = [(row["high"] - row["low"]) / 2 for row in rows]
    halves = [half for half in halves if half > 0] or [largest / 100]
    # The interval 1.7 has one place, .2 and .05 have two
    places = -math.floor(math.log10(median(halves) / 3))
    places = max(0, min(places, 4 - math.floor(math.log10(largest))))
    alike = places <= 5 and largest < 1e5 and 20 * min(halves) >= median(halves)
    return places if alike else None


def _number(value: float, places: int | None) -> str:
    # Adding 0 makes a rounded minus zero a zero
    return f"{value:.2e}" if places is None else f"{round(value, places) + 0.0:.{places}f}"


def interval(row: dict, write: Write) -> str:
    """Both ends; nothing for a single sample, which has none."""
    return "" if math.isnan(row["low"]) else f"[{write(row['low'])}, {write(row['high'])}]"


def as_csv(records: list[dict]) -> str:
    """A line for each record, with all that any of them has."""
    file = io.StringIO()
    names = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({k: int(v) if isinstance(v, bool) else v for k, v in record.items()})
    return file.getvalue()
