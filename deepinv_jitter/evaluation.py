r"""
One call that measures how robust a model is, and a report one can trust.

Every sample goes through the same conditions: clean measurements, random and worst-case
perturbations of growing size, and edited truths. Its numbers depend on the sample, the model and
the seed alone: not on the batch it is in, nor on what was evaluated before it.
"""

from __future__ import annotations

import copy
import csv
import hashlib
import io
import math
import operator
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from numbers import Integral, Real
from pathlib import Path
from random import Random
from statistics import NormalDist

import deepinv
import torch
from deepinv.datasets.base import batch_as_dict
from deepinv.loss.metric import NMSE, PSNR, SSIM, Metric
from deepinv.physics import GaussianNoise, LinearPhysics, Physics
from torch import nn
from tqdm import tqdm

from .attacks import APGDAttack, Attack, PGDAttack, PowerAttack, RandomAttack, WorstCase
from .budgets import Budget, L2Ball, column
from .iterators import no_jitter
from .metrics import PaperPSNR, PaperSSIM
from .shifts import Shift, contrast_recovery, error_outside

ERROR = "squared error"
RECOVERY = "contrast recovery"
OUTSIDE = "error outside"
WORST_DRAW = "worst draw"
UNITS = ("eps", "eps/|y|", "eps/|noise|")

#: The attacks that have a name. The radius is set by the sweep.
PRESETS: dict[str, Callable[[Budget], Attack]] = {
    "quick": lambda ball: PowerAttack(ball, steps=10),
    "standard": lambda ball: WorstCase(
        [APGDAttack(ball, steps=100), PowerAttack(ball, steps=20), RandomAttack(ball)]
    ),
    "paper": lambda ball: PGDAttack.paper(ball.radius),
}

RESAMPLES = 2000
#: With fewer samples a difference of the same sign in all of them is likelier than 5 % by chance.
FEWEST = 6
FORMATS = ("text", "markdown", "csv")

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


