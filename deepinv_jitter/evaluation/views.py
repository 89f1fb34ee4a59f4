r"""What is drawn and written of one network or of several, in the same way."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import checks
from ..training.history import COLOURS, saved, style
from .pictures import images, points
from .results import CLEAN, RANDOM, WORST, Results
from .tables import as_csv
from .words import label_of, plural, unit_of, with_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


#: How the worst case is drawn, and how random perturbations are.
LINES: dict[str, dict[str, Any]] = {
    RANDOM: {"ls": (0, (4, 2)), "lw": 1.1, "ms": 4, "mfc": "white"},
    WORST: {"ls": "-", "lw": 1.6, "ms": 5},
}

#: What the horizontal axis shows, by the unit of the radius.
AXIS = {
    "noise": "size of the perturbation, in norms of the noise",
    "y": "size of the perturbation, in norms of the measurements",
    "measurement": r"norm $\varepsilon$ of the perturbation of the measurements",
    "image": r"norm $\varepsilon$ of the perturbation of the image",
}


class Views:
    r"""Curves, pictures and files of ``_networks``, results by their names, and of ``records``."""

    @property
    def _networks(self) -> dict[str, Results]:
        raise NotImplementedError

    @property
    def records(self) -> list[dict]:
        raise NotImplementedError

    def plot(
        self,
        path: str | os.PathLike | None = None,
        metrics: str | Sequence[str] | None = None,
        ax: Axes | None = None,
    ) -> Figure:
        r"""
        The security curves: a metric against the radius, under the worst case (solid) and random
        perturbations of the same norm (dashed), with the 95 % interval of the mean. Several
        networks share a pair of axes.

        Files are vector graphics if ``path`` says so (``.pdf``, ``.svg``), with text that can be
        edited and searched.

        :param str, os.PathLike, None path: file to write. Default: ``None``, none.
        :param str, Sequence[str], None metrics: names of metrics, a pair of axes each, or
            ``"all"``. Default: ``None``, the first that the table shows.
        :param matplotlib.axes.Axes, None ax: axes to draw into, for one metric. Default: ``None``,
            a new figure.
        :return: (:class:`matplotlib.figure.Figure`) the figure.
        :raises ValueError: if no radius was evaluated, a metric is unknown, or ``ax`` is given for
            several.
        """
        # Matplotlib is an optional extra, and slow to import
        import matplotlib.pyplot as plt

        reports = self._networks
        first = next(iter(reports.values()))
        if all(condition.eps is None for condition in first.conditions):
            raise ValueError("plot needs radii: evaluate with epsilons, got none.")
        # Scores of shifts have no radius
        asked = first.shown(metrics)[: 1 if metrics is None else None]
        names = [name for name in asked if name in first.values[CLEAN]]
        if not names or (metrics != "all" and names != asked):
            raise ValueError(
                f"metrics must be measured at every radius, got {asked}: scores of shifts are not."
            )
        if ax is not None and len(names) > 1:
            raise ValueError(f"ax is for one metric, got {len(names)} metrics, {names}.")
        axes: Any = [ax]
        if ax is None:
            figure = plt.figure(figsize=(4.8 * len(names), 3.6), layout="constrained")
            axes = figure.subplots(1, len(names), squeeze=False)[0]
            kind = " of the worst case" if len(reports) > 1 else ""
            text = f"mean of {plural(len(first.digests), 'sample')}, 95 % interval{kind}"
            figure.suptitle(text, fontsize="small")
        for axis, name in zip(axes, names, strict=True):
            _draw(axis, reports, name)
        _legend(axes[0], reports)
        return saved(axes[0].figure.figure, path)

    def images(
        self,
        samples: int | Sequence[int] | None = None,
        condition: str | None = None,
        path: str | os.PathLike | None = None,
    ) -> Figure:
        r"""
        The truth and what each network makes of it: clean, attacked by the perturbation found for
        it, the error of that, and the place where the errors are largest amid contrast, enlarged.
        All images share one scale, all errors another.

        Complex images, see ``metrics`` of :func:`evaluate_robustness`, are shown by their
        magnitude, images that change sign in grey around zero with errors in red and blue, images
        of three channels in colour, others by the mean of their channels, volumes by their middle
        slice, and points of the plane as such.

        :param int, Sequence[int], None samples: how many, or which of those that the evaluation
            kept (its argument ``pictures``), from 0. Default: ``None``, one image, or all points.
        :param str, None condition: the condition that is called attacked above, by its label, such
            as ``"worst case, eps=1"`` or that of a shift, or as tables call it. Default: ``None``,
            the worst case nearest to the noise, or of the largest radius.
        :param str, os.PathLike, None path: file to write, see :meth:`plot`. Default: ``None``.
        :return: (:class:`matplotlib.figure.Figure`) the figure.
        :raises ValueError: if there are no such samples, no such condition or no pictures.
        """
        reports = self._networks
        first = next(iter(reports.values()))
        if condition is None:
            condition = (first.attacked() or first.conditions[-1]).label
        condition = label_of(first, condition)
        for name, report in reports.items():
            if condition not in report.pictures or CLEAN not in report.pictures:
                raise ValueError(
                    f"images needs pictures of {condition!r}, but {name or 'the report'!r} has "
                    "none: evaluate with pictures of at least 1."
                )
        kept = min(len(report.pictures[condition]["x"]) for report in reports.values())
        flat = first.pictures[condition]["x"][0].ndim == 1
        if samples is None:
            samples = kept if flat else 1
        if not isinstance(samples, Sequence):
            samples = range(checks.whole("samples", samples, 1))
        shown = [checks.whole("samples", i, 0) for i in samples]
        if not shown or max(shown) >= kept:
            raise ValueError(
                f"samples must be among the {kept} that the evaluation kept, got {shown}: "
                "evaluate with more pictures."
            )
        draw = points if flat else images
        return saved(draw(reports, shown, condition), path)

    def to_csv(self, path: str | os.PathLike) -> None:
        r"""
        Write ``records``, the values of all samples, all digits of them; flags as 0 and 1, and
        nothing where a condition has no such column.

        :param str, os.PathLike path: file to write.
        """
        Path(path).write_text(as_csv(self.records), encoding="utf-8", newline="")


def _draw(ax: Axes, reports: dict[str, Results], metric: str) -> None:
    for number, report in enumerate(reports.values()):
        own = style(number)
        for kind, line in LINES.items():
            radii = {c.eps: c.label for c in report.conditions if c.kind == kind and c.eps}
            # Without a perturbation it is clean
            found = [report.estimate(at, metric) for at in (CLEAN, *radii.values())]
            means, low, high = ([row[k] for row in found] for k in ("mean", "low", "high"))
            eps = [0.0, *radii]
            ax.plot(eps, means, zorder=3, **own, **line)
            if len(reports) == 1:
                ax.fill_between(eps, low, high, color=own["color"], alpha=0.15, linewidth=0)
            elif kind == WORST:
                # Bands would hide each other, bars beside each other do not
                apart = 0.012 * max(eps) * (number - (len(reports) - 1) / 2)
                at = [e + apart for e in eps]
                ax.vlines(at, low, high, color=own["color"], linewidth=1.0, alpha=0.7)
    first = next(iter(reports.values()))
    ax.set(xlabel=AXIS[unit_of(first)], ylabel=with_unit(metric))
    ax.margins(x=0.03)
    ax.grid(alpha=0.3, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)


def _legend(ax: Axes, reports: dict[str, Results]) -> None:
    """The networks by colour and marker, and what solid and dashed lines are."""
    from matplotlib.lines import Line2D

    names = enumerate(filter(None, reports))
    entries = [Line2D([], [], **style(number), label=name) for number, name in names]
    plain = "#444444" if entries else COLOURS[0]
    for label, kind in {"worst case": WORST, "random, equal norm": RANDOM}.items():
        entries.append(Line2D([], [], color=plain, ls=LINES[kind]["ls"], label=label))
    ax.legend(handles=entries, frameon=False, fontsize="small")
