r"""Points of the plane: where networks bring them, clean and attacked."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from .plots import COLOURS, MARKERS
from .results import CLEAN, Results
from .statistics import mean
from .words import name_of, value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


#: Points of the plane, shape `(N, 2)`: truths, and reconstructions, clean and attacked.
Cloud = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def points(reports: dict[str, Results], samples: list[int], label: str) -> Figure:
    """A panel for each network: truths, clean and attacked points, and lines for their errors."""
    import matplotlib.pyplot as plt
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    clouds = {name: _cloud(report, samples, label) for name, report in reports.items()}
    every = torch.cat([part for cloud in clouds.values() for part in cloud])
    if every.shape[1:] != (2,):
        raise ValueError(
            f"images shows points (B, 2) of the plane, got {every.shape[1]} coordinates."
        )
    count = len(reports)
    columns = count if count <= 3 else min(math.ceil(math.sqrt(count)), 3)
    lines = math.ceil(count / columns)
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(2.6 * columns + 0.6, 2.8 * lines + 0.6),
        squeeze=False,
        sharex=True,
        sharey=True,
        layout=ConstrainedLayoutEngine(h_pad=0.1),
    )
    for ax, (name, report) in zip(axes.flat, reports.items(), strict=False):
        _scatter(ax, name, report, clouds[name], label)
    low, high = every.amin(0), every.amax(0)
    middle, half = ((low + high) / 2).tolist(), 0.55 * (high - low).max().item()
    limits = [(centre - half, centre + half) for centre in middle]
    axes[0, 0].set(xlim=limits[0], ylim=limits[1])
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc="outside lower center",
        ncol=3,
        frameon=False,
        fontsize="small",
    )
    return figure


def _scatter(ax: Axes, name: str, report: Results, cloud: Cloud, label: str) -> None:
    condition = next(c for c in report.conditions if c.label == label)
    truth, clean, attacked = cloud
    # One line, broken between points
    ends = torch.stack([truth, attacked, torch.full_like(truth, math.nan)], 1)
    ax.plot(*ends.flatten(0, 1).T.numpy(), color="#999999", linewidth=0.5, zorder=1)
    for part, text, color, marker, size in (
        (clean, "clean", COLOURS[0], MARKERS[0], 14),
        (attacked, name_of(condition, report), COLOURS[1], MARKERS[2], 14),
        (truth, "truth", "#000000", "+", 60),
    ):
        across, up = part.T.numpy()
        ax.scatter(across, up, s=size, c=color, marker=marker, label=text, zorder=2)
    metric = report.shown(None)[0]
    found = [mean(report.scores(at, metric)) for at in (CLEAN, label)]
    text = f"{value(metric, found[0])} → {found[1]:.3g}"
    ax.set_title(f"{name}\n{text}".strip(), fontsize="small")
    ax.set_aspect("equal")
    ax.grid(alpha=0.3, linewidth=0.6)
    ax.tick_params(labelsize="small")


def _cloud(report: Results, samples: list[int], label: str) -> Cloud:
    def stacked(at: str, part: str) -> torch.Tensor:
        return torch.stack([report.pictures[at][part][i] for i in samples])

    return stacked(label, "x"), stacked(CLEAN, "x_net"), stacked(label, "x_net")