def evaluate_robustness(
    model: nn.Module,
    dataloader: Iterable,
    physics: Physics,
    *,
    epsilons: Iterable[float],
    attacks: str | Attack | Sequence[Attack] = "standard",
    metrics: dict[str, Metric] | None = None,
    shifts: Shift | Sequence[Shift] | dict[str, Shift] | None = None,
    draws: int = 32,
    state: str | os.PathLike | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    verbose: bool = True,
) -> RobustnessReport:
    r"""
    Measure the accuracy of a model on clean, randomly and adversarially perturbed measurements and
    on edited truths, sample by sample.

    The conditions:

    - ``clean``: :math:`H(y)`.
    - ``average case`` for each :math:`\varepsilon`: random perturbations of norm
      :math:`\varepsilon`, uniform on the sphere and on measured entries only; every metric is
      averaged over the draws.
    - ``worst case`` for each :math:`\varepsilon`, in increasing order: the attack from its own
      start, and again from what it found at the last :math:`\varepsilon`, rescaled. For each sample
      the worst of both and of the last perturbation itself is kept, so that the squared error
      cannot fall as :math:`\varepsilon` grows.
    - each shift: the truth :math:`x` becomes :math:`x + d` and the measurements of the linear
      physics :math:`y + Ad`, with the same mask and the same noise. Two more columns,
      ``contrast recovery`` and ``error outside``, tell whether the detail survived, see
      :func:`contrast_recovery` and :func:`error_outside`.

    Batches without measurements get them from the physics, each sample with noise of its own that
    follows from ``seed`` and the number of the sample: all models see the same measurements, in
    batches of any size. The data loader is iterated under ``seed`` too, so that one which shuffles
    has the same order each time.

    The model is evaluated in evaluation mode with jitter silent, mostly without gradients.
    Afterwards, also after an exception, its mode, the physics and its generators and the global
    random generators of torch are as before.

    :param torch.nn.Module model: reconstruction network :math:`H`, called as ``model(y, physics)``.
    :param Iterable dataloader: batches in any of deepinv's formats, with truths ``x``, shape `(B,
        ...)`, and optionally measurements ``y`` and ``params`` of the physics; a
        :class:`torch.utils.data.DataLoader` or a list.
    :param deepinv.physics.Physics physics: forward operator :math:`A` and noise.
    :param Iterable[float] epsilons: radii, not negative, in the unit of the attack's budget: by
        default the :math:`\ell_2` norm of the measurements' perturbation.
    :param str, Attack, Sequence[Attack] attacks: ``"quick"``, 10 steps of :class:`PowerAttack`;
        ``"standard"``, the worst of 100 steps of :class:`APGDAttack`, 20 of :class:`PowerAttack`
        and 100 random perturbations; ``"paper"``, :meth:`PGDAttack.paper` with 20 steps of
        :math:`\varepsilon/10`; an attack, or several, of which the worst counts. The radius of
        their budget is replaced, its ``relative_to`` stays. Default: ``"standard"``.
    :param dict[str, Metric], None metrics: names and metrics, each giving one value per sample.
        Default: ``None``, deepinv's PSNR and SSIM with peak 1 (of the magnitude of complex images)
        and NMSE, and the paper's definitions as columns of their own, :class:`PaperPSNR` and
        :class:`PaperSSIM`; SSIM for images of 11 pixels and more only, and no metric for points,
        whose norm may be zero. The squared error :math:`\|\hat x - x\|_2^2` always comes first.
    :param Shift, Sequence[Shift], dict[str, Shift], None shifts: edits of the truth, by name or
        not. Default: none.
    :param int draws: random perturbations per sample and radius. Default: 32.
    :param str, os.PathLike, None state: file that keeps the results after every batch and
        condition. A call with the same arguments goes on from there and gives, on the same machine,
        bit for bit what an uninterrupted one gives. Default: ``None``, no file.
    :param int seed: seed of measurements, random perturbations and the order of the loader.
        Default: 0.
    :param torch.device, str, None device: where batches are moved to; model and physics must be
        there. Default: ``None``, the device of the model.
    :param bool verbose: show progress and the time that remains. Default: ``True``.
    :return: (:class:`RobustnessReport`) all values of all samples.
    :raises TypeError: if an argument is of the wrong type, or shifts meet a physics that is not
        linear.
    :raises ValueError: if a number is out of range, a preset is unknown, the loader is empty, a
        batch has no truth, shapes do not match, or ``state`` belongs to another evaluation.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    >>> loader = torch.utils.data.DataLoader(dj.PointDataset(50), batch_size=50)
    >>> model = dj.UnfoldedGD(dj.PointMLP(), stepsize=0.5, max_iter=3)
    >>> report = dj.evaluate_robustness(
    ...     model, loader, physics, epsilons=[0.01, 0.1], attacks="quick",
    ...     shifts=dj.Bias((0.005, 0)), verbose=False)
    >>> [condition.label for condition in report.conditions]  # doctest: +NORMALIZE_WHITESPACE
    ['clean', 'average case, eps=0.01', 'average case, eps=0.1', 'worst case, eps=0.01',
     'worst case, eps=0.1', 'Bias(value=[0.005, 0.0])']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    if not isinstance(physics, Physics):
        raise TypeError(
            f"physics must be a deepinv Physics, got {type(physics).__name__}."
        )
    protocol = _Protocol(
        conditions=_conditions(epsilons, shifts, physics),
        attack=_attack(attacks),
        metrics=_checked_metrics(metrics),
        draws=_checked("draws", draws, 1),
        seed=_checked("seed", seed, 0),
    )
    tensors = chain(model.parameters(), physics.buffers(), [torch.empty(0)])
    device = torch.device(next(tensors).device if device is None else device)
    ledger = _Ledger(state, protocol.description(model, physics, device))
    in_train_mode = model.training
    with _untouched(model, physics), torch.no_grad():
        _fill(ledger, protocol, model, physics, dataloader, device, verbose)
    return RobustnessReport(
        conditions=protocol.conditions,
        values=ledger.values(),
        metrics=ledger.content["metrics"],
        description=ledger.content["description"],
        digests=[d for batch in ledger.batches for d in batch["digests"]],
        model_in_train_mode=in_train_mode,
        seconds=ledger.content["seconds"],
    )


@dataclass(repr=False, eq=False)
class RobustnessReport:
    r"""
    The values of every sample under every condition, as :func:`evaluate_robustness` gives them.

    Beside the metrics there are, for radii, columns ``eps``, ``eps/|y|`` and ``eps/|noise|``: the
    radius as it is, relative to the norm of the sample's measurements, and to the expected norm of
    the physics' Gaussian noise on the measured entries (NaN for other noise), all in the norm of
    the budget. ``worst draw`` is the largest squared error of the average case; ``|delta|`` the
    norm of the perturbation found, and ``gradients`` how many the search for it took.

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
        attack found, and ``model_in_train_mode``, a warning only, as the model was evaluated in
        evaluation mode. Only flags that were raised are listed.
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
                values = columns[name]
                order = values[_badness(values, best).argsort()]
                low, high = bootstrap_interval(values)
                rows.append(
                    {"metric": name, "better": _better(best)}
                    | {"condition": condition.kind}
                    | {u: _mean(columns[u]) for u in UNITS if u in columns}
                    | {"mean": _mean(values), "low": low, "high": high}
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
                "95% interval": _interval(row),
                "5% are worse than": f"{row['percentile']:.4g}",
                "worst": f"{row['worst']:.4g}",
            }

        table = _rendered(self.summary(), shown, format)
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
            _write_csv(file, self.records)

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
                    a, b = columns[name], other.values[label][name]
                    row = {"metric": name, "better": _better(best), "condition": label}
                    rows.append(row | _paired(a, b, best))
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
        notes += [f"{k}: {self.description[k]}" for k in ("attack", "draws", "seed")]
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


