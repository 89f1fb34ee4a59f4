r"""The robustness report: statistics, tables and curves of what an evaluation measured."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import deepinv
import torch

from .comparison import PER_MODEL, RobustnessComparison
from .shifts import Shift
from .statistics import badness, better, mean, paired, bootstrap_interval
from .tables import interval, rendered, write_csv

ERROR = "squared error"


#: What the name of a column says in which a metric has no value for a sample
UNDEFINED = " undefined"


UNITS = ("eps", "eps/|y|", "eps/|noise|")


Columns = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Condition:
    """One way to treat all samples: its kind, and the radius or the edit that belongs to it."""

    kind: str
    eps: float | None = None
    shift: Shift | None = field(default=None, compare=False)

    @property
    def label(self) -> str:
        """The name of the condition, unique in a report."""
        return self.kind if self.eps is None else f"{self.kind}, eps={self.eps:.12g}"


@dataclass(repr=False, eq=False)
class RobustnessReport:
    r"""
    The values of every sample under every condition, as :func:`evaluate_robustness` gives them.

    Beside the metrics there are, for radii, columns ``eps``, ``eps/|y|`` and ``eps/|noise|``: the
    radius as it is, relative to the norm of the sample's measurements, and to the expected norm of
    the physics' Gaussian noise on the measured entries (NaN for other noise), all in the norm of
    the budget. ``worst draw`` is what the worst of the random perturbations reached, by what the
    attack maximises; if that is not the squared error, ``objective`` is its value. Of the
    perturbation found, ``|delta|`` is the norm, ``|dy|/|y|`` the :math:`\ell_2` norm of what it
    adds to the measurements, relative to theirs, ``|A'dy|`` the :math:`\ell_2` norm of the image it
    amounts to (linear physics only), and ``gradients`` how many the search for it took.

    Printing a report prints its :meth:`table`.

    :param list conditions: the conditions, each with ``label``, ``kind`` and ``eps``.
    :param dict values: label to column to values, shape `(N,)` for :math:`N` samples.
    :param dict metrics: name of each metric to its best value: infinity if higher is better, minus
        infinity if lower is, and 1 for the contrast recovery.
    :param dict description: what was evaluated, in words and fingerprints.
    :param list digests: fingerprint of each sample's data.
    :param bool model_in_train_mode: whether the model came in training mode.
    :param float seconds: time that the evaluation took, interruptions left out.

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

    conditions: list[Condition]
    values: dict[str, Columns]
    metrics: dict[str, float]
    description: dict[str, str]
    digests: list[str]
    model_in_train_mode: bool
    seconds: float

    @property
    def flags(self) -> dict[str, dict[str, int]]:
        r"""
        What should make one doubt the numbers: name to condition to number of samples.

        The names are those of :class:`AttackResult`, of the search that won for a sample; also
        ``random_beats_attack``, a random perturbation of the average case harms more than what the
        attack found; ``peak_exceeded``, truths whose range is larger than the peak of a metric; the
        name of a metric with ``undefined``, samples that :meth:`defined` leaves out; and
        ``model_in_train_mode``, a warning only, as the model was evaluated in evaluation mode. Only
        flags that were raised are listed.
        """
        raised: dict[str, dict[str, int]] = {}
        if self.model_in_train_mode:
            raised["model_in_train_mode"] = {"all": len(self.digests)}
        for label, columns in self.values.items():
            for name, values in columns.items():
                if values.dtype == torch.bool and values.any():
                    raised.setdefault(name, {})[label] = int(values.sum())
        return raised

    @property
    def records(self) -> list[dict[str, str | int | float | bool]]:
        """One dictionary for each condition and sample."""
        return [
            {"condition": label, "sample": i}
            | {name: values[i].item() for name, values in columns.items()}
            for label, columns in self.values.items()
            for i in range(len(self.digests))
        ]

    def defined(self, label: str, name: str) -> torch.Tensor:
        r"""
        The samples that have a value of a metric.

        Some have none, whatever the network: a blank truth has no NMSE, and a perfect
        reconstruction no finite PSNR. They are left out of the statistics, and :attr:`flags` count
        them. A value that is not finite for another reason is the network's, and counts.

        :param str label: label of a condition.
        :param str name: name of a metric.
        :return: (:class:`torch.Tensor`) boolean, shape `(N,)`.
        """
        whole = torch.zeros(len(self.digests), dtype=torch.bool)
        return ~self.values[label].get(f"{name}{UNDEFINED}", whole)

    def summary(self) -> list[dict[str, str | float]]:
        r"""
        The statistics of each metric under each condition.

        ``percentile`` is the value that 5 % of the samples are worse than, ``worst`` the worst, and
        ``low`` and ``high`` the 95 % bootstrap interval of the mean over the samples: percentiles
        of 2000 means, expanded for small samples after Hesterberg (The American Statistician 69,
        2015). For a single sample it is NaN.

        :return: (:class:`list`) of dictionaries with ``metric``, ``condition``, the mean radius in
            three units, and the five statistics.
        """
        rows = []
        for name, best in self.metrics.items():
            for condition in self.conditions:
                columns = self.values[condition.label]
                if name not in columns:
                    continue
                values = columns[name][self.defined(condition.label, name)]
                if not len(values):
                    values = torch.tensor([math.nan])
                order = values[badness(values, best).argsort()]
                low, high = bootstrap_interval(values)
                rows.append(
                    {"metric": name, "better": better(best)}
                    | {"condition": condition.kind}
                    | {u: columns[u].nanmean().item() for u in UNITS if u in columns}
                    | {"mean": mean(values), "low": low, "high": high}
                    | {"percentile": order[math.ceil(0.95 * (len(order) - 1))].item()}
                    | {"worst": order[-1].item()}
                )
        return rows

    def table(self, format: str = "text") -> str:
        r"""
        The statistics of :meth:`summary` with what they rest on and the flags; for ``"csv"`` the
        statistics alone.

        :param str format: ``"text"``, ``"markdown"`` or ``"csv"``. Default: ``"text"``.
        :return: (:class:`str`) the table.
        :raises ValueError: if the format is unknown.
        """

        def shown(row: dict) -> dict[str, str]:
            return {u: f"{row[u]:.4g}" if u in row else "" for u in UNITS} | {
                "mean": f"{row['mean']:.4g}",
                "95% interval": interval(row),
                "5% are worse than": f"{row['percentile']:.4g}",
                "worst": f"{row['worst']:.4g}",
            }

        table = rendered(self.summary(), shown, format)
        if format == "csv":
            return table
        bullet = "- " if format == "markdown" else ""
        notes = [bullet + note for note in self._notes()]
        return "\n".join([table, "", *notes])

    def plot(
        self,
        path: str | os.PathLike | None = None,
        metrics: Sequence[str] = (ERROR, "PSNR"),
    ):
        r"""
        The security curves: each metric against the radius, worst case and random perturbations of
        the same norm, with the 95 % interval of the mean.

        :param str, os.PathLike, None path: file to write. Default: ``None``, none.
        :param Sequence[str] metrics: names of metrics; those the report has not are left out.
            Default: squared error and PSNR.
        :return: (:class:`matplotlib.figure.Figure`) the figure.
        :raises ValueError: if no radius was evaluated, or the report has none of the metrics.
        """
        # Matplotlib is an optional extra, and slow to import
        import matplotlib.pyplot as plt

        names = [name for name in metrics if name in self.metrics]
        if not names:
            raise ValueError(
                f"metrics must be among {list(self.metrics)}, got {list(metrics)}."
            )
        if all(condition.eps is None for condition in self.conditions):
            raise ValueError("plot needs radii: evaluate with epsilons, got none.")
        figure, axes = plt.subplots(
            1,
            len(names),
            figsize=(4.4 * len(names), 3.4),
            squeeze=False,
            layout="constrained",
        )
        summary = self.summary()
        for ax, name in zip(axes[0], names, strict=True):
            rows = [row for row in summary if row["metric"] == name]
            # Okabe and Ito's colours, and markers for those who see none
            for kind, color, style in (
                ("average case", "#0072B2", "s--"),
                ("worst case", "#D55E00", "o-"),
            ):
                curve = [row for row in rows if row["condition"] == kind]
                if all(row["eps"] > 0 for row in curve):
                    curve.insert(0, rows[0] | {"eps": 0.0})
                eps, mean, low, high = (
                    [row[key] for row in curve]
                    for key in ("eps", "mean", "low", "high")
                )
                legend = "random, equal norm" if kind == "average case" else kind
                ax.plot(eps, mean, style, color=color, label=legend, markersize=4)
                ax.fill_between(eps, low, high, color=color, alpha=0.2, linewidth=0)
            ax.set(
                xlabel=r"radius $\varepsilon$ of the perturbation",
                ylabel=f"{name} [dB]" if "PSNR" in name else name,
            )
            ax.margins(x=0.02)
            ax.grid(alpha=0.3)
            ax.spines[["top", "right"]].set_visible(False)
        axes[0, 0].legend(frameon=False)
        figure.suptitle(
            f"{len(self.digests)} samples, mean and 95% interval", fontsize="medium"
        )
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure

    def to_csv(self, path: str | os.PathLike) -> None:
        r"""
        Write :attr:`records`, all digits of them; flags as 0 and 1, and nothing where a condition
        has no such column.

        :param str, os.PathLike path: file to write.
        """
        with open(path, "w", newline="", encoding="utf-8") as file:
            write_csv(file, self.records)

    def compare(self, other: RobustnessReport) -> RobustnessComparison:
        r"""
        Compare with another model, on the same data under the same conditions: a paired bootstrap
        over the samples.

        ``"better"`` means that the 95 % interval of the mean difference lies on this report's side
        of zero, ``"worse"`` on the other's, and anything else is ``"undecided"``, also fewer than 6
        samples. Both models are taken as they are: what another training seed would give, only more
        training seeds tell. No correction is made for the number of rows.

        :param RobustnessReport other: the other model's report.
        :return: (:class:`RobustnessComparison`) the differences, this report's values minus the
            other's; for the contrast recovery, of its distance to 1.
        :raises TypeError: if ``other`` is no report.
        :raises ValueError: if the data, the conditions, the attack, the metrics or the seed differ.
        """
        if not isinstance(other, RobustnessReport):
            raise TypeError(
                f"other must be a RobustnessReport, got {type(other).__name__}."
            )
        ours, theirs = self.description, other.description
        differ = [k for k in ours if k not in PER_MODEL and ours[k] != theirs[k]]
        if self.digests != other.digests:
            differ.append("data")
        if differ:
            raise ValueError(
                "reports must be of the same data, conditions and attack, but they differ in "
                f"{', '.join(differ)}: evaluate both models with the same arguments."
            )
        rows = []
        for name, best in self.metrics.items():
            for label, columns in self.values.items():
                if name in columns:
                    kept = self.defined(label, name) & other.defined(label, name)
                    a, b = columns[name][kept], other.values[label][name][kept]
                    row = {"metric": name, "better": better(best), "condition": label}
                    rows.append(row | paired(a, b, best))
        return RobustnessComparison(rows)

    def _notes(self) -> list[str]:
        """What the numbers rest on, and what casts doubt on them."""
        count = len(self.digests)
        cost = {
            label: int(columns["gradients"].max())
            for label, columns in self.values.items()
            if "gradients" in columns
        }
        notes = [
            f"{count} samples, {self.seconds:.1f} s on {self.description['device']}"
        ]
        told = ("attack", "objective", "peak", "draws", "seed")
        notes += [f"{k}: {self.description[k]}" for k in told]
        if cost:
            each = ", ".join(f"{n} ({label})" for label, n in cost.items())
            notes.append(f"gradients per sample: {each}")
        notes.append(f"deepinv {deepinv.__version__}, torch {torch.__version__}")
        for name, where in self.flags.items():
            counts = ", ".join(f"{n} of {count} ({at})" for at, n in where.items())
            notes.append(f"FLAG {name}: {counts}")
        return notes if self.flags else [*notes, "no flags raised"]

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return (
            f"RobustnessReport({len(self.digests)} samples, "
            f"conditions={[condition.label for condition in self.conditions]}, "
            f"metrics={list(self.metrics)}, flags={list(self.flags)})"
        )
