r"""Networks side by side, on the same samples under the same conditions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from .. import checks
from . import words
from .results import Results
from .standings import BEST, UNDECIDED, Row, difference, records, tables, verdict
from .tables import MARKS, rendered
from .views import Views

# What belongs to one model, and may differ between reports that are compared
PER_MODEL = ("model", "device", "pictures")

# How the best mean is marked, and those that may be as good; elsewhere as in a text
LEGEND = {"markdown": ("bold:", "italic:"), "latex": ("bold:", "underlined:")}


@dataclass(repr=False, eq=False)
class RobustnessComparison(Views):
    r"""
    Several networks on the same samples: what :func:`evaluate_robustness` gives for a dictionary of
    models. Printing shows the :meth:`table`.

    Reports of networks that were measured at other times are joined by building one from them. In
    all that it says, networks are taken as they are: what another training seed would give, only
    more training seeds tell.

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
    >>> list(comparison.reports)
    ['short steps', 'long steps']
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
        if not isinstance(self.reports, dict):
            raise TypeError(
                "reports must be a dictionary of names and reports, got "
                f"{type(self.reports).__name__}."
            )
        if not self.reports:
            raise ValueError("reports must hold at least one report, got none.")
        for name, report in self.reports.items():
            if not isinstance(name, str) or not isinstance(report, Results):
                raise TypeError(
                    "reports must be a dictionary of names and RobustnessReports, got "
                    f"{type(report).__name__} for {name!r}."
                )
        for name, report in self.reports.items():
            # Numbers of different evaluations must not stand beside each other
            ours, theirs = report.description, self._any.description
            keys = [key for key in {**theirs, **ours} if key not in PER_MODEL]
            differ = [key for key in keys if ours.get(key) != theirs.get(key)]
            if report.digests != self._any.digests:
                differ.append("data")
            if differ:
                raise ValueError(
                    "reports must be of the same data, conditions and attack, but those of "
                    f"{name!r} and {next(iter(self.reports))!r} differ in {', '.join(differ)}: "
                    "evaluate all models with the same arguments."
                )
        self._reference(self.compare_to)

    @property
    def rows(self) -> list[dict[str, str | float]]:
        r"""
        The differences to ``compare_to``: dictionaries with ``metric``, ``network``, ``condition``,
        ``difference`` of the means, ``low`` and ``high`` of its 95 % interval, and ``verdict``:
        ``"better"`` or ``"worse"`` is the network than the one it is compared with, or
        ``"undecided"``.
        """
        reference = self._reference(self.compare_to)
        return [
            difference(self.reports, network, reference, condition.label, metric)
            for metric in self._any.metrics
            for network in self.reports
            for condition in self._any.conditions
            if network != reference and metric in self._any.values[condition.label]
        ]

    @property
    def records(self) -> list[dict[str, str | int | float | bool]]:
        """One dictionary for each network, condition and sample."""
        named = self.reports.items()
        return [{"network": name} | record for name, report in named for record in report.records]

    def __getitem__(self, key: tuple[str, ...]) -> dict[str, str | float]:
        """The row of (network,) condition and metric; of two networks, it needs no name."""
        *network, label, metric = key
        reference = self._reference(self.compare_to)
        others = [name for name in self.reports if name != reference]
        network = network or others
        known = metric in self._any.values.get(label, {}) and metric in self._any.metrics
        if not known or len(network) != 1 or network[0] not in others:
            raise KeyError(key)
        return difference(self.reports, network[0], reference, label, metric)

    def table(
        self,
        format: str = "text",
        metrics: str | Sequence[str] | None = None,
        compare_to: str | None = None,
        conditions: Sequence[str] | None = None,
    ) -> str:
        r"""
        One row for each network, one column for each condition: means with their 95 % interval, the
        best one marked, and those that the data do not tell apart from it.

        What makes one doubt the numbers comes first. No correction is made for the number of cells.

        :param str format: ``"text"``, at most 100 characters wide, columns that do not fit below;
            ``"markdown"``; or ``"csv"``, a line for each number. Default: ``"text"``.
        :param str, Sequence[str], None metrics: names of metrics, or ``"all"``. Default: ``None``,
            those of the evaluation, or the squared error where there are none; for csv, all.
        :param str, None compare_to: network to which differences are shown as well, paired, with
            their interval and a verdict. Default: ``None``, that of the comparison, if any.
        :param Sequence[str], None conditions: labels of the conditions. Default: ``None``, all.
        :return: (:class:`str`) the table.
        :raises ValueError: if the format, a metric, a condition or the network is unknown.
        """
        every = metrics is None and format == "csv"
        metrics = "all" if every else metrics
        rows, above, below = self._told(format, metrics, compare_to, conditions)
        shown = tables(self.reports, rows) + words.radii(self._any)
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
        :param str, Sequence[str], None metrics: see :meth:`table`.
        :param str, None compare_to: see :meth:`table`.
        :param Sequence[str], None conditions: see :meth:`table`.
        :return: (:class:`str`) a ``tabular`` for each metric, with what casts doubt on the numbers
            as comments.
        :raises ValueError: if a metric, a condition or the network is unknown.
        """
        rows, above, below = self._told("latex", metrics, compare_to, conditions)
        notes = [f"% {line}" for line in above + below]
        parts = [table.latex() for table in tables(self.reports, rows)]
        text = "\n".join([*notes, *parts]) + "\n"
        if path is not None:
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
        return text

    @property
    def _networks(self) -> dict[str, Results]:
        return self.reports

    @property
    def _any(self) -> Results:
        """A report, for what they all share."""
        return next(iter(self.reports.values()))

    def _reference(self, name: str | None) -> str:
        name = next(iter(self.reports)) if name is None else name
        checks.choice("compare_to", name, list(self.reports))
        return name

    def _told(
        self,
        format: str,
        metrics: str | Sequence[str] | None,
        compare_to: str | None,
        conditions: Sequence[str] | None,
    ) -> tuple[list[Row], list[str], list[str]]:
        """The numbers, what a reader must know before, and what they rest on."""
        reference = self.compare_to if compare_to is None else compare_to
        reference = reference and self._reference(reference)
        known = {condition.label: condition for condition in self._any.conditions}
        labels = known if conditions is None else conditions
        labels = [labels] if isinstance(labels, str) else labels
        if unknown := [label for label in labels if label not in known]:
            raise ValueError(f"conditions must be among {list(known)}, got {unknown[0]!r}.")
        chosen = [known[label] for label in labels]
        rows = records(self.reports, self._any.shown(metrics), chosen, reference)
        samples = words.plural(len(self._any.digests), "sample")
        above = [f"{words.plural(len(self.reports), 'network')}, {samples}"]
        above += [words.LOWER_BOUND] * self._any.lower_bound
        if reference is not None:
            names = [name for name in self.reports if name != reference]
            above += [verdict(self.reports, name, reference) for name in names]
        above += words.doubts(self.reports)
        best, unsure = LEGEND.get(format, (MARKS[BEST], MARKS[UNDECIDED]))
        legend = (
            f"{best} best mean; {unsure} not told apart from it: the 95 % interval of the paired "
            "difference holds 0, or there are fewer than 6 samples"
        )
        legends = [legend] if len(self.reports) > 1 else []
        return rows, above, legends + words.basis(self._any)

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return f"RobustnessComparison({list(self.reports)}, {len(self._any.digests)} samples)"