@dataclass(repr=False, eq=False)
class RobustnessComparison:
    r"""
    Differences between two reports, see :meth:`RobustnessReport.compare`; printing shows them.

    :param list rows: dictionaries with ``metric``, ``condition``, ``difference`` of the means,
        ``low`` and ``high`` of its 95 % interval, and ``verdict``.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    >>> first, second = (
    ...     dj.evaluate_robustness(
    ...         dj.UnfoldedGD(dj.PointMLP(), stepsize=s, max_iter=3), [torch.zeros(50, 2)], physics,
    ...         epsilons=[], verbose=False)
    ...     for s in (0.5, 0.5))
    >>> print(sorted(first.compare(second)["clean", "squared error"]))
    ['better', 'condition', 'difference', 'high', 'low', 'metric', 'verdict']
    """

    rows: list[dict[str, str | float]]

    def __getitem__(self, key: tuple[str, str]) -> dict[str, str | float]:
        """The row of a condition and a metric."""
        for row in self.rows:
            if (row["condition"], row["metric"]) == key:
                return row
        raise KeyError(key)

    def table(self, format: str = "text") -> str:
        r"""
        The rows as a table.

        :param str format: ``"text"``, ``"markdown"`` or ``"csv"``. Default: ``"text"``.
        :return: (:class:`str`) the table.
        :raises ValueError: if the format is unknown.
        """

        def shown(row: dict) -> dict[str, str]:
            return {
                "difference": f"{row['difference']:.4g}",
                "95% interval": _interval(row),
                "verdict": row["verdict"],
            }

        return _rendered(self.rows, shown, format)

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return f"RobustnessComparison({len(self.rows)} rows)"


def bootstrap_interval(
    values: torch.Tensor, *, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    r"""
    The 95 % interval of a mean: expanded percentiles of the means of resamples.

    :param torch.Tensor values: shape `(N,)`.
    :param int seed: seed of the resamples. Default: 0.
    :param int resamples: how many. Default: 2000.
    :return: (:class:`tuple`) both ends; NaN if there is one value only, or one that is not finite.
    """
    count = len(values)
    if count < 2 or not values.isfinite().all():
        return math.nan, math.nan
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(count, (resamples, count), generator=generator)
    means = values.double()[picks].mean(1)
    tail = _tail(count)
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=means.dtype))
    return low.item(), high.item()


# What belongs to one model, and may differ between reports that are compared
PER_MODEL = ("model", "device")


@dataclass
class _Protocol:
    """What is done to each sample."""

    conditions: list[Condition]
    attack: Attack
    metrics: dict[str, Metric] | None
    draws: int
    seed: int

    def metrics_for(self, x: torch.Tensor) -> dict[str, Metric]:
        """The metrics, or those that suit the data."""
        return _default_metrics(x) if self.metrics is None else self.metrics

    def description(
        self, model: nn.Module, physics: Physics, device: torch.device
    ) -> dict[str, str]:
        """Everything that the results depend on except the data, as text."""
        return {
            "conditions": ", ".join(condition.label for condition in self.conditions),
            "shifts": _describe([c.shift for c in self.conditions if c.shift]),
            "attack": _names(self.attack),
            "attack settings": _describe(self.attack),
            "metrics": _describe(self.metrics),
            "draws": str(self.draws),
            "seed": str(self.seed),
            "physics": _fingerprint(physics),
            "model": _fingerprint(model),
            "device": device.type,
        }


