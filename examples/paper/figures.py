r"""The figures of the paper; those of single reconstructions are in a room of their own."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import reconstructions
import sweep
import torch
from intervals import crossed
from methods import METHODS
from runs import Archive, Run, error
from style import DRAWN, STYLE, write
from tables import TABLES, Results, case_name, tables_of

import deepinv_jitter as dj

CURVES = ("#56B4E9", "#0072B2", "#009E73", "#000000")
#: Of Figure 6: sigma_w.
LEVELS = {
    "smoke": (0.1, 1.0),
    "cpu": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
    "paper": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
}


def figure1(archive: Archive, seeds: int, path: Path) -> None:
    """Clouds of reconstructed points: clean, average case, worst case, biased truth."""
    problem = archive.problem("points")
    physics, radius = problem.physics(2), problem.settings.radius
    x = problem.truths["test"]
    y = physics(x)
    bias, _ = problem.shifts["bias"](x)
    ball, rng = dj.L2Ball(radius), torch.Generator().manual_seed(1)
    each = torch.full((1,), radius)
    random = torch.cat([ball.random(y[:1], each, rng, "ball") for _ in y])
    truth_moves = {"clean": x, "average case": x, "worst case": x, "biased truth": bias}
    grid = len(DRAWN), len(truth_moves)
    figure, axes = plt.subplots(
        *grid, figsize=(7.6, 7.8), sharex=True, sharey=True, layout="constrained"
    )
    points = {}
    for method in DRAWN:
        model = archive.model(Run("points", "gd", method))
        measured = {
            "clean": y,
            "average case": y + random,
            "worst case": y + problem.attack(model, x, y, physics),
            "biased truth": y + bias - x,
        }
        with torch.no_grad():
            points[method] = {name: model(m, physics) for name, m in measured.items()}
    limit = 1.1 * max(p.abs().max().item() for ps in points.values() for p in ps.values())
    for row, method in zip(axes, DRAWN, strict=True):
        color, marker = STYLE[method]
        for ax, (name, truth) in zip(row, truth_moves.items(), strict=True):
            cloud = points[method][name]
            rms = (cloud - truth).square().sum(1).mean().sqrt()
            ax.scatter(*cloud.T, s=10, color=color, marker=marker, alpha=0.5, linewidths=0)
            ax.scatter(*truth[0], s=40, color="#D55E00", marker="+", linewidths=1.8, zorder=3)
            center = cloud.mean(0)
            ax.add_patch(plt.Circle(center, cloud.std(0).norm(), fill=False, ls="--", lw=0.8))
            if name == "biased truth":
                ax.annotate("", truth[0].tolist(), center.tolist(), arrowprops={"arrowstyle": "->"})
            ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
            ax.set_title(f"{name}\n" * (method == DRAWN[0]) + f"RMS error {rms:.4f}")
        row[0].set_ylabel(METHODS[method].label_for("gd"))
    text = f"2-D point denoising, radius {radius:g}; + is the truth, the dashed circle the spread"
    write(figure, path, archive, f"{text} of the cloud; training seed 0")


def figure4(archive: Archive, seeds: int, path: Path) -> None:
    """Accuracy against generalisation and robustness, relative to MSE training."""
    tables = [table for table in tables_of(archive) if table.number in (1, 2)]
    figure, axes = plt.subplots(
        len(tables), 2, figsize=(7.6, 3.3 * len(tables)), layout="constrained", squeeze=False
    )
    for row, table in zip(axes, tables, strict=True):
        results = Results(archive, table, seeds)
        panels = {results.shift: "out of distribution", "strong attack": "under attack"}
        for ax, (column, name) in zip(row, panels.items(), strict=True):
            for method in DRAWN:
                color, marker = STYLE[method]
                a, b = (
                    results.difference(method, "mse", c, "PSNR")
                    for c in ("in distribution", column)
                )
                options = {"color": color, "marker": marker, "capsize": 2, "lw": 1}
                ends = a.mean, b.mean, b.half, a.half
                ax.errorbar(*ends, label=table.label(method), **options)
            ax.axhline(0, color="0.7", lw=0.8, zorder=0)
            ax.axvline(0, color="0.7", lw=0.8, zorder=0)
            ax.set(xlabel="in distribution, dB", ylabel=f"{name}, dB", title=case_name(*table.case))
    figure.legend(*axes[-1, -1].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    text = f"PSNR minus that of MSE training, paired, 95 % intervals over {seeds} training seeds"
    write(figure, path, archive, f"{text} and the test images")


def figure6(archive: Archive, seeds: int, path: Path) -> None:
    """Worst-case risk, and error in and out of distribution, against the noise level."""
    positive = LEVELS[archive.preset]
    records = sweep.records(archive, positive, seeds)
    radii = archive.problem("points").settings.radii
    positions = [positive[0] / 10**0.5, *positive]  # zero has no place on a logarithmic axis
    figure, axes = plt.subplots(2, 1, figsize=(6.2, 6.6), sharex=True, layout="constrained")
    curves = {
        axes[0]: {f"ε = {r:g}": f"worst case, eps={r:g}" for r in radii},
        axes[1]: {"in distribution": "clean", "biased truth": "bias"},
    }
    for ax, lines in curves.items():
        for color, marker, (label, condition) in zip(CURVES, "osD^", lines.items()):
            logs = [
                crossed([[math.log(error(r, condition))] for r in rs]) for rs in records.values()
            ]
            low, mean, high = np.exp([(v.low, v.mean, v.high) for v in logs]).T
            ax.plot(positions, mean, marker=marker, ms=4, color=color, label=label)
            ax.fill_between(positions, low, high, color=color, alpha=0.15, lw=0)
            best = mean.argmin()
            ax.plot(positions[best], mean[best], "o", ms=10, mfc="none", mec="#D55E00", mew=1.8)
        ax.set(xscale="log", yscale="log")
        ax.grid(alpha=0.3)
        ax.legend()
    axes[0].set_ylabel(r"worst-case risk $R_\varepsilon$")
    axes[1].set(
        ylabel="mean squared error", xlabel=r"SGD jittering $\sigma_w$, $E\|w_k\|^2=\sigma_w^2$"
    )
    axes[1].set_xticks(positions, ["MSE", *(f"{s:g}" for s in positive)])
    axes[1].minorticks_off()
    text = f"2-D point denoising, geometric means of {seeds} training seeds with 95 % intervals"
    write(figure, path, archive, f"{text}; circled: the best level of each curve")


#: The figures of reconstructions, each with the table whose networks they are of.
PICTURED = {"figure2": "table1", "figure3": "table2", "figure5": "table4", "figure7": "table3"}


def draw(name: str, archive: Archive, seeds: int, path: Path) -> None:
    """Draw a figure of the paper by its name."""
    if name in PICTURED:
        reconstructions.draw(archive, TABLES[PICTURED[name]], path)
    else:
        {"figure1": figure1, "figure4": figure4, "figure6": figure6}[name](archive, seeds, path)
