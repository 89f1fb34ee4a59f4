r"""How the cost of a training step grows, and what a training of the paper's size would cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from cases import Case
from matplotlib.ticker import LogLocator
from measure import in_turns, peak_memory

import deepinv_jitter as dj
from deepinv_jitter.evaluation.tables import markdown

#: What is varied, one at a time, around the case of 64 x 64, K = 5, one image, no attack.
AXES = {
    "pixels": (32**2, 64**2, 96**2, 128**2, 192**2),
    "iterations": (2, 5, 10, 20),
    "batch": (1, 2, 4, 8),
    "attack steps": (0, 1, 3, 10),
}
LABELS = {
    "pixels": "pixels of an image",
    "iterations": "iterations K",
    "batch": "images in a batch",
    "attack steps": "gradients of an attack",
}
BASE = {"pixels": 64**2, "iterations": 5, "batch": 1, "attack steps": 0}
#: The training whose cost is told.
TARGET = {"size": 320, "iterations": 10, "batch": 4, "epochs": 130, "slices": 1000}
#: Gradients of attacks per training step.
SCHEMES = {
    "MSE training, input, SGD and SPGD jittering": 0.0,
    "our recipe (RobustTrainer): 1 step on every second batch": 0.5,
    "AT, persistent, 1 step": 1.0,
    "AT, 3 Frank-Wolfe steps": 3.0,
    "AT, 20 steps, as in the paper": 20.0,
}


def built(case: Case, point: dict, checkpoint: bool = False):
    """A training step at a point."""
    side = round(point["pixels"] ** 0.5)
    case = replace(case, size=(side, side), batch=point["batch"])
    n = point["attack steps"]
    attack = dj.PGDAttack(dj.L2Ball(1.0), steps=n, keep="last") if n else None
    model = case.model(max_iter=point["iterations"], checkpoint=checkpoint)
    return case.step(model, attack)


def measured(quick: bool, device: str) -> dict:
    """Seconds and peak memory along every axis, and of one image of the target's size."""
    network = {"depth": 3, "width": 8} if quick else {}
    case = Case(name="", kind="mri", size=(64, 64), batch=1, device=device, **network)
    points = {
        f"{axis}={value}": BASE | {axis: value} for axis, values in AXES.items() for value in values
    }
    times = in_turns({k: built(case, p) for k, p in points.items()}, 1 if quick else 3)
    record = {
        name: {
            "seconds": times.median(name),
            "memory": peak_memory(built(case, point)),
            "memory, checkpoint": peak_memory(built(case, point, checkpoint=True)),
        }
        for name, point in points.items()
    }
    side = 96 if quick else TARGET["size"]
    one = BASE | {"pixels": side**2, "iterations": TARGET["iterations"]}
    full = {
        "seconds": in_turns({"full": built(case, one)}, 2).median("full"),
        "memory": peak_memory(built(case, one)),
        "memory, checkpoint": peak_memory(built(case, one, checkpoint=True)),
    }
    return {"points": record, "one image of the target": full, "network": network}


def exponent(record: dict, axis: str, quantity: str) -> float:
    """The slope of a line through the logarithms."""
    values = AXES[axis]
    costs = [record["points"][f"{axis}={value}"][quantity] for value in values]
    return float(np.polyfit(np.log(values), np.log(costs), 1)[0])


def per_gradient(record: dict) -> float:
    """What a gradient of an attack costs, in steps of MSE training: least squares."""
    steps = np.array(AXES["attack steps"])
    costs = [record["points"][f"attack steps={n}"]["seconds"] for n in steps]
    slope, start = np.polyfit(steps, costs, 1)
    return float(slope / start)


def draw(record: dict, path: Path) -> None:
    figure, panels = plt.subplots(
        2, len(AXES), figsize=(12, 5.6), layout="constrained", sharex="col"
    )
    for column, (axis, values) in zip(panels.T, AXES.items(), strict=True):
        points = [record["points"][f"{axis}={value}"] for value in values]
        for panel, quantities in zip(
            column, (("seconds",), ("memory", "memory, checkpoint")), strict=True
        ):
            for quantity, marker in zip(quantities, "os"):
                costs = [point[quantity] for point in points]
                if axis == "attack steps":
                    growth = f"1 + {per_gradient(record):.2f} n"
                    label = growth if quantity == "seconds" else ""
                else:
                    label = f"exponent {exponent(record, axis, quantity):.2f}"
                label = f"checkpoint: {label}" if "checkpoint" in quantity else label
                panel.plot(values, costs, marker=marker, label=label.rstrip(": "))
                if axis != "attack steps":
                    panel.set(xscale="log", yscale="log")
                    panel.set_xticks(values, [f"{v:g}" for v in values], rotation=30)
                    panel.minorticks_off()
                    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                    panel.yaxis.set_major_formatter("{x:g}")
            if axis == "attack steps":
                panel.set_ylim(bottom=0)
            panel.grid(alpha=0.3)
            if panel.get_legend_handles_labels()[1]:
                panel.legend(fontsize=8)
        column[1].set_xlabel(LABELS[axis])
    panels[0, 0].set_ylabel("seconds per training step")
    panels[1, 0].set_ylabel("peak memory, MiB")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def render(record: dict, path: Path) -> str:
    """The picture, and the cost of the target as a table."""
    draw(record, path)
    gradient, full = per_gradient(record), record["one image of the target"]
    batch = TARGET["batch"] ** exponent(record, "batch", "seconds")
    step = full["seconds"] * batch
    number = TARGET["epochs"] * TARGET["slices"] / TARGET["batch"]
    lines = [["training", "steps of MSE training", "seconds per step", "days"]]
    for scheme, gradients in SCHEMES.items():
        factor = 1 + gradient * gradients
        days = factor * step * number / 86400
        cells = (f"{factor:.1f}", f"{factor * step:.3g}", f"{days:.3g}")
        lines.append([scheme, *cells])
    memory = {
        quantity: full[quantity] * TARGET["batch"] ** exponent(record, "batch", quantity) / 1024
        for quantity in ("memory", "memory, checkpoint")
    }
    growths = "; ".join(
        f"{LABELS[axis]} {exponent(record, axis, 'seconds'):.2f}"
        for axis in ("pixels", "iterations", "batch")
    )
    figure = (
        f"```{{figure}} {path.name}\n:alt: Time and memory of a training step against what it "
        "grows with\n:figclass: wide\n\nTime and memory of a training step.\n```"
    )
    return (
        f"{figure}\n\nExponents of the time: {growths}. A gradient of an attack "
        f"costs {gradient:.2f} steps of MSE training.\n\n"
        f"A training at {TARGET['size']} x {TARGET['size']}, K = {TARGET['iterations']}, batch "
        f"{TARGET['batch']}, {TARGET['epochs']} epochs of {TARGET['slices']} slices "
        f"({number:.0f} steps), from a measured step of one image and the growth with the batch:"
        f"\n\n{markdown(lines)}\n\nPeak memory of the activations: "
        f"{memory['memory']:.1f} GiB, with `checkpoint=True` "
        f"{memory['memory, checkpoint']:.1f} GiB."
    )
