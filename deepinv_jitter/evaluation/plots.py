r"""Security curves: how metrics fall as perturbations grow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .results import CLEAN, RANDOM, WORST, Results
from .statistics import bootstrap_interval, mean
from .words import plural, unit_of, with_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's colours, which the colour-blind tell apart, and markers for print without colour.
COLOURS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"
MARKERS = "o", "s", "^", "D", "v", "P", "X", "*"

#: How the worst case is drawn, and how random perturbations are.
LINES: dict[str, dict[str, Any]] = {
    RANDOM: {"ls": (0, (4, 2)), "lw": 1.1, "ms": 4, "mfc": "white"},
    WORST: {"ls": "-", "lw": 1.6, "ms": 5},
}

#: Text stays text, which can be edited, searched and read aloud.
EDITABLE: Any = {"pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none"}

#: What the horizontal axis shows, by the unit of the radius.
AXIS = {
    "noise": "size of the perturbation, in norms of the noise",
    "y": "size of the perturbation, in norms of the measurements",
    "measurement": r"norm $\varepsilon$ of the perturbation of the measurements",
    "image": r"norm $\varepsilon$ of the perturbation of the image",
}


def curves(
    reports: dict[str, Results],
    metrics: str | Sequence[str] | None,
    path: str | os.PathLike | None,
    ax: Axes | None,
) -> Figure:
    """A pair of axes for each metric, with two lines for each network."""
    # Matplotlib is an optional extra, and slow to import
    import matplotlib.pyplot as plt

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
    figure: Any
    if ax is None:
        figure = plt.figure(figsize=(4.8 * len(names), 3.6), layout="constrained")
        axes = list(figure.subplots(1, len(names), squeeze=False)[0])
    else:
        figure, axes = ax.figure, [ax]
    for axis, name in zip(axes, names, strict=True):
        _draw(axis, reports, name)
    _legend(axes[0], reports)
    if ax is None:
        kind = " of the worst case" if len(reports) > 1 else ""
        text = f"mean of {plural(len(first.digests), 'sample')}, 95 % interval{kind}"
        figure.suptitle(text, fontsize="small")
    return saved(figure, path)


def saved(figure: Figure, path: str | os.PathLike | None) -> Figure:
    """The figure, written if there is a path, with text that stays text in vector graphics."""
    import matplotlib.pyplot as plt

    if path is not None:
        with plt.rc_context(EDITABLE):
            figure.savefig(path, dpi=200)
    return figure


def _draw(ax: Axes, reports: dict[str, Results], metric: str) -> None:
    for number, report in enumerate(reports.values()):
        color, marker = _style(number)
        for kind, style in LINES.items():
            eps, means, low, high = _curve(report, kind, metric)
            ax.plot(eps, means, color=color, marker=marker, zorder=3, **style)
            if len(reports) == 1:
                ax.fill_between(eps, low, high, color=color, alpha=0.15, linewidth=0)
            elif kind == WORST:
                # Bands would hide each other, bars beside each other do not
                apart = 0.012 * max(eps) * (number - (len(reports) - 1) / 2)
                at = [e + apart for e in eps]
                ax.vlines(at, low, high, color=color, linewidth=1.0, alpha=0.7)
    first = next(iter(reports.values()))
    ax.set(xlabel=AXIS[unit_of(first)], ylabel=with_unit(metric))
    ax.margins(x=0.03)
    ax.grid(alpha=0.3, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)


def _curve(report: Results, kind: str, metric: str) -> tuple[list[float], ...]:
    """Radii, and means with both ends of their intervals; without a perturbation it is clean."""
    labels = {0.0: CLEAN}
    for condition in report.conditions:
        if condition.kind == kind and condition.eps is not None:
            labels.setdefault(condition.eps, condition.label)
    columns = [report.scores(label, metric) for label in labels.values()]
    low, high = zip(*map(bootstrap_interval, columns), strict=True)
    return list(labels), list(map(mean, columns)), list(low), list(high)


def _style(number: int) -> tuple[str, str]:
    return COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]


def _legend(ax: Axes, reports: dict[str, Results]) -> None:
    """The networks by colour and marker, and what solid and dashed lines are."""
    from matplotlib.lines import Line2D

    entries = []
    for number, name in enumerate(filter(None, reports)):
        color, marker = _style(number)
        entries.append(Line2D([], [], color=color, marker=marker, label=name))
    plain = "#444444" if entries else COLOURS[0]
    for label, kind in {"worst case": WORST, "random, equal norm": RANDOM}.items():
        entries.append(Line2D([], [], color=plain, ls=LINES[kind]["ls"], label=label))
    ax.legend(handles=entries, frameon=False, fontsize="small")
