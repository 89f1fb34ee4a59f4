r"""Which of several networks is better, and whether the samples suffice to say so."""

from __future__ import annotations

import math
from typing import Any

from . import words
from .results import CLEAN, Condition, Results
from .statistics import badness, better, mean, paired
from .tables import Cell, Table, digits, interval

#: How a network stands under a condition.
BEST, UNDECIDED = "best", "undecided"

# Both ends of the interval of a difference
APART = ("difference low", "difference high")

Reports = dict[str, Results]
#: A line of a file: words and numbers, by the names of the columns.
Row = dict[str, Any]


def difference(reports: Reports, network: str, reference: str, label: str, metric: str) -> Row:
    """What a network has more than another, sample by sample, and the verdict on it."""
    this, other = reports[network], reports[reference]
    best = this.metrics[metric]
    both = this.defined(label, metric) & other.defined(label, metric)
    a, b = (report.values[label][metric][both] for report in (this, other))
    row: Row = {"metric": metric, "better": better(best), "network": network}
    return row | {"condition": label} | paired(a, b, best)


def standings(reports: Reports, label: str, metric: str) -> dict[str, str]:
    """The network with the best mean, and those that may be as good."""
    harm = {
        name: mean(badness(report.scores(label, metric), report.metrics[metric]))
        for name, report in reports.items()
    }
    harm = {name: value for name, value in harm.items() if not math.isnan(value)}
    if not harm or len(reports) == 1:
        return {}
    first = min(harm, key=harm.__getitem__)
    found = (difference(reports, name, first, label, metric) for name in harm if name != first)
    unsure = [row["network"] for row in found if row["verdict"] == UNDECIDED]
    return {first: BEST} | dict.fromkeys(unsure, UNDECIDED)


def records(
    reports: Reports, metrics: list[str], conditions: list[Condition], reference: str | None
) -> list[Row]:
    """Each mean with its interval and standing, and its difference to a reference, if any."""
    rows = []
    for metric in metrics:
        for label in (condition.label for condition in conditions):
            if any(metric not in report.values[label] for report in reports.values()):
                continue
            standing = standings(reports, label, metric)
            for name, report in reports.items():
                row: Row = {"metric": metric, "better": better(report.metrics[metric])}
                row |= {"network": name, "condition": label} | report.estimate(label, metric)
                row["standing"] = standing.get(name, "")
                if reference is not None and name != reference:
                    found = difference(reports, name, reference, label, metric)
                    row |= {"compared with": reference, "verdict": found["verdict"]}
                    row |= {"difference": found["difference"]}
                    row |= dict(zip(APART, (found["low"], found["high"]), strict=True))
                rows.append(row)
    return rows


def tables(reports: Reports, rows: list[Row]) -> list[Table]:
    """For each metric a table of means and, if there are any, one of differences."""
    first = next(iter(reports.values()))
    heads = {c.label: words.name_of(first, c, joint="\n") for c in first.conditions}
    made = []
    for metric in dict.fromkeys(row["metric"] for row in rows):
        own = [row for row in rows if row["metric"] == metric]
        head = ["", *(heads[row] for row in dict.fromkeys(r["condition"] for r in own))]
        title = words.title_of(metric, first.metrics[metric])
        write = digits(own)
        means, differences = ({name: [Cell(name)] for name in reports} for _ in range(2))
        for row in own:
            name, text = row["network"], f"{write(row['mean'])} {interval(row, write)}"
            means[name].append(Cell(text.strip(), row["standing"]))
            if "verdict" in row:
                finer = digits([row], APART)
                sign = "+" if row["difference"] > 0 else ""
                text = f"{sign}{finer(row['difference'])} {interval(row, finer, APART)}"
                differences[name].append(Cell(f"{text} {row['verdict']}"))
        made.append(Table(f"{title}: mean [95 % interval]", head, list(means.values())))
        lines = [cells for cells in differences.values() if len(cells) > 1]
        if lines:
            other = next(row["compared with"] for row in own if "verdict" in row)
            text = f"{title}: difference to {other}, paired [95 % interval]"
            made.append(Table(text, head, lines))
    return made


def verdict(reports: Reports, network: str, reference: str) -> str:
    """Whose result is better, in words."""
    results = reports[network]
    metric, worst = results.shown(None)[0], results.attacked()
    places = {CLEAN: "clean"}
    if worst is not None:
        places[worst.label] = f"under perturbations {words.as_large_as(worst, results)}"
    parts = []
    for label, where in places.items():
        row = difference(reports, network, reference, label, metric)
        number = words.value(metric, row["difference"], sign="+")
        parts.append(f"{row['verdict']} {where} ({number})")
    return f"{network} against {reference}: {', '.join(parts)}"