class _Bench:
    """A batch on which the conditions are tried, one by one."""

    def __init__(self, protocol, model, physics, x, y, start):
        self.protocol, self.model, self.physics = protocol, model, physics
        self.x, self.y, self.start = x, y, start
        self.metrics = protocol.metrics_for(x)
        self.x_clean = self.reconstruct(torch.zeros_like(y))

    def run(
        self, condition: Condition, done: dict[str, Columns], point: dict
    ) -> Columns:
        """The columns of a condition. The point is the worst so far, and is updated."""
        if condition.shift is not None:
            return self.shifted(condition.shift)
        if condition.kind == "average case":
            return self.average(condition.eps)
        if condition.kind == "worst case":
            return self.worst(condition.eps, done, point)
        return self.score(self.x_clean, self.x)

    def average(self, eps: float) -> Columns:
        budget, seed = self.protocol.attack.budget, self.protocol.seed
        radii = self.radii(eps)
        zero = budget.zero(self.y, self.physics)
        support = budget.support(self.y, self.physics)
        # A stream for each sample, the same for every radius
        generators = [
            torch.Generator().manual_seed(_seed(seed, "draw", self.start + i))
            for i in range(len(zero))
        ]
        rounds = []
        for _ in range(self.protocol.draws):
            drawn = [
                budget.random(
                    zero[i : i + 1], radii[i : i + 1], g, "sphere", support[i : i + 1]
                )
                for i, g in enumerate(generators)
            ]
            delta = budget.to_measurement(torch.cat(drawn), self.physics)
            rounds.append(self.score(self.reconstruct(delta), self.x))
        columns = {name: torch.stack([r[name] for r in rounds]) for name in rounds[0]}
        worst = columns[ERROR].amax(0)
        means = {name: values.mean(0) for name, values in columns.items()}
        return means | {WORST_DRAW: worst} | self.units(radii)

    def worst(self, eps: float, done: dict[str, Columns], point: dict) -> Columns:
        budget, radii = self.protocol.attack.budget, self.radii(eps)
        starts, gradients = [None], 0
        if point and point["eps"] > 0:
            starts.append(point["perturbation"] * (eps / point["eps"]))
        for init in starts:
            result = self.protocol.attack.run(
                self.model, self.x, self.y, self.physics, eps=radii, init=init
            )
            gradients += result.n_grad
            x_net = self.reconstruct(result.delta)
            found = {
                "perturbation": result.perturbation,
                "x_net": x_net,
                "error": _squared_error(x_net, self.x),
            } | {name: flag for name, flag in result.flags.items()}
            won = found["error"] > point["error"] if point else None
            for name, value in found.items():
                old = point.get(name, torch.zeros_like(value))
                point[name] = value if won is None else _where(won, value, old)
        point["eps"] = eps
        columns = self.score(point["x_net"], self.x) | self.units(radii)
        columns["|delta|"] = budget.norm(point["perturbation"]).double().cpu()
        columns["gradients"] = torch.full_like(columns[ERROR], gradients)
        rival = done[Condition("average case", eps).label][WORST_DRAW]
        columns["random_beats_attack"] = rival > columns[ERROR]
        flags = {
            k: v.cpu()
            for k, v in point.items()
            if getattr(v, "dtype", None) == torch.bool
        }
        return columns | flags

    def shifted(self, shift: Shift) -> Columns:
        x, region = shift(self.x, start=self.start)
        x_net = self.reconstruct(self.physics.A(x - self.x))
        detail = {
            RECOVERY: contrast_recovery(x_net, self.x_clean, x, self.x),
            OUTSIDE: error_outside(x_net, x, region),
        }
        return self.score(x_net, x) | {n: v.double().cpu() for n, v in detail.items()}

    def reconstruct(self, delta: torch.Tensor) -> torch.Tensor:
        r""":math:`H(y + \delta)`."""
        x_net = self.model(self.y + delta, self.physics)
        if x_net.shape != self.x.shape:
            raise ValueError(
                f"the reconstruction must have the shape of x, {tuple(self.x.shape)}, got "
                f"{tuple(x_net.shape)}."
            )
        return x_net

    def score(self, x_net: torch.Tensor, x: torch.Tensor) -> Columns:
        columns = {ERROR: _squared_error(x_net, x)}
        for name, metric in self.metrics.items():
            columns[name] = metric(x_net=x_net, x=x)
            if columns[name].shape != (len(x),):
                raise ValueError(
                    f"metric {name!r} must give one value per sample, shape ({len(x)},), got "
                    f"{tuple(columns[name].shape)}: set reduction=None."
                )
        return {name: values.double().cpu() for name, values in columns.items()}

    def radii(self, eps: float, **changes) -> torch.Tensor:
        """A radius in the unit of the attack's budget, or in another, as absolute ones."""
        budget = copy.copy(self.protocol.attack.budget)
        vars(budget).update(radius=eps, **changes)
        return budget.radii(self.y, self.physics)

    def units(self, radii: torch.Tensor) -> Columns:
        """The radii as they are and in the units of measurements and noise, NaN without such."""
        nan = torch.full_like(radii, math.nan)
        in_y = self.protocol.attack.budget.domain == "measurement"
        noisy = in_y and isinstance(
            getattr(self.physics, "noise_model", None), GaussianNoise
        )
        norm_y = self.radii(1.0, relative_to="y") if in_y else nan
        noise = self.radii(1.0, relative_to="noise") if noisy else nan
        values = (radii, radii / norm_y, radii / noise)
        return {u: v.double().cpu() for u, v in zip(UNITS, values, strict=True)}


