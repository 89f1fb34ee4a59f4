r"""The curves of one or several trainings."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from deepinv import Trainer

from .checkpoints import loaded, newest
from .host import HISTORIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Run: TypeAlias = str | os.PathLike | Trainer

#: Okabe and Ito's colours, which the colour-blind tell apart.
COLOURS = (*("#0072B2", "#D55E00", "#009E73", "#CC79A7"), *("#E69F00", "#56B4E9", "#000000"))
#: For those who see no colours, and for more runs or networks than there are.
MARKERS = "os^DvPX*"


class Curve(NamedTuple):
    """One history of a run."""

    name: str  # of the class of the loss or metric
    loss: bool  # or else a metric
    part: str  # training or validation
    steps: list[int]  # epochs or batches, from 1
    values: list[float]
    unit: str  # of the steps


def plot_history(
    runs: Run | Mapping[str, Run],
    path: str | os.PathLike | None = None,
    names: Sequence[str] | None = None,
) -> Figure:
    r"""
    Losses and metrics of trainings against the epoch, those of several runs in one picture.

    Validation is drawn solid, with markers, training dashed. Epochs are counted from 1, as the
    progress bar counts them.

    :param deepinv.Trainer, str, os.PathLike, Mapping runs: a trainer, also deepinv's own; the
        folder of a run or the ``save_path`` of a trainer, of which the newest checkpoint is read; a
        checkpoint; or several of them by name.
    :param str, os.PathLike, None path: file to write. Default: ``None``, none.
    :param Sequence[str], None names: losses and metrics to draw, by the names of their classes.
        Default: ``None``, all.
    :return: (:class:`matplotlib.figure.Figure`) the figure, one panel for each loss and metric.
    :raises FileNotFoundError: if a folder holds no checkpoint.
    :raises TypeError: if a run is none of the above.
    :raises ValueError: if there is nothing to draw, a name is unknown, a file is no checkpoint, or
        a history does not tell its epochs.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    >>> model = dj.UnfoldedGD(dj.PointMLP(), stepsize=0.5, max_iter=5)
    >>> trainer = dj.JitterTrainer(
    ...     model, physics, torch.optim.Adam(model.parameters(), lr=1e-3),
    ...     torch.utils.data.DataLoader(dj.PointDataset(200), batch_size=100), epochs=2,
    ...     device="cpu", online_measurements=True, save_path=None, verbose=False)
    >>> model = trainer.train()
    >>> figure = dj.plot_history({"MSE training": trainer})
    >>> figure.axes[0].get_ylabel()
    'SupLoss (loss)'
    """
    named = runs if isinstance(runs, Mapping) else {"": runs}
    found = {label: _curves(run) for label, run in named.items()}
    every = [curve for curves in found.values() for curve in curves]
    panels = list(dict.fromkeys(c.name for c in sorted(every, key=lambda c: not c.loss)))
    if not panels:
        raise ValueError("runs must hold a whole epoch, got none: train first.")
    names = panels if names is None else list(names)
    if not names or not set(names) <= set(panels):
        raise ValueError(f"names must be among {panels}, got {names}.")

    # Matplotlib is an optional extra, and slow to import
    import matplotlib.pyplot as plt
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(len(names), 3)
    rows = -(-len(names) // columns)
    size = 4.4 * columns, 3.4 * rows
    figure, axes = plt.subplots(
        rows, columns, figsize=size, squeeze=False, layout=ConstrainedLayoutEngine(w_pad=0.12)
    )
    for ax, name in zip(axes.flat, names, strict=False):
        for i, (label, curves) in enumerate(found.items()):
            for curve in curves:
                if curve.name == name:
                    _draw(ax, curve, label, **style(i))
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes.flat[len(names) :]:
        ax.remove()
    lines = {line.get_label(): line for ax in figure.axes for line in ax.get_lines()}
    figure.legend(
        list(lines.values()),
        [*map(str, lines)],
        loc="outside upper center",
        ncols=min(max(len(found), 2), columns + 1),
        frameon=False,
    )
    return saved(figure, path)


def style(number: int) -> dict[str, Any]:
    """The colour and the marker of the first, the second and so on."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


def saved(figure: Figure, path: str | os.PathLike | None) -> Figure:
    """The figure, written if there is a path."""
    import matplotlib.pyplot as plt

    if path is not None:
        # Text stays text, which can be edited, searched and read aloud
        text: Any = {"pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none"}
        with plt.rc_context(text):
            figure.savefig(path, dpi=200)
    return figure


def _draw(ax: Axes, curve: Curve, label: str, color: str, marker: str) -> None:
    from matplotlib.ticker import MaxNLocator

    validation = curve.part == "validation"
    ax.plot(
        curve.steps,
        curve.values,
        color=color,
        linestyle="-" if validation else "--",
        marker=marker if validation else None,
        markersize=4,
        markevery=max(1, len(curve.values) // 12),  # or long curves would be all markers
        label=f"{label}, {curve.part}" if label else curve.part,
    )
    unit = " [dB]" if "PSNR" in curve.name else " (loss)" if curve.loss else ""
    ax.set(xlabel=curve.unit, ylabel=f"{curve.name}{unit}")
    steps = [1, 2, 2.5, 5, 10]
    ax.xaxis.set_major_locator(MaxNLocator("auto", steps=steps, integer=True))
    if curve.loss and min(curve.values) > 0 and ax.dataLim.y0 > 0:
        ax.set_yscale("log")


def _curves(run: Run) -> list[Curve]:
    """The histories of a run, with the steps they were taken at."""
    if isinstance(run, Trainer):
        found = {key: getattr(run, name, {}) for name, key in HISTORIES.items()}
        found["history_steps"] = getattr(run, "history_steps", None)
    elif isinstance(run, (str, os.PathLike)):
        path = Path(run) if Path(run).is_file() else newest(run, best=True)
        if path is None:
            raise FileNotFoundError(
                f"runs must be folders with checkpoints, got {str(run)!r} without: give the "
                "save_path of a trainer."
            )
        found = loaded(path)
    else:
        raise TypeError(
            "runs must be a trainer, a folder, a checkpoint or a dictionary of such, got "
            f"{type(run).__name__}."
        )
    steps = found.get("history_steps") or steps_from_sizes(found)
    curves = []
    for key, part, taken in (
        ("loss", "training", "losses"),
        ("eval_loss", "validation", "evaluations"),
        ("train_metrics", "training", "evaluations"),
        ("eval_metrics", "validation", "evaluations"),
    ):
        for name, values in found.get(key, {}).items():
            if not values:
                continue
            # A history begins anew where a run goes on with another loss or metric
            at = steps[taken][-len(values) :]
            if len(at) != len(values):
                raise ValueError(
                    f"a history must tell its epochs, but {name} has {len(values)} values for "
                    f"{len(at)} {taken}: two losses or metrics of one class share one history, so "
                    "derive a class for each; deepinv's own trainer tells with eval_interval=1."
                )
            loss = key in ("loss", "eval_loss")
            curves.append(Curve(name, loss, part, at, values, steps["unit"]))
    return curves


def steps_from_sizes(histories: dict) -> dict:
    """Of a trainer that does not tell its steps: as many epochs as there are losses."""
    losses = max(map(len, histories.get("loss", {}).values()), default=0)
    evaluations = [
        len(values)
        for key in ("eval_loss", "train_metrics", "eval_metrics")
        for values in histories.get(key, {}).values()
    ]
    every_epoch = losses if losses in evaluations else 0
    return {
        "losses": list(range(1, losses + 1)),
        "evaluations": list(range(1, every_epoch + 1)),
        "unit": "epoch",
    }
