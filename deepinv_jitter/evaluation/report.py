r"""The robustness report of one network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from .. import checks
from . import words
from .comparison import RobustnessComparison
from .results import Results
from .tables import Cell, Table, digits, interval, latex, rendered
from .views import Views


@dataclass(repr=False, eq=False)
class RobustnessReport(Results, Views):
    r"""
    The values of every sample under every condition, as :func:`evaluate_robustness` gives them.

    Beside the metrics there are, for radii, the columns ``eps``, the radius as it was given, in the
    unit of the attack's budget; ``radius``, as an absolute one; and ``radius/|y|`` and
    ``radius/|noise|``, relative to the norm of the sample's measurements and to the expected norm
    of the physics' Gaussian noise on the measured entries (NaN for other noise), all in the norm of
    the budget. ``worst draw`` is the worst of the random perturbations, by what the attack
    maximises; if that is not the squared error, ``objective`` is its value.

    Of what was added to the measurements, ``|dy|/|y|`` is the :math:`\ell_2` norm relative to
    theirs and ``|A'dy|`` that of the image it amounts to (linear physics only); of what an attack
    found, ``|delta|`` is the norm, and ``gradients`` how many the search took. ``squared error of
    0`` and ``squared error of A'y`` are those of an image of zeros and of :math:`A^\top y` of the
    same measurements. Printing a report prints its :meth:`table`.

    :param list conditions: the conditions, each with ``label``, ``kind`` and ``eps``.
    :param dict values: label to column to values, shape `(N,)` for :math:`N` samples.
    :param dict metrics: name of each metric to its best value: infinity if higher is better, minus
        infinity if lower is, and 1 for the contrast recovery.
    :param dict description: what was evaluated, in words and fingerprints.
    :param list digests: fingerprint of each sample's data.
    :param bool model_in_train_mode: whether the model came in training mode.
    :param float seconds: time that the evaluation took, interruptions left out.
    :param dict pictures: label to the truths ``x`` and the reconstructions ``x_net`` of the first
        samples, on the CPU; of random perturbations, that of the first draw. Default: none.
    :param bool complex_abs: whether images of two channels are complex, and shown by their
        magnitude. Default: ``False``.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    >>> model = dj.UnfoldedGD(dj.PointMLP(), stepsize=0.5, max_iter=3)
    >>> report = dj.evaluate_robustness(
    ...     model, [torch.zeros(50, 2)], physics, epsilons=[0.1], attacks="quick", verbose=False)
    >>> bool((report.values["worst case, eps=0.1"]["squared error"]
    ...     > report.values["clean"]["squared error"]).all())
    True
    """

    def table(self, format: str = "text", metrics: str | Sequence[str] | None = None) -> str:
        r"""
        One sentence with the numbers that tell most, what casts doubt on them, and the statistics
        of :meth:`summary`; for ``"csv"`` the statistics alone, of all metrics unless some are
        named.

        :param str format: ``"text"``, at most 100 characters wide, ``"markdown"`` or ``"csv"``.
            Default: ``"text"``.
        :param str, Sequence[str], None metrics: names of metrics, or ``"all"``, also those of
            details. Default: ``None``, those of the evaluation, or the squared error where there
            are none.
        :return: (:class:`str`) the table.
        :raises ValueError: if the format or a metric is unknown.
        """
        metrics = "all" if metrics is None and format == "csv" else metrics
        rows, tables, above = self._told(metrics)
        return rendered(tables + words.radii(self), rows, above, self._notes(), format)

    def to_latex(
        self, path: str | os.PathLike | None = None, metrics: str | Sequence[str] | None = None
    ) -> str:
        r"""
        The statistics of :meth:`table` for LaTeX's package ``booktabs``.

        :param str, os.PathLike, None path: file to write. Default: ``None``, none.
        :param str, Sequence[str], None metrics: see :meth:`table`.
        :return: (:class:`str`) a ``tabular`` for each metric, with what casts doubt on the numbers
            as comments.
        :raises ValueError: if a metric is unknown.
        """
        _, tables, above = self._told(metrics)
        return latex(tables, above + self._notes(), path)

    def _told(self, metrics: str | Sequence[str] | None) -> tuple[list[dict], list[Table], list]:
        """The statistics, as rows and as tables, and what a reader must know before."""
        names = self.shown(metrics)
        rows = [row for row in self.summary() if row["metric"] in names]
        tables = [self._table(name, [r for r in rows if r["metric"] == name]) for name in names]
        bound = [words.LOWER_BOUND] * self.lower_bound
        return rows, tables, [words.headline(self), *bound, *words.doubts({"": self})]

    def _table(self, metric: str, rows: list[dict]) -> Table:
        """The statistics of a metric, a row for each condition that has it."""
        known = [c for c in self.conditions if metric in self.values[c.label]]
        # Of fewer samples than 20 the worst says it all
        tail = {"percentile": "5 % of samples\nare worse than", "worst": "worst"}
        shown = list(tail) if len(self.digests) >= 20 else ["worst"]
        cells = []
        for condition, row, write in zip(known, rows, digits(rows), strict=True):
            texts = words.name_of(self, condition), write(row["mean"]), interval(row, write)
            cells.append([*map(Cell, texts), *(Cell(write(row[name])) for name in shown)])
        head = ["", "mean", "95 % interval", *(tail[name] for name in shown)]
        return Table(words.title_of(metric, self.metrics[metric]), head, cells)

    def compare(
        self, other: RobustnessReport, names: tuple[str, str] = ("this network", "the other")
    ) -> RobustnessComparison:
        r"""
        Compare with another model, on the same data under the same conditions: a paired bootstrap
        over the samples.

        ``"better"`` means that the 95 % interval of the mean difference lies on this report's side
        of zero, ``"worse"`` on the other's, and anything else is ``"undecided"``, also fewer than 6
        samples. No correction is made for the number of rows.

        :param RobustnessReport other: the other model's report.
        :param tuple[str, str] names: what to call this model and the other. Default: ``("this
            network", "the other")``.
        :return: (:class:`RobustnessComparison`) of both; its differences are this report's values
            minus the other's; for the contrast recovery, of its distance to 1.
        :raises TypeError: if ``other`` is no report.
        :raises ValueError: if the data, the conditions, the attack, the metrics or the seed differ,
            or the names are no two.
        """
        checks.instance("other", other, RobustnessReport, "RobustnessReport")
        if len(set(names)) != 2:
            raise ValueError(f"names must be two, of this and the other, got {names!r}.")
        this, that = names
        return RobustnessComparison({this: self, that: other}, compare_to=that)

    @property
    def _networks(self) -> dict[str, Results]:
        return {"": self}

    def _notes(self) -> list[str]:
        device = self.description.get("device", "cpu")
        samples = words.plural(len(self.digests), "sample")
        notes = [f"{samples}, {self.seconds:.1f} s on {device}"]
        cost = [
            f"{self.values[c.label]['gradients'].max():.0f} ({words.name_of(self, c)})"
            for c in self.conditions
            if "gradients" in self.values[c.label]
        ]
        if cost:
            notes.append(f"gradients per sample: {', '.join(cost)}")
        return notes + words.basis(self)

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return (
            f"RobustnessReport({len(self.digests)} samples, "
            f"conditions={[condition.label for condition in self.conditions]}, "
            f"metrics={list(self.metrics)}, flags={list(self.flags)})"
        )