class _Ledger:
    """The results so far, in memory and, if there is a path, in a file."""

    def __init__(self, path: str | os.PathLike | None, description: dict[str, str]):
        self.path = None if path is None else Path(path)
        self.content = {
            "description": description,
            "metrics": {},
            "batches": [],
            "point": {},
            "seconds": 0.0,
        }
        self.saved = time.monotonic()
        if self.path is not None and not self.path.parent.is_dir():
            raise ValueError(
                f"state must be a file in a folder that exists, got {str(path)!r}."
            )
        if self.path is not None and self.path.exists():
            self.content = _loaded(self.path, description)

    @property
    def batches(self) -> list[dict]:
        return self.content["batches"]

    def open(self, index: int, digests: list[str]) -> dict[str, Columns]:
        """What is known of a batch."""
        if index == len(self.batches):
            self.batches.append({"digests": digests, "results": {}})
            self.content["point"] = {}
        elif self.batches[index]["digests"] != digests:
            raise self.refusal(f"batch {index} holds other samples")
        return self.batches[index]["results"]

    def save(self) -> None:
        now = time.monotonic()
        self.content["seconds"] += now - self.saved
        self.saved = now
        if self.path is not None:
            # Another name in the same folder: replacing the file is one step, or none
            draft = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
            torch.save(self.content, draft)
            os.replace(draft, self.path)

    def values(self) -> dict[str, Columns]:
        first = self.batches[0]["results"]
        return {
            label: {
                name: torch.cat(
                    [batch["results"][label][name] for batch in self.batches]
                )
                for name in columns
            }
            for label, columns in first.items()
        }

    def refusal(self, reason: str) -> ValueError:
        return ValueError(
            f"state must be of this very evaluation, but in {str(self.path)!r} {reason}: use the "
            "same arguments and data to resume, or another file."
        )


