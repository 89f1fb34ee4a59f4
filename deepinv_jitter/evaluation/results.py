r"""What an evaluation measured of one network: values, flags, pictures and their statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..attacks.diagnostics import FLAGS
from .shifts import Shift
from .statistics import badness, better, bootstrap_interval

ERROR = "squared error"
OBJECTIVE = "objective"
RECOVERY = "contrast recovery"
OUTSIDE = "error outside"
WORST_DRAW = "worst draw"
TRAINING = "model_in_train_mode"

#: The kinds of conditions beside shifts, which have names of their own.
CLEAN, RANDOM, WORST = "clean", "random", "worst case"

#: The radius in the unit it was given in, as it is, and relative to measurements and noise.
UNITS = ("eps", "radius", "radius/|y|", "radius/|noise|")

#: What every network should beat: the column of its squared error, and its name.
REFERENCES = {
    "squared error of 0": "an all-zero image",
    "squared error of A'y": "A'y of the same measurements",
}

#: How the name of a column ends that says where a metric has no value.
UNDEFINED = " undefined"

#: The size of what was added to the measurements, relative to theirs and in the image.
SIZES = ("|dy|/|y|", "|A'dy|")

#: Names of columns, of tables too, which no metric may have.
RESERVED = (
    *("condition", "sample", "network"),
    *(ERROR, OBJECTIVE, RECOVERY, OUTSIDE, WORST_DRAW, *UNITS, *REFERENCES, *SIZES),
    *("|delta|", "gradients", *FLAGS, "random_beats_attack", "peak_exceeded"),
)

Columns = dict[str, torch.Tensor]


def agree(columns: Columns, others: Columns) -> bool:
    """Whether values that both have are the same, up to the rounding of another machine."""
    return all(
        torch.allclose(columns[name].double(), others[name].double(), 1e-4, 1e-8, equal_nan=True)
        for name in columns.keys() & others.keys()
    )


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
class Results:
    """The values of every sample under every condition; see :class:`RobustnessReport`."""

    conditions: list[Condition]
    values: dict[str, Columns]
    metrics: dict[str, float]
    description: dict[str, str]
    digests: list[str]
    model_in_train_mode: bool
    seconds: float
    pictures: dict[str, dict[str, list[torch.Tensor]]] = field(default_factory=dict)
    complex_abs: bool = False

    @property
    def flags(self) -> dict[str, dict[str, int]]:
        r"""
        What should make one doubt the numbers: name to condition to number of samples.

        The names are those of :class:`AttackResult`, of the search that won for a sample; also
        ``random_beats_attack``, a random perturbation of the same norm harms more than what the
        attack found; ``peak_exceeded``, truths whose range is larger than the peak of a metric; the
        name of a metric with ``undefined``, samples that :meth:`defined` leaves out; and
        ``model_in_train_mode``, a warning only, as the model was evaluated in evaluation mode. Only
        flags that were raised are listed.
        """
        raised: dict[str, dict[str, int]] = {}
        if self.model_in_train_mode:
            raised[TRAINING] = {"all": len(self.digests)}
        for label, columns in self.values.items():
            for name, values in columns.items():
                if values.dtype == torch.bool and values.any():
                    raised.setdefault(name, {})[label] = int(values.sum())
        return raised

    @property
    def worse_than(self) -> dict[str, list[str]]:
        r"""
        Where no network would be better than this one: reference to labels of conditions.

        By the mean squared error; the references are an image of zeros and, of linear physics,
        :math:`A^\top y` of the measurements that the model got, unless they are perfect themselves.
        """
        found: dict[str, list[str]] = {}
        for label, columns in self.values.items():
            for column, name in REFERENCES.items():
                if column in columns and 0 < columns[column].mean() < columns[ERROR].mean():
                    found.setdefault(name, []).append(label)
        return found

    @property
    def references(self) -> Columns:
        """The errors of what every network should beat, which the measurements alone decide."""
        return {k: v for k, v in self.values[CLEAN].items() if k in REFERENCES}

    @property
    def lower_bound(self) -> bool:
        """Whether the attack stops after a fixed number of steps, such as ``"quick"``."""
        return self.description.get("lower bound") == "True"

    @property
    def records(self) -> list[dict[str, Any]]:
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

        A blank truth has no NMSE, whatever the network, and a perfect reconstruction no finite
        PSNR. They are left out of the statistics, and :attr:`flags` count them. A value that is not
        finite for another reason is the network's, and counts.

        :param str label: label of a condition.
        :param str name: name of a metric.
        :return: (:class:`torch.Tensor`) boolean, shape `(N,)`.
        """
        none = torch.zeros(len(self.digests), dtype=torch.bool, device="cpu")
        return ~self.values[label].get(f"{name}{UNDEFINED}", none)

    def scores(self, label: str, name: str) -> torch.Tensor:
        """The values of a metric where it is defined; a single NaN if that is nowhere."""
        values = self.values[label][name][self.defined(label, name)]
        return values if len(values) else values.new_tensor([math.nan])

    def estimate(self, label: str, name: str) -> dict[str, float]:
        """The mean of a metric where it is defined, and both ends of its 95 % interval."""
        values = self.scores(label, name)
        low, high = bootstrap_interval(values)
        return {"mean": values.mean().item(), "low": low, "high": high}

    def shown(self, metrics: str | Sequence[str] | None) -> list[str]:
        """
        The metrics that a table shows; by default those of the evaluation, or else the squared
        error, and what the attack maximises if that is neither.
        """
        if metrics is None:
            detail = (ERROR, OBJECTIVE, RECOVERY, OUTSIDE)
            names = [name for name in self.metrics if name not in detail]
            names = names or [name for name in self.metrics if name == ERROR]
            return names + [name for name in self.metrics if name == OBJECTIVE]
        if isinstance(metrics, str):
            metrics = list(self.metrics) if metrics == "all" else [metrics]
        if unknown := [name for name in metrics if name not in self.metrics]:
            raise ValueError(
                f"metrics must be 'all' or among {list(self.metrics)}, got {unknown[0]!r}."
            )
        return list(metrics)

    def attacked(self) -> Condition | None:
        """The worst case of the radius nearest to the noise, or else of the largest, if any."""
        worst = [c for c in self.conditions if c.kind == WORST and c.eps]

        def distance(condition: Condition) -> float:
            ratio = self.radius(condition, "radius/|noise|")
            return abs(math.log(ratio)) if 0 < ratio < math.inf else 0.0

        # Where no noise tells them apart, the first is the largest
        return min(reversed(worst), key=distance, default=None)

    def radius(self, condition: Condition, unit: str) -> float:
        """The mean of a column that says a size, such as ``radius/|y|``; NaN without such a one."""
        columns = self.values[condition.label]
        return columns[unit].nanmean().item() if unit in columns else math.nan

    def summary(self) -> list[dict[str, str | float]]:
        r"""
        The statistics of each metric under each condition.

        ``percentile`` is the value that 5 % of the samples are worse than, ``worst`` the worst, and
        ``low`` and ``high`` the 95 % bootstrap interval of the mean over the samples: percentiles
        of 2000 means, expanded for small samples after Hesterberg (The American Statistician 69,
        2015). For a single sample it is NaN.

        :return: (:class:`list`) of dictionaries with ``metric``, ``condition``, the mean radius in
            all its units, and the five statistics.
        """
        rows = []
        for name, best in self.metrics.items():
            for condition in self.conditions:
                columns = self.values[condition.label]
                if name not in columns:
                    continue
                values = self.scores(condition.label, name)
                order = values[badness(values, best).argsort()]
                rows.append(
                    {"metric": name, "better": better(best)}
                    | {"condition": condition.kind}
                    | {u: self.radius(condition, u) for u in UNITS if u in columns}
                    | self.estimate(condition.label, name)
                    | {"percentile": order[math.ceil(0.95 * (len(order) - 1))].item()}
                    | {"worst": order[-1].item()}
                )
        return rows
