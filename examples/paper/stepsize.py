r"""What the paper does not look at: does a learned step size shrink, to dodge the noise?"""

from __future__ import annotations

from intervals import crossed, log_ratio, paired, ratio
from methods import METHODS
from runs import Archive, error, scores
from tables import markdown, tables_of

#: Levels at which the step size is also held fixed, and the noise divided by it.
STEP_LEVELS = {"smoke": (0.1,), "cpu": (0.3, 1.0), "paper": (0.3, 1.0)}
STEP_SEEDS = {"smoke": 2, "cpu": 5, "paper": 5}
STEPS = ("learned", "fixed", "normalised")
LEARNED = ("mse", "at", "input", "jitter")


def dodging(archive: Archive) -> list[list[str]]:
    """Does a learned step size shrink to dodge the noise, and what if it cannot?"""
    preset, seeds = archive.preset, STEP_SEEDS[archive.preset]
    problem = archive.problem("points")
    radius = f"{problem.settings.radii[-1]:g}"
    base = archive.records("points", "gd", "mse", seeds)
    head = [r"$\sigma_w$", "step size", "learned value", "clean / MSE"]
    rows = [[*head, f"worst case, ε = {radius} / MSE"], ["0", "learned", steps_of(base), "1", "1"]]
    for level in STEP_LEVELS[preset]:
        for step in STEPS:
            records = archive.records("points", "gd", "jitter", seeds, sigma=level, step=step)
            row = [f"{level:g}", step, steps_of(records)]
            for condition in ("clean", f"worst case, eps={radius}"):
                a, b = ([error(r, condition) for r in rs] for rs in (records, base))
                row.append(ratio(log_ratio(a, b)))
            rows.append(row)
    return rows


def dodging_sections(archive: Archive, seeds: int) -> list[list[str]]:
    """The same for the sections of Table 1: PSNR minus that of MSE training, image by image."""
    settings = archive.problem("seismic").settings
    base = archive.records("seismic", "gd", "mse", seeds)
    worst = f"worst case, ε = {settings.radius:g}, ΔPSNR"
    rows = [["step size", "learned value", "clean, ΔPSNR", worst]]
    for step in STEPS:
        records = archive.records("seismic", "gd", "jitter", seeds, step=step)
        row = [step, steps_of(records)]
        for condition in ("clean", settings.attacked):
            a, b = ([scores(r, condition) for r in rs] for rs in (records, base))
            row.append(f"{paired(a, b)} dB")
        rows.append(row)
    return rows


def learned_steps(archive: Archive, seeds: int) -> list[list[str]]:
    """The learned step sizes of the networks of the tables, and where they started."""
    rows = [["table", "start", *(METHODS[m].label for m in LEARNED)]]
    for table in tables_of(archive):
        if table.number < 5:
            row = [str(table.number), f"{archive.problem(table.problem).stepsize:.3g}"]
            for method in LEARNED:
                row.append(steps_of([archive.record(run) for run in table.runs(method, seeds)]))
            rows.append(row)
    return rows


def steps_of(records: list[dict]) -> str:
    interval = crossed([[r["stepsize"][0]] for r in records])
    return f"{interval.mean:.3f} ± {interval.half:.3f}"


def render(archive: Archive, seeds: int) -> str:
    """The part of the page of the theory."""
    sections = ""
    if ("seismic", "gd") in archive.cases:
        sections = f"""The same for the sections of Table 1, where the noise is relative to each
iterate, {seeds} seeds:

{markdown(dodging_sections(archive, seeds))}

"""
    start = archive.problem("points").stepsize
    return rf"""## Does a learned step size dodge the noise?

The noise reaches the image as $\eta w_k$. The step size $\eta$ is learned as in the paper, held
fixed at its start {start:g}, or learned while the noise is divided by it ("normalised"),
{STEP_SEEDS[archive.preset]} seeds, errors as ratios to MSE training.

{markdown(dodging(archive))}

{sections}And the step sizes that the networks of the tables have learned, {seeds} seeds:

{markdown(learned_steps(archive, seeds))}
"""