def _loaded(path: Path, description: dict[str, str]) -> dict:
    """The content of a state, if it is of the evaluation so described."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        before = content["description"]
    except Exception as error:
        raise ValueError(
            f"state must be a file that evaluate_robustness wrote, got {str(path)!r}: delete it or "
            "use another name."
        ) from error
    differ = [key for key in description if before.get(key) != description[key]]
    if differ:
        raise ValueError(
            f"state must be of this very evaluation, but {str(path)!r} differs in "
            f"{', '.join(differ)}: use the same arguments to resume, or another file."
        )
    return content


def _fill(
    ledger: _Ledger,
    protocol: _Protocol,
    model: nn.Module,
    physics: Physics,
    dataloader: Iterable,
    device: torch.device,
    verbose: bool,
) -> None:
    """Try every condition on every batch that the ledger does not know yet."""
    start, count = 0, len(protocol.conditions)
    total = operator.length_hint(dataloader) * count or None
    with (
        _seeded(protocol.seed, device),
        tqdm(total=total, disable=not verbose, unit="condition") as bar,
    ):
        for index, batch in enumerate(dataloader):
            x, y, params = _unpacked(batch, device)
            done = ledger.open(index, _digests(x, y, params))
            todo = [c for c in protocol.conditions if c.label not in done]
            bar.update(count - len(todo))
            if todo:
                if y is None:
                    y = _measured(physics, x, params, protocol.seed, start)
                physics.update(**params)
                with _seeded(_seed(protocol.seed, "clean", start), device):
                    bench = _Bench(protocol, model, physics, x, y, start)
                ledger.content["metrics"] = _best_values(
                    bench.metrics, protocol.conditions
                )
                point = {
                    name: v.to(device) if isinstance(v, torch.Tensor) else v
                    for name, v in ledger.content["point"].items()
                }
            for condition in todo:
                bar.set_description(condition.label)
                # So that a resumed evaluation of a random model goes on as it would have
                with _seeded(_seed(protocol.seed, condition.label, start), device):
                    done[condition.label] = bench.run(condition, done, point)
                ledger.content["point"] = point
                ledger.save()
                bar.update()
            start += len(x)
    if start == 0:
        raise ValueError("dataloader must give at least one batch, got none.")
    if index + 1 < len(ledger.batches):
        raise ledger.refusal(
            f"are {len(ledger.batches)} batches instead of {index + 1}"
        )


@contextmanager
def _untouched(model: nn.Module, physics: Physics) -> Iterator[None]:
    """Evaluation mode without jitter; mode, physics and its generators come back."""
    modes = [(module, module.training) for module in model.modules()]
    # Physics are updated by replacing tensors: shallow copies bring back what was there, and cost
    # nothing, unlike physics.clone()
    parts = [(m, vars(m).copy(), m._buffers.copy()) for m in physics.modules()]
    states = [(g, g.get_state()) for g in _generators(physics)]
    try:
        model.eval()
        with no_jitter(model):
            yield
    finally:
        for module, training in modes:
            module.training = training
        for module, attributes, buffers in parts:
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)
        for generator, before in states:
            generator.set_state(before)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """The global generators of torch from a seed on, and back."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _measured(
    physics: Physics, x: torch.Tensor, params: dict, seed: int, start: int
) -> torch.Tensor:
    """Measurements, sample by sample, so that noise does not depend on the batch."""
    measurements = []
    for i in range(len(x)):
        physics.update(
            **{name: _row(value, i, len(x)) for name, value in params.items()}
        )
        own = _seed(seed, "noise", start + i)
        for generator in _generators(physics):
            generator.manual_seed(own)
        with _seeded(own, x.device):
            y = physics(x[i : i + 1])
        if not isinstance(y, torch.Tensor) or len(y) != 1:
            got = tuple(y.shape) if isinstance(y, torch.Tensor) else type(y).__name__
            raise ValueError(
                f"the physics must measure samples one by one, as a tensor, got {got} for one "
                "sample: give its parameters with the batches, as params, or give y."
            )
        measurements.append(y)
    return torch.cat(measurements)


def _row(value: object, i: int, count: int) -> object:
    """The share of one sample in a parameter of a batch."""
    batched = isinstance(value, torch.Tensor) and value.ndim and len(value) == count
    return value[i : i + 1] if batched else value


def _generators(physics: Physics) -> Iterator[torch.Generator]:
    for module in physics.modules():
        for value in vars(module).values():
            if isinstance(value, torch.Generator):
                yield value


def _unpacked(
    batch: object, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor | None, dict]:
    """Truth, measurements if any, and parameters of the physics."""
    batch = batch_as_dict(batch)
    x, y, params = batch.get("x"), batch.get("y"), batch.get("params") or {}
    if x is None:
        raise ValueError(
            "every batch needs the truth x, which errors are measured against, got "
            f"{sorted(batch)}."
        )
    for name, value in {"x": x, "y": x if y is None else y}.items():
        if not isinstance(value, torch.Tensor):
            raise TypeError(
                f"{name} must be a torch.Tensor, got {type(value).__name__}."
            )
    params = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in params.items()
    }
    if y is not None and len(y) != len(x):
        raise ValueError(
            f"x and y must have one batch size, got {len(x)} and {len(y)} samples."
        )
    return x.to(device), None if y is None else y.to(device), params


def _digests(x: torch.Tensor, y: torch.Tensor | None, params: dict) -> list[str]:
    """A fingerprint of the data of each sample."""
    return [
        _digest(
            x[i],
            *([] if y is None else [y[i]]),
            *(_row(params[name], i, len(x)) for name in sorted(params)),
        )
        for i in range(len(x))
    ]


