r"""Figures 2, 3, 5 and 7: a reconstruction under attack, and one of a truth with a new detail."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from deepinv.physics import LinearPhysics
from matplotlib.patches import Rectangle
from problem import Problem
from runs import Archive, Run
from style import DRAWN, write
from tables import Table

import deepinv_jitter as dj

SEED = 0  # of the training
SAMPLE = 5  # of the test set
ERRORS = {"cmap": "RdBu_r", "vmin": -0.4, "vmax": 0.4}

Box = tuple[int, int, int, int]


@dataclass
class Sample:
    """A test sample, measured, with its edits and where they are."""

    x: torch.Tensor
    y: torch.Tensor
    physics: LinearPhysics
    shifted: dict[str, torch.Tensor]
    boxes: dict[str, Box]


def measured(problem: Problem) -> Sample:
    batch, physics = problem.batches("test")[0], problem.physics(11)
    k = min(SAMPLE, len(batch["x"]) - 1)
    x = batch["x"][k : k + 1]
    y = physics(x, **{name: value[k : k + 1] for name, value in batch["params"].items()})
    shifted, boxes = {}, {}
    for name, shift in problem.shifts.items():
        shifted[name], region = shift(x)
        boxes[name] = box(region)
    return Sample(x, y, physics, shifted, boxes)


def draw(archive: Archive, table: Table, path: Path) -> None:
    """The truth and each method in columns: under attack, its error, the new detail, zoomed."""
    problem = archive.problem(table.problem)
    sample, grey, zoom = measured(problem), scale(problem), zooms(problem)
    rows, names = 3 + len(zoom), list(zoom)
    figure, axes = plt.subplots(
        rows, len(DRAWN) + 1, figsize=(8.2, 1.75 * rows + 0.4), layout="constrained"
    )
    draw_truth(axes[:, 0], sample, grey, zoom)
    for column, method in zip(axes.T[1:], DRAWN, strict=True):
        model = archive.model(Run(table.problem, table.algorithm, method, SEED))
        delta = problem.attack(model, sample.x, sample.y, sample.physics)
        with torch.no_grad():
            clean = model(sample.y, sample.physics)
            attacked = model(sample.y + delta, sample.physics)
            moved = {
                name: model(sample.y + sample.physics.A(x - sample.x), sample.physics)
                for name, x in sample.shifted.items()
            }
        title = f"{table.label(method)}\n{decibel(attacked, sample.x)}"
        show(column[0], picture(attacked), title, **grey)
        show(column[1], picture(attacked) - picture(sample.x), **ERRORS)
        last = names[-1]
        title = decibel(moved[last], sample.shifted[last])
        show(column[2], picture(moved[last]), title, sample.boxes[last], **grey)
        for ax, name in zip(column[3:], names, strict=True):
            kept = dj.contrast_recovery(moved[name], clean, sample.shifted[name], sample.x)
            part = crop(picture(moved[name]), sample.boxes[name])
            show(ax, part, f"kept {kept.item():.2f}", **zoom[name])
    radius = f"{problem.settings.radius:g}"
    if problem.settings.relative_to is not None:
        radius += " of the norm of the noise"
    text = f"{table.title}, attack radius {radius}, training seed {SEED}"
    write(figure, path, archive, text)


def draw_truth(column, sample: Sample, grey: dict, zoom: dict[str, dict]) -> None:
    """The first column, which also says what is in the rows."""
    last = list(zoom)[-1]
    show(column[0], picture(sample.x), "truth", **grey)
    column[0].set_ylabel("(a) under attack")
    column[1].axis("off")
    column[1].text(0.5, 0.5, "error,\n−0.4 to 0.4", ha="center", va="center")
    title = f"truth with\n{last}"
    show(column[2], picture(sample.shifted[last]), title, sample.boxes[last], **grey)
    column[2].set_ylabel("(b) out of\ndistribution")
    for ax, (name, style) in zip(column[3:], zoom.items(), strict=True):
        part = crop(picture(sample.shifted[name]), sample.boxes[name])
        title = f"{name}, zoomed\n{style['vmin']:g} to {style['vmax']:g}"
        show(ax, part, title, **style)


def scale(problem: Problem) -> dict:
    """The grey scale of the images."""
    low, high = (0.0, 1.0) if problem.complex else (-0.6, 0.6)
    return {"cmap": "gray", "vmin": low, "vmax": high}


def zooms(problem: Problem) -> dict[str, dict]:
    """That of each new detail: a faint layer would be lost on the scale of the section."""
    return {
        name: scale(problem)
        | ({} if problem.complex else {"vmin": -2 * shift.height, "vmax": 2 * shift.height})
        for name, shift in problem.shifts.items()
    }


def show(ax, image: torch.Tensor, title: str = "", frame: Box | None = None, **style) -> None:
    ax.imshow(image, interpolation="nearest", **style)
    ax.set_title(title)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    if frame is not None:
        top, left, height, width = frame
        corner = (left - 0.5, top - 0.5)
        ax.add_patch(Rectangle(corner, width, height, fill=False, ec="#D55E00", lw=1.5))


def picture(image: torch.Tensor) -> torch.Tensor:
    """A section as it is, a complex image as its magnitude."""
    return image[0, 0] if image.shape[1] == 1 else image[0].norm(dim=0)


def decibel(x_net: torch.Tensor, x: torch.Tensor) -> str:
    return f"{-10 * (picture(x_net) - picture(x)).square().mean().log10():.2f} dB"


def box(region: torch.Tensor, margin: int = 6) -> Box:
    """Top, left, height and width of the region with a margin, inside the image."""
    rows, columns = (region[0, 0].any(d).nonzero().flatten() for d in (1, 0))
    top, left = (max(0, v.min().item() - margin) for v in (rows, columns))
    bottom, right = (v.max().item() + margin + 1 for v in (rows, columns))
    return top, left, bottom - top, right - left


def crop(image: torch.Tensor, place: Box) -> torch.Tensor:
    top, left, height, width = place
    return image[top : top + height, left : left + width]
