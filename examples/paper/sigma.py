r"""How the noise levels of the presets were chosen: on validation data, by ``choose_sigma``."""

from __future__ import annotations

import torch
from methods import METHODS
from runs import Archive, Run, scores
from tables import case_name, markdown

import deepinv_jitter as dj

#: Levels that were tried, for each problem, algorithm and method; 0 is MSE training.
LEVELS = {
    ("seismic", "gd", "jitter"): (0.1, 0.5, 2.0),
    ("seismic", "pgd", "jitter"): (0.1, 0.5, 2.0),
    ("seismic", "gd", "input"): (0.005, 0.01, 0.02, 0.05),
    ("seismic", "pgd", "input"): (0.005, 0.01, 0.02, 0.05),
    ("mri", "gd", "jitter"): (0.02, 0.05, 0.1),
    ("mri", "pgd", "jitter"): (0.02, 0.05, 0.1),
    ("mri", "gd", "input"): (0.02, 0.05, 0.1),
    ("mri", "pgd", "input"): (0.02, 0.05, 0.1),
}
#: Loss of accuracy on clean data that is accepted, in dB.
TOLERANCE = 0.25


def chosen(archive: Archive, problem: str, algorithm: str, method: str) -> tuple[float, list]:
    """The level of the noise, and the mean PSNR of every level, clean and under attack."""
    levels = LEVELS[problem, algorithm, method]
    if archive.preset == "smoke":
        levels = levels[:1]
    settings = archive.problem(problem).settings
    if method == "jitter":
        (preset,) = settings.jitter[algorithm].sigma
    else:
        preset = settings.input_sigma[algorithm]

    def run(level: float) -> Run:
        if level == 0:
            return Run(problem, algorithm, "mse", split="validation")
        sigma = None if level == preset else level
        return Run(problem, algorithm, method, sigma=sigma, split="validation")

    runs = {level: run(level) for level in (0.0, *levels)}
    records = {level: archive.record(run) for level, run in runs.items()}
    clean, attacked = (
        {level: torch.tensor(scores(record, condition)) for level, record in records.items()}
        for condition in ("clean", settings.attacked)
    )
    curve = [(level, clean[level].mean(), attacked[level].mean()) for level in records]
    reference = clean.pop(0.0)
    del attacked[0.0]
    best = dj.choose_sigma(clean, attacked, tolerance=TOLERANCE, reference=reference)
    return best, curve


def render(archive: Archive, seeds: int) -> str:
    """The page: one training of each level, whatever ``seeds`` says."""
    rows = [["problem", "method", "σ", "clean", "strong attack", ""]]
    levels = [key for key in LEVELS if key[:2] in archive.cases]
    for problem, algorithm, method in levels:
        best, curve = chosen(archive, problem, algorithm, method)
        for level, clean, attacked in curve:
            row = [case_name(problem, algorithm), METHODS[method].label_for(algorithm)]
            row += [f"{level:g}", f"{clean:.2f}", f"{attacked:.2f}"]
            rows.append([*row, "chosen" if level == best else ""])
    return (
        "# Noise levels\n\nPSNR in dB on validation data, one training each, preset "
        f"{archive.preset}. Level 0 is MSE training. Chosen: of the "
        f"other levels, the most robust one whose accuracy is at most {TOLERANCE:g} dB below that "
        f"of MSE training, or not worse beyond doubt (`choose_sigma`).\n\n{markdown(rows)}\n"
    )
