r"""Table 6: training speed of the methods, measured side by side."""

from __future__ import annotations

import time
from statistics import median

import paper
import torch
from methods import ALGORITHMS, METHODS, build
from problem import Problem
from problems import PROBLEMS
from runs import Archive, device_name
from tables import markdown

METHODS_TIMED = ("mse", "at", "input", "jitter")
ROUNDS = {"smoke": 1, "cpu": 15, "paper": 15}


def measured(archive: Archive) -> dict:
    """Seconds of single training steps, for each problem, algorithm and method, in turns."""
    seconds: dict[str, list[float]] = {}
    for name in archive.problems:
        problem = archive.problem(name)
        for algorithm in ALGORITHMS:
            steps = {m: training_step(problem, algorithm, m, archive.device) for m in METHODS_TIMED}
            for step in steps.values():
                step()  # the first one allocates
            for _ in range(ROUNDS[archive.preset]):
                for method, step in steps.items():
                    start = time.perf_counter()
                    step()
                    taken = time.perf_counter() - start
                    seconds.setdefault(f"{name}-{algorithm}-{method}", []).append(taken)
    batch = {name: archive.problem(name).settings.batch for name in archive.problems}
    return {"seconds": seconds, "batch": batch, "device": device_name(archive.device)}


def training_step(problem: Problem, algorithm: str, method: str, device: str):
    """One training step on a fixed batch, as a function; it waits for the device."""
    torch.manual_seed(0)
    model = build(problem, algorithm, method).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=problem.settings.lr)
    physics = problem.physics(0, device)
    x = problem.truths["train"][: problem.settings.batch].to(device)
    masks = problem.masks(0, device)
    y = physics(x, **(masks.step(len(x)) if masks else {}))
    trainer = METHODS[method].trainer(problem, algorithm)(
        model, physics, optimizer, [], device=device, save_path=None, verbose=False
    )
    trainer.setup_train()

    def step() -> None:
        model.train()
        trainer.compute_loss(trainer.physics[0], x, y, train=True, step=True)
        if x.is_cuda:
            torch.cuda.synchronize()

    return step


def rows_of(record: dict) -> list[list[str]]:
    """Items per second and steps of MSE training, beside the paper's."""
    head = ["algorithm", "method"]
    for name in record["batch"]:
        head += [name, "/ MSE", "paper", "/ MSE"]
    rows = [head]
    for algorithm in ALGORITHMS:
        for method in METHODS_TIMED:
            row = [algorithm.upper(), METHODS[method].label_for(algorithm)]
            for name in record["batch"]:
                i = list(PROBLEMS).index(name)
                own = record["seconds"][f"{name}-{algorithm}-{method}"]
                mse = record["seconds"][f"{name}-{algorithm}-mse"]
                ratio = median(a / b for a, b in zip(own, mse, strict=True))
                speed = record["batch"][name] / median(own)
                theirs = paper.SPEED[algorithm, method][i]
                base = paper.SPEED[algorithm, "mse"][i]
                row += [digits(speed), f"{ratio:.2f}", digits(theirs), f"{base / theirs:.2f}"]
            rows.append(row)
    return rows


def digits(value: float) -> str:
    """Four of them, without an exponent."""
    return f"{float(f'{value:.4g}'):g}"


def render(archive: Archive) -> str:
    """The page of Table 6, measured anew unless its record is there."""
    path = archive.folder / "runs" / "speed.json"
    record = archive.kept(path, lambda: measured(archive))
    rounds = len(next(iter(record["seconds"].values())))
    attack = {"power": "3 Frank-Wolfe steps", "paper": "the paper's attack"}
    attacks = {attack[archive.problem(n).settings.train_attack] for n in archive.problems}
    return (
        "# Table 6: Training speed\n\nItems per second, and the time of a training step in steps "
        f"of MSE training.\n\n{markdown(rows_of(record))}\n\n"
        f"- Medians of {rounds} rounds in which the methods take turns; single steps on a fixed "
        f"batch, through the trainers. AT with {', '.join(attacks)} here, with 50 (points) and 20 "
        "steps in the paper, whose own count of items is kept.\n"
        f"- Preset {archive.preset}, {record['device']}.\n"
    )
