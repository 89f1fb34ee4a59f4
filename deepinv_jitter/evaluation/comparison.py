r"""Networks side by side: which is better, and whether the samples suffice to say so."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from .. import checks
from . import words
from .results import CLEAN, Results, agree
from .statistics import badness, better, paired
from .tables import Cell, Table, digits, interval, latex, rendered
from .views import Views

# What belongs to one model, and may differ between reports that are compared
PER_MODEL = ("model", "device", "pictures")

# How the best mean is marked, and those that may be as good
LEGEND = {"text": ("*", "~"), "markdown": ("bold:", "italic:"), "latex": ("bold:", "underlined:")}

#: A line of a file: words and numbers, by the names of the columns.
Row = dict[str, Any]


@dataclass(repr=False, eq=False)
class RobustnessComparison(Views):
    r"""
    Several networks on the same samples: what :func:`evaluate_robustness` gives for a dictionary of
    models, or built from reports that were made at other times. Printing shows the :meth:`table`.

    Networks are taken as they are: what another training seed would give, only more training seeds
    tell.

    :param dict reports: name of each network to its :class:`RobustnessReport`, all of the same
        data, conditions, attack, metrics and seed.
    :param str, None compare_to: network to which :attr:`rows` are differences, and :meth:`table`
        shows them. Default: ``None``, the first one, and not shown.
    :raises TypeError: if ``reports`` is no dictionary of names and reports.
    :raises ValueError: if it is empty, ``compare_to`` is none of the names, or the reports are not
        of the same data, conditions, attack, metrics and seed.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    >>> models = {
    ...     name: dj.UnfoldedGD(dj.PointMLP(), stepsize=s, max_iter=3)
    ...     for name, s in {"short steps": 0.1, "long steps": 0.9}.items()}
    >>> comparison = dj.evaluate_robustness(
    ...     models, [torch.ones(50, 2)], physics, epsilons=[0.1], attacks="quick", verbose=False)
    >>> print(comparison["long steps", "clean", "squared error"]["verdict"] in
    ...     ("better", "worse", "undecided"))
    True
    >>> joined = dj.RobustnessComparison(comparison.reports, compare_to="short steps")
    >>> joined.table() == comparison.table(compare_to="short steps")
    True
    """

    reports: dict[str, Results]
    compare_to: str | None = None

    def __post_init__(self):
        checks.instance("reports", self.reports, dict, "dictionary of names and reports")
        if not self.reports:
            raise ValueError("reports must hold at least one report, got none.")
        for name, report in self.reports.items():
            if not isinstance(name, str) or not isinstance(report, Results):
                raise TypeError(
                    "reports must be a dictionary of names and RobustnessReports, got "
                    f"{type(report).__name__} for {name!r}."
                )
            # Numbers of different evaluations must not stand beside each other
            ours, theirs = report.description, self._any.description
            keys = [key for key in theirs | ours if key not in PER_MODEL]
            differ = [key for key in keys if ours.get(key) != theirs.get(key)]
            if report.digests != self._any.digests:
                differ.append("data")
            elif not agree(report.references, self._any.references):
                differ.append("measurements")
            if differ:
                raise ValueError(
                    "reports must be of the same data, conditions and attack, but those of "
                    f"{name!r} and {next(iter(self.reports))!r} differ in {', '.join(differ)}: "
                    "evaluate all models with the same arguments."
                )
        checks.choice("compare_to", self._reference, list(self.reports))

    @property
    def rows(self) -> list[Row]:
        r"""
        The differences to ``compare_to``: dictionaries with ``metric``, ``network``, ``condition``,
        ``difference`` of the means, ``low`` and ``high`` of its 95 % interval, and ``verdict``,
        whether the network is ``"better"`` or ``"worse"``, or ``"undecided"``.
        """
        return [self._difference(*key, self._reference) for key in self._keys()]

    def __getitem__(self, key: tuple[str, ...]) -> Row:
        """The row of (network,) condition and metric; of two networks, it needs no name."""
        try:
            *network, name, metric = key
            asked = (*network, words.label_of(self._any, name), metric)
        except ValueError as error:
            raise KeyError(str(error)) from error
        found = [known for known in self._keys() if asked in (known, known[1:])]
        if len(found) != 1:
            raise KeyError(key)
        return self._difference(*found[0], self._reference)

    @property
    def records(self) -> list[Row]:
        """One dictionary for each network, condition and sample."""
        return [{"network": name} | row for name, r in self.reports.items() for row in r.records]

    def table(
        self,
        format: str = "text",
        metrics: str | Sequence[str] | None = None,
        compare_to: str | None = None,
        conditions: Sequence[str] | None = None,
    ) -> str:
        r"""
        One row for each network, one column for each condition: means with their 95 % interval, the
        best one marked, and those that the data do not tell apart from it. What makes one doubt the
        numbers comes first. No correction is made for the number of cells.

        :param str format: ``"text"``, at most 100 characters wide, columns that do not fit below;
            ``"markdown"``; or ``"csv"``, a line for each number. Default: ``"text"``.
        :param str, Sequence[str], None metrics: names of metrics, or ``"all"``. Default: ``None``,
            those of the evaluation, or the squared error where there are none; for csv, all.
        :param str, None compare_to: network to which differences are shown as well, paired, with
            their interval and a verdict. Default: ``None``, that of the comparison, if any.
        :param Sequence[str], None conditions: conditions, by their labels or as the tables call
            them, such as ``"worst case, 1 x noise"``. Default: ``None``, all.
        :return: (:class:`str`) the table.
        :raises ValueError: if the format, a metric, a condition or the network is unknown.
        """
        metrics = "all" if metrics is None and format == "csv" else metrics
        rows, above, below = self._told(format, metrics, compare_to, conditions)
        shown = self._tables(rows) + words.radii(self._any)
        return rendered(shown, rows, above, below, format)

    def to_latex(
        self,
        path: str | os.PathLike | None = None,
        metrics: str | Sequence[str] | None = None,
        compare_to: str | None = None,
        conditions: Sequence[str] | None = None,
    ) -> str:
        r"""
        The tables of :meth:`table` for LaTeX's package ``booktabs``: the best in bold, those not
        told apart from it underlined.

        :param str, os.PathLike, None path: file to write. Default: ``None``, none.
        :return: (:class:`str`) a ``tabular`` for each metric, with what casts doubt on the numbers
            as comments.

        The other arguments, and the errors, are those of :meth:`table`.
        """
        rows, above, below = self._told("latex", metrics, compare_to, conditions)
        return latex(self._tables(rows), above + below, path)

    @property
    def _networks(self) -> dict[str, Results]:
        return self.reports

    @property
    def _any(self) -> Results:
        """A report, for what they all share."""
        return next(iter(self.reports.values()))

    @property
    def _reference(self) -> str:
        return next(iter(self.reports)) if self.compare_to is None else self.compare_to

    def _keys(self) -> list[tuple[str, str, str]]:
        """Network, condition and metric of all differences to the reference."""
        return [
            (network, condition.label, metric)
            for metric in self._any.metrics
            for network in self.reports
            for condition in self._any.conditions
            if network != self._reference and metric in self._any.values[condition.label]
        ]

    def _difference(self, network: str, label: str, metric: str, reference: str) -> Row:
        """The paired difference of a network to another, and the verdict on it."""
        this, other = self.reports[network], self.reports[reference]
        best = this.metrics[metric]
        both = this.defined(label, metric) & other.defined(label, metric)
        a, b = (report.values[label][metric][both] for report in (this, other))
        row: Row = {"metric": metric, "better": better(best), "network": network}
        return row | {"condition": label} | paired(a, b, best)

    def _standings(self, label: str, metric: str) -> dict[str, str]:
        """The network with the best mean, and those that may be as good."""
        best = self._any.metrics[metric]
        means = {n: badness(r.scores(label, metric), best).mean() for n, r in self.reports.items()}
        harm = {name: mean.item() for name, mean in means.items() if mean.isfinite()}
        if not harm or len(self.reports) == 1:
            return {}
        first = min(harm, key=harm.__getitem__)
        verdicts = {name: self._difference(name, label, metric, first)["verdict"] for name in harm}
        unsure = [name for name, verdict in verdicts.items() if verdict == "undecided"]
        return dict.fromkeys(unsure, "undecided") | {first: "best"}

    def _told(self, format, metrics, compare_to, conditions) -> tuple[list[Row], list, list]:
        """The numbers, what a reader must know before, and what they rest on."""
        reference = self.compare_to if compare_to is None else compare_to
        if reference is not None:
            checks.choice("compare_to", reference, list(self.reports))
        if conditions is None:
            conditions = [condition.label for condition in self._any.conditions]
        asked = [conditions] if isinstance(conditions, str) else conditions
        labels = dict.fromkeys(words.label_of(self._any, name, "conditions") for name in asked)
        rows = self._rows(self._any.shown(metrics), labels, reference)
        samples = words.plural(len(self._any.digests), "sample")
        above = [f"{words.plural(len(self.reports), 'network')}, {samples}"]
        above += [words.LOWER_BOUND] * self._any.lower_bound
        if reference is not None:
            above += [self._verdict(name, reference) for name in self.reports if name != reference]
        above += words.doubts(self.reports)
        best, unsure = LEGEND.get(format, LEGEND["text"])
        legend = (
            f"{best} best mean; {unsure} not told apart from it: the 95 % interval of the paired "
            "difference holds 0, or there are fewer than 6 samples"
        )
        return rows, above, [legend] * (len(self.reports) > 1) + words.basis(self._any)

    def _rows(self, metrics: list[str], labels: Iterable[str], reference: str | None) -> list[Row]:
        """Each mean with its interval and standing, and its difference to a reference, if any."""
        rows = []
        for metric, label in product(metrics, labels):
            if any(metric not in report.values[label] for report in self.reports.values()):
                continue
            standings = self._standings(label, metric)
            for name, report in self.reports.items():
                row: Row = {"metric": metric, "better": better(report.metrics[metric])}
                row |= {"network": name, "condition": label} | report.estimate(label, metric)
                row |= {"standing": standings.get(name, "")}
                if reference is not None and name != reference:
                    found = self._difference(name, label, metric, reference)
                    row |= {"compared with": reference, "verdict": found["verdict"]}
                    row |= {"difference": found["difference"]}
                    row |= {"difference low": found["low"], "difference high": found["high"]}
                rows.append(row)
        return rows

    def _tables(self, rows: list[Row]) -> list[Table]:
        """For each metric a table of means and, if there are any, one of differences."""
        heads = {c.label: words.name_of(self._any, c, joint="\n") for c in self._any.conditions}
        made = []
        for metric in dict.fromkeys(row["metric"] for row in rows):
            own = [row for row in rows if row["metric"] == metric]
            head = ["", *(heads[label] for label in dict.fromkeys(r["condition"] for r in own))]
            title = words.title_of(metric, self._any.metrics[metric])
            means, differences = ({name: [Cell(name)] for name in self.reports} for _ in range(2))
            for row, write in zip(own, digits(own), strict=True):
                name, text = row["network"], f"{write(row['mean'])} {interval(row, write)}"
                means[name].append(Cell(text.strip(), row["standing"]))
                if "verdict" in row:
                    apart = {end: row[f"difference {end}"] for end in ("low", "high")}
                    (finer,) = digits([row | apart])
                    sign = "+" if row["difference"] > 0 else ""
                    text = f"{sign}{finer(row['difference'])} {interval(apart, finer)}"
                    differences[name].append(Cell(f"{text} {row['verdict']}"))
            made.append(Table(f"{title}: mean [95 % interval]", head, list(means.values())))
            if lines := [cells for cells in differences.values() if len(cells) > 1]:
                other = next(row["compared with"] for row in own if "verdict" in row)
                text = f"{title}: difference to {other}, paired [95 % interval]"
                made.append(Table(text, head, lines))
        return made

    def _verdict(self, network: str, reference: str) -> str:
        results = self.reports[network]
        metric, worst = results.shown(None)[0], results.attacked()
        places = {CLEAN: "clean"}
        if worst:
            places[worst.label] = f"under perturbations {words.as_large_as(worst, results)}"
        parts = []
        for label, where in places.items():
            row = self._difference(network, label, metric, reference)
            number = words.value(metric, row["difference"], sign="+")
            parts.append(f"{row['verdict']} {where} ({number})")
        return f"{network} against {reference}: {', '.join(parts)}"

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return f"RobustnessComparison({list(self.reports)}, {len(self._any.digests)} samples)"