def _digest(*things: object) -> str:
    sha = hashlib.sha256()
    for thing in things:
        if isinstance(thing, torch.Tensor):
            sha.update(f"{tuple(thing.shape)} {thing.dtype}".encode())
            flat = thing.detach().cpu().contiguous().flatten()
            sha.update(flat.view(torch.uint8).numpy().tobytes())
        else:
            sha.update(repr(thing).encode())
    return sha.hexdigest()[:16]


def _fingerprint(module: nn.Module) -> str:
    """The kind of a module and its weights or buffers, as text."""
    # The host saves where a generator began; here all are seeded anew
    state = {
        name: value
        for name, value in module.state_dict().items()
        if not name.endswith("initial_random_state")
    }
    pairs = chain.from_iterable(sorted(state.items(), key=lambda item: item[0]))
    return f"{type(module).__name__} {_digest(str(module), *pairs)}"


def _describe(thing: object) -> str:
    """What something is made of, as text that is the same in another process."""
    if isinstance(thing, torch.Tensor):
        return _digest(thing)
    if isinstance(thing, dict):
        return f"{{{', '.join(f'{k}: {_describe(thing[k])}' for k in thing)}}}"
    if isinstance(thing, (list, tuple)):
        return f"[{', '.join(map(_describe, thing))}]"
    if isinstance(thing, nn.Module):
        parts = {k: v for k, v in vars(thing).items() if not k.startswith("_")}
        parts |= dict(thing.named_children()) | {
            "state": [*thing.state_dict().values()]
        }
        del parts["training"]
    elif isinstance(thing, (Budget, Shift)):
        parts = vars(thing)
    elif thing is None or isinstance(thing, (Real, str)):
        return repr(thing)
    else:
        return getattr(thing, "__qualname__", type(thing).__qualname__)
    return type(thing).__qualname__ + _describe(parts)


def _conditions(
    epsilons: Iterable[float],
    shifts: Shift | Sequence[Shift] | dict[str, Shift] | None,
    physics: Physics,
) -> list[Condition]:
    """All conditions, in the order in which they are tried."""
    if isinstance(epsilons, (Real, str)) or not isinstance(epsilons, Iterable):
        raise TypeError(f"epsilons must be a list of radii, got {epsilons!r}.")
    radii = sorted({float(eps) for eps in epsilons})
    if not all(math.isfinite(eps) and eps >= 0 for eps in radii):
        raise ValueError(f"epsilons must be finite and not negative, got {radii}.")
    if isinstance(shifts, Shift):
        shifts = [shifts]
    if not isinstance(shifts, dict):
        shifts = {repr(shift): shift for shift in shifts or []}
    for name, shift in shifts.items():
        if not isinstance(shift, Shift):
            raise TypeError(
                f"shifts must be made of Shifts, such as Bias, got {shift!r} for {name!r}."
            )
    if shifts and not isinstance(physics, LinearPhysics):
        raise TypeError(
            "shifts need a linear physics, as the noise is kept by y + A(d), got "
            f"{type(physics).__name__}."
        )
    conditions = [
        Condition("clean"),
        *(Condition("average case", eps) for eps in radii),
        *(Condition("worst case", eps) for eps in radii),
        *(Condition(name, shift=shift) for name, shift in shifts.items()),
    ]
    labels = [condition.label for condition in conditions]
    if len(set(labels)) < len(labels):
        raise ValueError(
            f"shifts must not be called like other conditions, got {labels}."
        )
    return conditions


def _attack(attacks: str | Attack | Sequence[Attack]) -> Attack:
    if isinstance(attacks, str):
        if attacks not in PRESETS:
            raise ValueError(
                f"attacks must be an attack, a list of them or one of {tuple(PRESETS)}, got "
                f"{attacks!r}."
            )
        return PRESETS[attacks](L2Ball(1.0))
    return attacks if isinstance(attacks, Attack) else WorstCase(attacks)


def _names(attack: Attack) -> str:
    """An attack in one line."""
    if isinstance(attack, WorstCase):
        return f"worst of {', '.join(map(_names, attack.attacks))}"
    return str(attack)


