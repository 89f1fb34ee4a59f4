r"""A recipe beyond the paper: as accurate as MSE training, as robust as AT, at twice the cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt
from intervals import Interval, log_ratio
from methods import METHODS
from runs import Archive, Run, error, scores
from style import STYLE
from tables import Results, Table, case_name, markdown

import deepinv_jitter as dj

#: Gradients of attacks in a training step, on average; each costs about 2/3 of a step without.
GRADIENTS = {
    "mse": 0.0,
    "input": 0.0,
    "jitter": 0.0,
    "noise-jitter": 0.0,
    "sixth": 1 / 6,
    "half": 1 / 2,
    "late": 1.2,
    "half-strong": 1.5,
    "at": 3.0,
}
#: Candidates, looked at on validation data with one training each.
SCREENED = (("seismic", "pgd"), ("mri", "pgd"))
#: What the test data decide, with all seeds.
DECIDED = ("mse", "input", "jitter", "sixth", "half", "at")
COLORS = STYLE | {"sixth": ("#CC79A7", "v"), "half": ("#009E73", "*")}


@dataclass(frozen=True)
class Standing:
    """A method in dB against MSE training and against AT, on clean data and under attack."""

    clean: Interval
    attacked: Interval
    clean_at: Interval
    attacked_at: Interval

    @property
    def good(self) -> bool:
        """Not worse beyond doubt than MSE training on clean data, nor than AT under attack."""
        return all(
            d.mean >= 0 or (not d.decided and math.isfinite(d.half))
            for d in (self.clean, self.attacked_at)
        )


def standings(archive: Archive, problem: str, algorithm: str, seeds: int) -> dict:
    """Of every method that the test data decide."""
    if problem == "points":
        return _points(archive, algorithm, seeds)
    results = Results(archive, Table(0, "", problem, algorithm, DECIDED), seeds)
    return {
        method: Standing(
            *(
                results.difference(method, other, column, "PSNR")
                for other in ("mse", "at")
                for column in ("in distribution", "strong attack")
            )
        )
        for method in DECIDED
    }


def _points(archive: Archive, algorithm: str, seeds: int) -> dict:
    """In dB as well: ten times the logarithm of the ratio of the errors, over the seeds."""
    records = {m: archive.records("points", algorithm, m, seeds) for m in DECIDED}

    def gain(method: str, other: str, condition: str) -> Interval:
        a, b = ([error(r, condition) for r in records[m]] for m in (method, other))
        ratio, decibel = log_ratio(b, a), 10 / math.log(10)
        return Interval(decibel * ratio.mean, decibel * ratio.half)

    conditions = ("clean", archive.problem("points").settings.attacked)
    return {
        m: Standing(*(gain(m, other, c) for other in ("mse", "at") for c in conditions))
        for m in DECIDED
    }


def cost(method: str) -> str:
    """In steps of MSE training."""
    return f"{1 + 2 / 3 * GRADIENTS[method]:.2g}"


def draw(archive: Archive, seeds: int, path: Path) -> None:
    """The frontier: MSE training is where the lines cross, better is right and up."""
    columns = min(3, len(archive.cases))
    rows = -(-len(archive.cases) // columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(0.6 + 2.6 * columns, 0.8 + 2.6 * rows),
        layout="constrained",
        squeeze=False,
    )
    panels = grid.flat[: len(archive.cases)]
    for empty in grid.flat[len(archive.cases) :]:
        empty.set_axis_off()
    for panel, (problem, algorithm) in zip(panels, archive.cases, strict=True):
        for method, s in standings(archive, problem, algorithm, seeds).items():
            color, marker = COLORS[method]
            panel.errorbar(
                s.clean.mean,
                s.attacked.mean,
                *(0 if math.isnan(d.half) else d.half for d in (s.attacked, s.clean)),
                color=color,
                marker=marker,
                markersize=11 if marker == "*" else 6,
                elinewidth=0.7,
                label=f"{METHODS[method].label}, {cost(method)}x",
            )
        panel.axhline(0, color="0.6", lw=0.8, zorder=0)
        panel.axvline(0, color="0.6", lw=0.8, zorder=0)
        panel.set_title(case_name(problem, algorithm))
        panel.locator_params(nbins=5)
    for panel in grid[-1]:
        panel.set_xlabel("clean, dB above MSE")
    for panel in grid[:, 0]:
        panel.set_ylabel("attacked, dB above MSE")
    handles, labels = panels[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=10)
    figure.savefig(path)
    plt.close(figure)


def screening(archive: Archive) -> list[list[str]]:
    """Mean PSNR on validation data, clean and under the strong attack."""
    cases = [case for case in SCREENED if case in archive.cases]
    heads = (f"{case_name(p, a)}, clean / attacked" for p, a in cases)
    rows = [["training", "steps of MSE", *heads]]
    for method in GRADIENTS:
        row = [METHODS[method].label, cost(method)]
        for problem, algorithm in cases:
            record = archive.record(Run(problem, algorithm, method, split="validation"))
            conditions = "clean", archive.problem(problem).settings.attacked
            row.append(" / ".join(f"{mean(scores(record, c)):.2f}" for c in conditions))
        rows.append(row)
    return rows


def strength(archive: Archive, problem: str, algorithm: str) -> dict[str, float]:
    """
    Excess error of the attack that trains, 3 Frank-Wolfe steps, over that of the paper's 20 steps.

    On the first network of every training, over the test images.
    """
    case = archive.problem(problem)
    (batch,), physics = case.batches("test"), case.physics(0)
    x, y = batch["x"], physics(batch["x"], **batch["params"])
    ball = case.settings.ball
    attacks = {
        "power": dj.FrankWolfeAttack(ball, steps=3, keep="last", checks=False),
        "paper": dj.PGDAttack(ball, steps=20, keep="last", checks=False),
    }
    found = {}
    for method in DECIDED:
        model = archive.model(Run(problem, algorithm, method))
        excess = {}
        for name, attack in attacks.items():
            result = attack.run(model, x, y, physics)
            # What the training meets is the last point, whichever was worst
            last = model(y + result.delta, physics) - x
            errors = last.detach().square().flatten(1).sum(1)
            excess[name] = (errors - result.loss_clean).sum().item()
        found[method] = excess["power"] / excess["paper"]
    return found


def render(archive: Archive, seeds: int) -> str:
    """The page of the search."""
    draw(archive, seeds, archive.folder / "recipe.png")
    head = ["problem", "training", "steps of MSE", "clean, minus MSE", "attacked, minus MSE"]
    rows = [[*head, "clean, minus AT", "attacked, minus AT", "neither is worse"]]
    for problem, algorithm in archive.cases:
        for method, s in standings(archive, problem, algorithm, seeds).items():
            if method == "mse":
                continue
            cells = map(str, (s.clean, s.attacked, s.clean_at, s.attacked_at))
            name = METHODS[method].label_for(algorithm)
            row = [case_name(problem, algorithm), name, cost(method), *cells]
            rows.append([*row, "yes" if s.good else "no"])
    table = [["network", *(METHODS[m].label for m in DECIDED)]]
    for problem, algorithm in archive.images:
        path = archive.folder / "runs" / f"strength-{problem}-{algorithm}.json"
        ratios = archive.kept(path, partial(strength, archive, problem, algorithm))
        cells = [f"{ratios[m]:.3f}" for m in DECIDED]
        table.append([case_name(problem, algorithm), *cells])
    return f"""# A recipe beyond the paper

Wanted: at most twice the cost of MSE training, on clean data not worse than MSE training, under the
strong attack not worse than AT, on all problems. Preset {archive.preset}, {seeds} training seeds.

## Candidates

PSNR in dB on validation data, one training each; the cost as 1 + 2/3 of the gradients of attacks
per step.

{markdown(screening(archive))}

## What the test data say

PSNR in dB, of points ten times the logarithm of the ratio of the squared errors: paired differences
with 95 % intervals over seeds and test images. "Neither is worse": than MSE training on clean data
and than AT under the strong attack, beyond doubt.

{markdown(rows)}

```{{figure}} recipe.png
:alt: Gain in robustness against gain in accuracy, relative to MSE training, one plot a problem

Accuracy and robustness of every training, beside MSE training: better is right and up.
```

## Strength of the attack that trains

Excess error after 3 Frank-Wolfe steps with averaged gradients, over that after the paper's 20
steps of projected gradient ascent, on trained networks (the first seed) and all test images.

{markdown(table)}
"""
