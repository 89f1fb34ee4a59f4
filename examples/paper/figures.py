r"""The paper's figures, from the runs and their weights."""

from __future__ import annotations

import math
from pathlib import Path

import deepinv_jitter as dj
import matplotlib.pyplot as plt
import torch
from intervals import crossed
from matplotlib.patches import Rectangle
from runs import Archive, Run, error
from tables import TABLES, Results, Table
from theory import sweep

# Okabe and Ito's colours, which the colour-blind tell apart, with a marker each
STYLE = {
    "mse": ("#000000", "o"),
    "at": ("#D55E00", "s"),
    "input": ("#E69F00", "^"),
    "jitter": ("#0072B2", "D"),
    "sn": ("#009E73", "v"),
    "ddpm": ("#CC79A7", "P"),
}
CURVES = ("#56B4E9", "#0072B2", "#009E73", "#000000")
#: Of Figure 6: sigma_w.
LEVELS = {
    "smoke": (0.1, 1.0),
    "cpu": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
    "paper": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
}
METHODS = ("mse", "at", "input", "jitter")
plt.rcParams |= {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "legend.frameon": False,
}


def figure1(archive: Archive, seeds: int, path: Path) -> None:
    """Clouds of reconstructed points: clean, average case, worst case, biased truth."""
    problem, table = archive.problem("points"), Table(0, "", "points", "gd")
    physics, radius = problem.physics(2), problem.settings.radius
    x = problem.truths["test"]
    y = physics(x)
    bias, _ = problem.shifts["bias"](x)
    ball, rng = dj.L2Ball(radius), torch.Generator().manual_seed(1)
    each = torch.full((1,), radius)
    random = torch.cat([ball.random(y[:1], each, rng, "ball") for _ in y])
    truth_moves = {"clean": x, "average case": x, "worst case": x, "biased truth": bias}
    figure, axes = plt.subplots(
        len(METHODS),
        len(truth_moves),
        figsize=(7.6, 7.8),
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    points = {}
    for method in METHODS:
        model = archive.model(Run("points", "gd", method))
        measured = {
            "clean": y,
            "average case": y + random,
            "worst case": y + problem.attack(model, x, y, physics),
            "biased truth": y + bias - x,
        }
        with torch.no_grad():
            points[method] = {name: model(m, physics) for name, m in measured.items()}
    limit = 1.1 * max(
        p.abs().max().item() for ps in points.values() for p in ps.values()
    )
    for row, method in zip(axes, METHODS, strict=True):
        color, marker = STYLE[method]
        for ax, (name, truth) in zip(row, truth_moves.items(), strict=True):
            cloud = points[method][name]
            rms = (cloud - truth).square().sum(1).mean().sqrt()
            ax.scatter(
                *cloud.T, s=10, color=color, marker=marker, alpha=0.5, linewidths=0
            )
            ax.scatter(
                *truth[0], s=40, color="#D55E00", marker="+", linewidths=1.8, zorder=3
            )
            center = cloud.mean(0)
            ax.add_patch(
                plt.Circle(center, cloud.std(0).norm(), fill=False, ls="--", lw=0.8)
            )
            if name == "biased truth":
                ax.annotate(
                    "",
                    truth[0].tolist(),
                    center.tolist(),
                    arrowprops={"arrowstyle": "->"},
                )
            ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
            ax.set_title(f"{name}\n" * (method == METHODS[0]) + f"RMS error {rms:.4f}")
        row[0].set_ylabel(table.label(method))
    caption(
        figure,
        archive,
        "1",
        f"2-D point denoising, radius {radius:g}; + is the truth, the "
        "dashed circle the spread of the cloud; training seed 0",
    )
    figure.savefig(path)
    plt.close(figure)


def reconstructions(archive: Archive, table: Table, number: int, path: Path) -> None:
    """One sample under attack with its errors, and the new detail boxed and zoomed."""
    problem, seed = archive.problem(table.problem), 0
    batch = problem.batches("test")[0]
    x = batch["x"][:1] if len(batch["x"]) < 6 else batch["x"][5:6]
    params = {
        k: v[: len(x)] if len(v) < 6 else v[5:6] for k, v in batch["params"].items()
    }
    physics = problem.physics(11)
    y = physics(x, **params)
    signed = x.shape[1] == 1
    scale = {
        "cmap": "gray",
        "vmin": -0.6 if signed else 0,
        "vmax": 0.6 if signed else 1,
    }
    errors = {"cmap": "RdBu_r", "vmin": -0.4, "vmax": 0.4}
    shifted = {name: shift(x) for name, shift in problem.shifts.items()}
    last = list(shifted)[-1]
    models = {
        m: archive.model(Run(table.problem, table.algorithm, m, seed)) for m in METHODS
    }
    rows = 3 + len(shifted)
    figure, axes = plt.subplots(
        rows, len(METHODS) + 1, figsize=(8.2, 1.75 * rows + 0.4), layout="constrained"
    )

    def show(ax, image, title="", **style):
        ax.imshow(picture(image), interpolation="nearest", **style)
        ax.set_title(title)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)

    boxes = {name: box(region) for name, (_, region) in shifted.items()}
    show(axes[0, 0], x, "truth", **scale)
    axes[1, 0].axis("off")
    axes[1, 0].text(0.5, 0.5, "error,\n−0.4 to 0.4", ha="center", va="center")
    show(axes[2, 0], shifted[last][0], f"truth with\n{last}", **scale)
    frame(axes[2, 0], boxes[last])
    for k, name in enumerate(shifted):
        show(
            axes[3 + k, 0],
            crop(shifted[name][0], boxes[name]),
            f"{name}, zoomed",
            **scale,
        )
    for column, (method, model) in enumerate(models.items(), start=1):
        delta = problem.attack(model, x, y, physics)
        with torch.no_grad():
            clean, attacked = model(y, physics), model(y + delta, physics)
            moved = {
                n: model(y + physics.A(e - x), physics) for n, (e, _) in shifted.items()
            }
        show(
            axes[0, column],
            attacked,
            f"{table.label(method)}\n{decibel(attacked, x)}",
            **scale,
        )
        show(axes[1, column], picture(attacked) - picture(x), **errors)
        show(
            axes[2, column],
            moved[last],
            decibel(moved[last], shifted[last][0]),
            **scale,
        )
        frame(axes[2, column], boxes[last])
        for k, name in enumerate(shifted):
            kept = dj.contrast_recovery(moved[name], clean, shifted[name][0], x).item()
            show(
                axes[3 + k, column],
                crop(moved[name], boxes[name]),
                f"kept {kept:.2f}",
                **scale,
            )
    for row, text in {0: "(a) under attack", 2: "(b) out of distribution"}.items():
        axes[row, 0].set_ylabel(text)
    radius = problem.settings.radius
    unit = "" if problem.settings.relative_to is None else " of the norm of the noise"
    caption(
        figure,
        archive,
        str(number),
        f"{table.title}, attack radius {radius:g}{unit}, training seed 0",
    )
    figure.savefig(path)
    plt.close(figure)


