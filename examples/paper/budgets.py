r"""Is the training at its end? MSE training with fewer and with more steps than the preset's."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt
from intervals import paired
from runs import Archive, Run, scores
from tables import case_name, markdown

#: Of the preset's steps.
BUDGETS = {"smoke": (1.0, 2.0), "cpu": (0.25, 0.5, 1.0, 2.0, 4.0), "paper": (0.5, 1.0, 2.0)}
#: Side by side; one is the preset's.
OPTIMIZERS = "Adam", "SOAP"
#: What is drawn, its colour and its marker.
DRAWN = ("clean", "#0072B2", "o"), ("attacked", "#D55E00", "s")


def psnr(archive: Archive, problem: str, algorithm: str, optimizer: str) -> dict[float, list]:
    """Of each budget, the first seed's, clean and attacked, on the test images that all have."""
    settings, budgets = archive.problem(problem).settings, BUDGETS[archive.preset]
    other = None if optimizer == settings.optimizer else optimizer
    runs = [Run(problem, algorithm, "mse", optimizer=other, budget=b) for b in budgets]
    records = [archive.record(run) for run in runs]
    count = min(len(record["samples"]) for record in records)
    conditions = "clean", settings.attacked
    values = ([scores(r, condition)[:count] for condition in conditions] for r in records)
    return dict(zip(budgets, values, strict=True))


def rows_of(archive: Archive) -> list[list[str]]:
    columns = "clean", "gain by doubling", "strong attack"
    rows = [["problem", "steps", *(f"{o}, {c}" for o in OPTIMIZERS for c in columns)]]
    for problem, algorithm in archive.images:
        found = [psnr(archive, problem, algorithm, optimizer) for optimizer in OPTIMIZERS]
        last = [None, None]
        for budget in BUDGETS[archive.preset]:
            row = [case_name(problem, algorithm), str(steps(archive, problem, budget))]
            for i, (clean, attacked) in enumerate(f[budget] for f in found):
                gain = f"{paired([clean], [last[i]])}" if last[i] else ""
                row += [f"{mean(clean):.2f}", gain, f"{mean(attacked):.2f}"]
                last[i] = clean
            rows.append(row)
    return rows


def steps(archive: Archive, problem: str, budget: float) -> int:
    """Training steps of a budget."""
    s = archive.problem(problem).settings
    return round(s.epochs * budget) * -(-(s.draws or s.train) // s.batch)


def draw(archive: Archive, path: Path) -> None:
    cases = archive.images
    figure, panels = plt.subplots(
        1, len(cases), figsize=(3 * len(cases), 3.4), layout="constrained", squeeze=False
    )
    for panel, (problem, algorithm) in zip(panels[0], cases, strict=True):
        count = [steps(archive, problem, budget) for budget in BUDGETS[archive.preset]]
        for optimizer, line, face in zip(OPTIMIZERS, ("--", "-"), ("white", None), strict=True):
            found = psnr(archive, problem, algorithm, optimizer).values()
            for i, (what, color, marker) in enumerate(DRAWN):
                panel.plot(
                    count,
                    [mean(values[i]) for values in found],
                    line,
                    color=color,
                    marker=marker,
                    markerfacecolor=face,
                    label=f"{what}, {optimizer}",
                )
        panel.axvline(steps(archive, problem, 1), color="0.6", lw=0.8, zorder=0)
        panel.set_xscale("log", base=2)
        panel.set_xticks(count, [str(c) for c in count])
        panel.minorticks_off()
        panel.set(title=case_name(problem, algorithm), xlabel="training steps")
    panels[0, 0].set_ylabel("PSNR [dB]")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path)
    plt.close(figure)


def render(archive: Archive, seeds: int) -> str:
    """The page: one training of each length, whatever ``seeds`` says."""
    draw(archive, archive.folder / "budgets.png")
    return f"""# Is the training at its end?

MSE training, one seed, PSNR in dB on the test images, clean and under the strong attack, with the
gain from the line above, its 95 % interval over the images, by Adam and by SOAP ([Vyas et al.,
2024](https://arxiv.org/abs/2409.11321)), which preconditions the steps. Preset {archive.preset},
whose own number of steps is marked in the picture. Each length has a learning-rate schedule of its
own.

{markdown(rows_of(archive))}

```{{figure}} budgets.png
:alt: PSNR against training steps, clean and under attack, by two optimizers, one plot a problem

MSE training of several lengths, by Adam (dashed) and by SOAP; the grey line marks the preset's.
```
"""