def _checked_metrics(metrics: dict[str, Metric] | None) -> dict[str, Metric] | None:
    if metrics is None:
        return None
    if not isinstance(metrics, dict):
        raise TypeError(
            "metrics must be a dictionary of names and deepinv metrics, got "
            f"{type(metrics).__name__}."
        )
    for name, metric in metrics.items():
        if not isinstance(metric, Metric):
            raise TypeError(
                f"metrics must be deepinv metrics, got {type(metric).__name__} for {name!r}: wrap "
                "a function as deepinv.loss.metric.Metric(function)."
            )
        if name in (ERROR, RECOVERY, OUTSIDE, WORST_DRAW, *UNITS):
            raise ValueError(
                f"metrics must not be called {name!r}, a column of its own."
            )
    return metrics


def _default_metrics(x: torch.Tensor) -> dict[str, Metric]:
    if x.ndim < 3:
        return {}
    magnitude = x.is_complex() or x.shape[1] == 2
    # The window of SSIM is 11 pixels wide
    wide = x.ndim == 4 and min(x.shape[-2:]) >= 11
    return (
        {"PSNR": PSNR(complex_abs=magnitude)}
        | ({"SSIM": SSIM(complex_abs=magnitude)} if wide else {})
        | {"NMSE": NMSE(), "PSNR (paper)": PaperPSNR()}
        | ({"SSIM (paper)": PaperSSIM()} if wide else {})
    )


def _best_values(
    metrics: dict[str, Metric], conditions: list[Condition]
) -> dict[str, float]:
    best = {ERROR: -math.inf}
    for name, metric in metrics.items():
        best[name] = -math.inf if metric.lower_better or metric.train_loss else math.inf
    if any(condition.shift is not None for condition in conditions):
        best |= {RECOVERY: 1.0, OUTSIDE: -math.inf}
    return best


def _badness(values: torch.Tensor, best: float) -> torch.Tensor:
    """The larger the worse."""
    if math.isfinite(best):
        return (values - best).abs()
    return -values if best > 0 else values


def _paired(a: torch.Tensor, b: torch.Tensor, best: float) -> dict[str, str | float]:
    """The difference of two models on the same samples, and what it allows to say."""
    worse_by = _badness(a, best) - _badness(b, best)
    low, high = bootstrap_interval(worse_by)
    verdict = "undecided"
    if len(a) >= FEWEST:
        verdict = "better" if high < 0 else "worse" if low > 0 else verdict
    if best == math.inf:
        worse_by, low, high = -worse_by, 0.0 - high, 0.0 - low
    return {
        "difference": _mean(worse_by),
        "low": low,
        "high": high,
        "verdict": verdict,
    }


def _tail(count: int) -> float:
    """The share of resamples beyond each end of the interval, smaller for few samples."""
    normal = NormalDist()
    z, nu = normal.inv_cdf(0.975), count - 1
    # Student's quantile by its expansion in 1 / nu (Abramowitz and Stegun, 26.7.5)
    t = z + (z**3 + z) / (4 * nu) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * nu**2)
    return normal.cdf(-t * math.sqrt(count / nu))


def _mean(values: torch.Tensor) -> float:
    return values.mean().item()


def _squared_error(x_net: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return (x_net - x).abs().double().square().flatten(1).sum(1)


def _where(chosen: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Samples of ``a`` where chosen, else of ``b``."""
    return torch.where(column(chosen, a), a, b)


def _seed(seed: int, purpose: str, number: int) -> int:
    """A seed for one purpose, unrelated to its neighbours."""
    return Random(f"{seed}, {purpose}, {number}").getrandbits(62)


def _checked(name: str, value: int, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r}.")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}.")
    return int(value)


def _better(best: float) -> str:
    if math.isfinite(best):
        return f"closer to {best:g}"
    return "higher" if best > 0 else "lower"


def _rendered(
    rows: list[dict], shown: Callable[[dict], dict[str, str]], format: str
) -> str:
    """A table for each metric, of the columns shown of each row; all of them for csv."""
    if format not in FORMATS:
        raise ValueError(f"format must be one of {FORMATS}, got {format!r}.")
    if format == "csv":
        file = io.StringIO()
        _write_csv(file, rows)
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


def _interval(row: dict) -> str:
    return f"[{row['low']:.4g}, {row['high']:.4g}]"


def _write_csv(file: io.TextIOBase, records: list[dict]) -> None:
    names = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow(
            {k: int(v) if isinstance(v, bool) else v for k, v in record.items()}
        )