def figure4(archive: Archive, seeds: int, path: Path) -> None:
    """Accuracy against generalisation and robustness, relative to MSE training."""
    tables = (TABLES["table1"], TABLES["table2"])
    figure, axes = plt.subplots(2, 2, figsize=(7.6, 6.6), layout="constrained")
    for row, table in zip(axes, tables, strict=True):
        results = Results(archive, table, seeds)
        panels = {results.shift: "out of distribution", "strong attack": "under attack"}
        for ax, (column, name) in zip(row, panels.items(), strict=True):
            for method in METHODS:
                color, marker = STYLE[method]
                a, b = (
                    results.difference(method, "mse", c, "PSNR")
                    for c in ("in distribution", column)
                )
                ax.errorbar(
                    a.mean,
                    b.mean,
                    b.half,
                    a.half,
                    color=color,
                    marker=marker,
                    capsize=2,
                    lw=1,
                    label=table.label(method),
                )
            ax.axhline(0, color="0.7", lw=0.8, zorder=0)
            ax.axvline(0, color="0.7", lw=0.8, zorder=0)
            ax.set(
                xlabel="in distribution, ΔPSNR [dB]",
                ylabel=f"{name}, ΔPSNR [dB]",
                title=table.title,
            )
    axes[0, 0].legend()
    caption(
        figure,
        archive,
        "4",
        f"PSNR minus that of MSE training, paired, 95 % intervals over {seeds} "
        "training seeds and the test images",
    )
    figure.savefig(path)
    plt.close(figure)


