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


def psnr(archive: Archive, problem: str, algorithm: str) -> dict[float, list[list[float]]]:
    """Of each budget, the first seed's, clean and attacked, on the test images that all have."""
    budgets = BUDGETS[archive.preset]
    records = [archive.record(Run(problem, algorithm, "mse", budget=b)) for b in budgets]
    count = min(len(record["samples"]) for record in records)
    conditions = "clean", archive.problem(problem).settings.attacked
    values = ([scores(r, condition)[:count] for condition in conditions] for r in records)
    return dict(zip(budgets, values, strict=True))


def rows_of(archive: Archive) -> list[list[str]]:
    rows = [["problem", "steps", "clean", "gain by doubling", "strong attack"]]
    for problem, algorithm in archive.images:
        last = None
        for budget, (clean, attacked) in psnr(archive, problem, algorithm).items():
            gain = f"{paired([clean], [last])}" if last else ""
            row = [case_name(problem, algorithm), str(steps(archive, problem, budget))]
            rows.append([*row, f"{mean(clean):.2f}", gain, f"{mean(attacked):.2f}"])
            last = clean
    return rows


def steps(archive: Archive, problem: str, budget: float) -> int:
    """Training steps of a budget."""
    s = archive.problem(problem).settings
    return round(s.epochs * budget) * -(-(s.draws or s.train) // s.batch)


def draw(archive: Archive, path: Path) -> None:
    cases = archive.images
    figure, panels = plt.subplots(
        1, len(cases), figsize=(3 * len(cases), 3), layout="constrained", squeeze=False
    )
    for panel, (problem, algorithm) in zip(panels[0], cases, strict=True):
        found = psnr(archive, problem, algorithm)
        clean, attacked = zip(*(map(mean, values) for values in found.values()), strict=True)
        count = [steps(archive, problem, budget) for budget in found]
        panel.plot(count, clean, "o-", color="#0072B2", label="clean")
        panel.plot(count, attacked, "s--", color="#D55E00", label="attacked")
        panel.axvline(steps(archive, problem, 1), color="0.6", lw=0.8, zorder=0)
        panel.set_xscale("log", base=2)
        panel.set_xticks(count, [str(c) for c in count])
        panel.minorticks_off()
        panel.set(title=case_name(problem, algorithm), xlabel="training steps")
    panels[0, 0].set_ylabel("PSNR [dB]")
    panels[0, 0].legend(frameon=True, framealpha=1, edgecolor="none")
    figure.savefig(path)
    plt.close(figure)


def render(archive: Archive, seeds: int) -> str:
    """The page: one training of each length, whatever ``seeds`` says."""
    draw(archive, archive.folder / "budgets.png")
    return f"""# Is the training at its end?

MSE training, one seed, PSNR in dB on the test images, clean and under the strong attack, with the
gain from the line above, its 95 % interval over the images. Preset {archive.preset}, whose own
number of steps is marked in the picture. Each length has a learning-rate schedule of its own.

{markdown(rows_of(archive))}

```{{figure}} budgets.png
:alt: PSNR against training steps, clean and under attack, one plot a problem

MSE training of several lengths; the line marks the preset's.
```
"""
