r"""Reconstructions side by side, clean and attacked, as images or as points of the plane."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from deepinv.utils.signals import complex_abs
from torchvision.transforms.functional import center_crop

from ..training.history import COLOURS, MARKERS
from .results import CLEAN, Results
from .words import name_of, value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass
class Panel:
    """A reconstruction, the truth, and what to write above."""

    title: str
    image: torch.Tensor
    truth: torch.Tensor

    @property
    def error(self) -> torch.Tensor:
        """The difference, with its sign; of colours the mean of its magnitudes."""
        difference = self.image - self.truth
        return difference if len(difference) == 1 else difference.abs().mean(0, True)


def images(reports: dict[str, Results], samples: list[int], label: str) -> Figure:
    """For each sample some rows, and a column for the truth and for each network."""
    import matplotlib.pyplot as plt

    labels = list(dict.fromkeys([CLEAN, label]))
    shown = [
        [[_panel(report, at, i) for report in reports.values()] for at in labels] for i in samples
    ]
    panels = [panel for rows in shown for row in rows for panel in row]
    if len({panel.truth.shape for panel in panels}) > 1:
        raise ValueError("samples must be of one size to share their scales, got several.")
    scales = _scales(panels)
    height, width = panels[0].truth.shape[1:]
    lines, columns, side = len(labels) + 2, len(reports) + 1, 1.7
    tall = len(samples) * (lines * side * min(2.0, height / width) + 1.0)
    figure = plt.figure(figsize=(side * columns + 1.0, tall), layout="constrained")
    axes = figure.subplots(lines * len(samples), columns, squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    texts = [_name(reports, at) for at in labels] + ["error of the row above", "enlarged"]
    for rows, grid in zip(shown, axes.reshape(len(samples), lines, -1), strict=True):
        for ax, text in zip(grid[:, 0], texts, strict=True):
            ax.set_ylabel(textwrap.fill(text, 22), fontsize="small")
        _sample(grid, rows, list(reports), *scales)
    return figure


def _sample(grid, rows: list[list[Panel]], names: list[str], greys: dict, errors: dict) -> None:
    """All networks on one sample: under each condition, the errors under the last, enlarged."""
    from matplotlib.patches import Rectangle

    last = rows[-1]
    for line, row in zip(grid, rows, strict=False):
        _show(line[0], row[0].truth, "truth", greys)
        for ax, name, panel in zip(line[1:], names, row, strict=True):
            head = f"{textwrap.fill(name, 20)}\n" if row is rows[0] else ""
            image = _show(ax, panel.image, f"{head}{panel.title}".strip(), greys)
    signed = errors["vmin"] < 0
    for ax, panel in zip(grid[-2, 1:], last, strict=True):
        fault = _show(ax, panel.error if signed else panel.error.abs(), "", errors)
    _bar(grid[-2, -1], fault, "both" if signed else "max")
    if len(last[0].image) == 1:
        _bar(grid[0, -1], image, "neither")
    # An edit of the truth is what one wants to see, else the largest errors
    truth = last[0].truth
    moved = truth - rows[0][0].truth
    shown = ([moved],) if moved.any() else ([panel.error for panel in last], truth)
    top, left, tall, wide = _largest(*shown)
    corner = left - 0.5, top - 0.5
    images = [truth, *(panel.image for panel in last)]
    for above, ax, image in zip(grid[-3], grid[-1], images, strict=True):
        for color, width in (("white", 2.4), (COLOURS[1], 1.2)):  # seen on any image
            above.add_patch(Rectangle(corner, wide, tall, fill=False, ec=color, lw=width))
        _show(ax, image[:, top : top + tall, left : left + wide], "", greys)


def _bar(ax: Axes, image, extend: str) -> None:
    place = ax.inset_axes((1.05, 0.05, 0.06, 0.9))
    bar = ax.figure.colorbar(image, cax=place, extend=extend)
    bar.ax.tick_params(labelsize="small")
    bar.outline.set_visible(False)


def _panel(report: Results, label: str, number: int) -> Panel:
    metric = report.shown(None)[0]
    text = value(metric, report.values[label][metric][number].item())
    pair = report.pictures[label]
    truth, image = (_displayed(pair[k][number], report.complex_abs) for k in ("x", "x_net"))
    # The middle part that both have
    size = [*map(min, truth.shape[1:], image.shape[1:])]
    return Panel(text, center_crop(image, size), center_crop(truth, size))


def _displayed(sample: torch.Tensor, pairs: bool) -> torch.Tensor:
    """A sample as one channel, or as three of colour."""
    if sample.ndim == 4:
        sample = sample[:, sample.shape[1] // 2]
    if sample.ndim != 3:
        raise ValueError(
            "images shows images (B, C, H, W), volumes (B, C, D, H, W) and points (B, 2), got "
            f"samples of shape {tuple(sample.shape)}."
        )
    if sample.is_complex() or (pairs and len(sample) == 2):
        sample = complex_abs(sample, dim=0, keepdim=True)
    if len(sample) not in (1, 3):
        sample = sample.mean(0, keepdim=True)
    return sample.float()


def _scales(panels: list[Panel]) -> tuple[dict, dict]:
    """The grey scale of all images, and the colours of all errors."""
    truth = torch.stack([panel.truth for panel in panels])
    high = truth.abs().max().item() or 1.0
    signed = truth.shape[1] == 1 and truth.min().item() < -0.1 * high
    # A few pixels far off would darken all others
    worst = _size(torch.stack([panel.error for panel in panels]), 0.998) or 1.0
    if signed:
        # Reflections are few and strong
        high = _size(truth, 0.995) or high
    greys = {"cmap": "gray", "vmin": -high if signed else 0.0, "vmax": high}
    cmap, low = ("RdBu_r", -worst) if signed else ("magma", 0.0)
    return greys, {"cmap": cmap, "vmin": low, "vmax": worst}


def _size(images: torch.Tensor, share: float) -> float:
    """The magnitude that this share of the finite pixels does not exceed."""
    sizes = images[images.isfinite()].abs().sort().values
    return sizes[int(share * (len(sizes) - 1))].item() if len(sizes) else 0.0


def _show(ax: Axes, image: torch.Tensor, title: str, style: dict):
    ax.set_title(title, fontsize="small")
    if len(image) == 3:
        colours = (image / style["vmax"]).clamp(0, 1).movedim(0, -1)
        return ax.imshow(colours.numpy(), interpolation="nearest")
    return ax.imshow(image[0].numpy(), interpolation="nearest", **style)


def _largest(images: list[torch.Tensor], truth: torch.Tensor | None = None) -> tuple[int, ...]:
    """
    Top, left, height and width of the part with the largest squares; with a truth, times its
    contrast there, as an empty corner shows little.
    """
    energy = torch.stack(images).square().sum((0, 1))[None].nan_to_num(0.0, posinf=0.0)
    tall, wide = (min(n, max(8, n // 4)) for n in energy.shape[1:])
    mean = torch.nn.AvgPool2d((tall, wide), stride=1)
    sums = mean(energy)[0]
    if truth is not None:
        grey = truth.mean(0, keepdim=True)
        contrast = (mean(grey.square()) - mean(grey).square()).clamp_min(0).sqrt()[0]
        sums = sums * contrast if (sums * contrast).any() else sums
    # Of equal ones the middle is the mean place: each pixel of the part counts
    top, left = (sums >= 0.999 * sums.max()).nonzero().double().mean(0).round().int().tolist()
    return top, left, tall, wide


def _name(reports: dict[str, Results], label: str) -> str:
    """A condition as tables call it."""
    first = next(iter(reports.values()))
    return next(name_of(first, c) for c in first.conditions if c.label == label)


def points(reports: dict[str, Results], samples: list[int], label: str) -> Figure:
    """A panel for each network: truths, clean and attacked points, and lines for their errors."""
    import matplotlib.pyplot as plt
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    count = len(reports)
    columns = 2 if count == 4 else min(count, 3)
    lines = math.ceil(count / columns)
    size = 2.6 * columns + 0.6, 2.8 * lines + 0.6
    figure = plt.figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.1))
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    named, every = _name(reports, label), []
    for ax, (name, report) in zip(axes.flat, reports.items(), strict=False):
        kept = report.pictures
        truth, clean, attacked = (
            torch.stack([images[i] for i in samples])
            for images in (kept[label]["x"], kept[CLEAN]["x_net"], kept[label]["x_net"])
        )
        if truth.shape[1:] != (2,):
            raise ValueError(
                f"images shows points (B, 2) of the plane, got {truth.shape[1]} coordinates."
            )
        every += [truth, clean, attacked]
        # One line, broken between points
        ends = torch.stack([truth, attacked, torch.full_like(truth, math.nan)], 1)
        ax.plot(*ends.flatten(0, 1).T.numpy(), color="#999999", linewidth=0.5, zorder=1)
        for part, text, color, marker, area in (
            (clean, "clean", COLOURS[0], MARKERS[0], 14),
            (attacked, named, COLOURS[1], MARKERS[2], 14),
            (truth, "truth", "#000000", "+", 60),
        ):
            ax.scatter(*part.T.numpy(), s=area, c=color, marker=marker, label=text, zorder=2)
        metric = report.shown(None)[0]
        before, after = (report.scores(at, metric).mean().item() for at in (CLEAN, label))
        text = f"{value(metric, before)} → {after:.3g}"
        ax.set_title(f"{name}\n{text}".strip(), fontsize="small")
        ax.set_aspect("equal")
        ax.grid(alpha=0.3, linewidth=0.6)
        ax.tick_params(labelsize="small")
    placed = torch.cat(every)
    low, high = placed[placed.isfinite().all(1)].aminmax(dim=0)
    middle, half = ((low + high) / 2).tolist(), 0.55 * (high - low).max().item()
    across, up = ((centre - half, centre + half) for centre in middle)
    axes[0, 0].set(xlim=across, ylim=up)
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    shown = axes[0, 0].get_legend_handles_labels()
    figure.legend(*shown, loc="outside lower center", ncol=3, frameon=False, fontsize="small")
    return figure