def figure6(archive: Archive, seeds: int, path: Path) -> None:
    """Worst-case risk, and error in and out of distribution, against the noise level."""
    positive = LEVELS[archive.preset]
    records = {
        s: [archive.record(r) for r in runs]
        for s, runs in sweep(positive, seeds).items()
    }
    radii = archive.problem("points").settings.radii
    positions = [
        positive[0] / 10**0.5,
        *positive,
    ]  # zero has no place on a logarithmic axis
    figure, axes = plt.subplots(
        2, 1, figsize=(6.2, 6.6), sharex=True, layout="constrained"
    )
    curves = {
        axes[0]: {f"ε = {r:g}": f"worst case, eps={r:g}" for r in radii},
        axes[1]: {"in distribution": "clean", "biased truth": "bias"},
    }
    for ax, lines in curves.items():
        for color, marker, (label, condition) in zip(CURVES, "osD^", lines.items()):
            logs = [
                crossed([[math.log(error(r, condition))] for r in rs])
                for rs in records.values()
            ]
            mean = [math.exp(v.mean) for v in logs]
            ax.plot(positions, mean, marker=marker, ms=4, color=color, label=label)
            ax.fill_between(
                positions,
                [math.exp(v.low) for v in logs],
                [math.exp(v.high) for v in logs],
                color=color,
                alpha=0.15,
                lw=0,
            )
            best = min(range(len(mean)), key=mean.__getitem__)
            ax.plot(
                positions[best],
                mean[best],
                "o",
                ms=10,
                mfc="none",
                mec="#D55E00",
                mew=1.8,
            )
        ax.set(xscale="log", yscale="log")
        ax.grid(alpha=0.3)
        ax.legend()
    axes[0].set_ylabel(r"worst-case risk $R_\varepsilon$")
    axes[1].set(
        ylabel="mean squared error",
        xlabel=r"SGD jittering $\sigma_w$, $E\|w_k\|^2=\sigma_w^2$",
    )
    axes[1].set_xticks(positions, ["MSE", *(f"{s:g}" for s in positive)])
    axes[1].minorticks_off()
    caption(
        figure,
        archive,
        "6",
        f"2-D point denoising, geometric means of {seeds} training seeds with 95 % "
        "intervals; circled: the best level of each curve",
    )
    figure.savefig(path)
    plt.close(figure)


def draw(name: str, archive: Archive, seeds: int, path: Path) -> None:
    """Draw a figure of the paper by its name."""
    pictured = {
        "figure2": "table1",
        "figure3": "table2",
        "figure5": "table4",
        "figure7": "table3",
    }
    if name in pictured:
        reconstructions(archive, TABLES[pictured[name]], int(name[-1]), path)
    else:
        {"figure1": figure1, "figure4": figure4, "figure6": figure6}[name](
            archive, seeds, path
        )


def caption(figure: plt.Figure, archive: Archive, number: str, text: str) -> None:
    """What is shown, and what it rests on."""
    figure.suptitle(
        f"Figure {number}. {text}. Preset {archive.preset}.", fontsize=8, wrap=True
    )


def picture(image: torch.Tensor) -> torch.Tensor:
    """A section as it is, a complex image as its magnitude."""
    if image.ndim == 2:
        return image
    return image[0, 0] if image.shape[1] == 1 else image[0].norm(dim=0)


def decibel(x_net: torch.Tensor, x: torch.Tensor) -> str:
    return f"{-10 * (picture(x_net) - picture(x)).square().mean().log10():.2f} dB"


def box(region: torch.Tensor, margin: int = 6) -> tuple[int, int, int, int]:
    """Top, left, height and width of the region with a margin, inside the image."""
    rows, columns = (region[0, 0].any(d).nonzero().flatten() for d in (1, 0))
    top, left = (max(0, v.min().item() - margin) for v in (rows, columns))
    bottom, right = (v.max().item() + margin + 1 for v in (rows, columns))
    return top, left, bottom - top, right - left


def crop(image: torch.Tensor, place: tuple[int, int, int, int]) -> torch.Tensor:
    top, left, height, width = place
    return picture(image)[top : top + height, left : left + width]


def frame(ax: plt.Axes, place: tuple[int, int, int, int]) -> None:
    top, left, height, width = place
    ax.add_patch(
        Rectangle(
            (left - 0.5, top - 0.5), width, height, fill=False, ec="#D55E00", lw=1.5
        )
    )
