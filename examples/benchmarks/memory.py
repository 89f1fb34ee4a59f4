r"""
Does memory grow?
=================

``python examples/benchmarks/memory.py --out memory.png`` trains for 2,000 steps, attacks and
evaluates 200 times, all on tiny problems, and prints what the process holds meanwhile: resident
memory when it has warmed up, in the middle and at the end, its slope, open files and child
processes. Every case has a process of its own, as a heap that one has left behind would hide the
growth of the next. ``--quick`` tries everything in a few seconds, in one process: its numbers mean
nothing. Needs Linux, for ``/proc``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from multiprocessing import active_children
from pathlib import Path

import deepinv as dinv
import matplotlib.pyplot as plt
import numpy as np
import torch
from cases import Case
from torch.utils.data import DataLoader

import deepinv_jitter as dj
from deepinv_jitter.evaluation.tables import markdown

#: Share of a run that warms up: allocators, caches and histories reach their size.
WARM = 0.1
SAMPLES = 100
SECTIONS = Case(name="sections", kind="seismic", size=(32, 16), batch=4, depth=3, width=8)
POINTS = Case(name="points", kind="points", size=(2,), batch=10, iterations=3)


@dataclass
class Record:
    """What the process held during a case."""

    steps: list[int] = field(default_factory=list)
    resident: list[float] = field(default_factory=list)  # MiB
    files: list[int] = field(default_factory=list)
    children: list[int] = field(default_factory=list)

    def sample(self, step: int) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.steps.append(step)
        self.resident.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
        self.files.append(len(os.listdir("/proc/self/fd")))
        self.children.append(len(active_children()))

    @property
    def warm(self) -> int:
        """The first sample after the warm-up."""
        return int(np.searchsorted(self.steps, WARM * self.steps[-1]))

    @property
    def slope(self) -> float:
        """MiB per 1,000 steps, by least squares after the warm-up."""
        steps, resident = self.steps[self.warm :], self.resident[self.warm :]
        return 1000 * float(np.polyfit(steps, resident, 1)[0])


def training(record: Record, steps: int, workers: int = 0, **options) -> None:
    """Steps of a trainer, with evaluation and a checkpoint after every 50."""
    per_epoch = min(50, steps)
    truths = dj.ReflectivityDataset(SECTIONS.batch * per_epoch, img_size=SECTIONS.size)
    x = torch.stack([sample["x"] for sample in truths])
    physics = SECTIONS.physics()
    data = dinv.datasets.TensorDataset(x=x, y=physics(x), use_dict_output=True)
    data = dj.IndexedDataset(data)
    test = torch.utils.data.Subset(data, range(8))
    size = {"batch_size": SECTIONS.batch, "num_workers": workers}
    with tempfile.TemporaryDirectory() as folder:
        trainer = SECTIONS.trainer(
            SECTIONS.model(jitter=0.1),
            physics,
            train_dataloader=DataLoader(data, shuffle=True, **size),
            eval_dataloader=DataLoader(test, **size),
            metrics=dinv.metric.MSE(),
            epochs=steps // per_epoch,
            save_path=folder,
            **options,
        )
        done = 0

        def after_step(*_) -> None:
            nonlocal done
            done += 1
            if done % max(1, steps // SAMPLES) == 0:
                record.sample(done)

        trainer.optimizer.register_step_post_hook(after_step)
        trainer.train()
        # What is left while the trainer is still there
        record.sample(done)


def calls(record: Record, steps: int, function: Callable[[], object]) -> None:
    """The same call again and again."""
    for step in range(1, steps + 1):
        function()
        if step % max(1, steps // SAMPLES) == 0:
            record.sample(step)


def attacks(record: Record, steps: int, attack: dj.Attack) -> None:
    model, (x, y, physics) = SECTIONS.model(), SECTIONS.batch_of()
    calls(record, steps, lambda: attack.run(model, x, y, physics))


def evaluations(record: Record, steps: int) -> None:
    model, physics = POINTS.model(), POINTS.physics()
    loader = DataLoader(dj.PointDataset(20), batch_size=10)
    options = {"epsilons": [0.1], "attacks": "quick", "draws": 2, "verbose": False}
    calls(record, steps, lambda: dj.evaluate_robustness(model, loader, physics, **options))


BALL = dj.L2Ball(1.0)
CASES = {  # name: steps, function
    "JitterTrainer": (2000, training),
    "JitterTrainer, 2 workers": (2000, lambda *a: training(*a, workers=2)),
    "AttackTrainer, persistent": (
        2000,
        lambda *a: training(
            *a, attack=dj.FrankWolfeAttack(BALL, steps=1), persistent=True, share=0.5
        ),
    ),
    "APGDAttack": (200, lambda *a: attacks(*a, dj.APGDAttack(BALL, steps=20))),
    "FrankWolfeAttack": (200, lambda *a: attacks(*a, dj.FrankWolfeAttack(BALL))),
    "evaluate_robustness": (200, evaluations),
}


def measured(name: str, steps: int | None = None) -> Record:
    """A case in this process."""
    record, (usual, function) = Record(), CASES[name]
    function(record, usual if steps is None else steps)
    return record


def in_own_process(name: str) -> Record:
    command = [sys.executable, __file__, "--case", name]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Record(**json.loads(found.stdout))


def table(records: dict[str, Record]) -> str:
    """The records as a Markdown table."""
    head = ("case", "steps", "warm, MiB", "middle", "end", "MiB per 1,000 steps")
    lines = [[*head, "open files", "at the end", "children", "at the end"]]
    for name, r in records.items():
        middle = (r.warm + len(r.steps)) // 2
        memory = (f"{r.resident[i]:.1f}" for i in (r.warm, middle, -1))
        held = (max(r.files), r.files[-1], max(r.children), r.children[-1])
        lines.append([name, r.steps[-1], *memory, f"{r.slope:+.2f}", *held])
    return markdown(lines)


def draw(records: dict[str, Record], path: Path) -> None:
    """Memory since the warm-up, over the share of the run that is done."""
    figure, panel = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for name, r in records.items():
        share = np.array(r.steps) / r.steps[-1]
        growth = np.array(r.resident) - r.resident[r.warm]
        label = f"{name}: {r.slope:+.2f} MiB per 1,000"
        panel.plot(100 * share, growth, label=label)
    panel.axvspan(0, 100 * WARM, color="0.9", label="warm-up")
    panel.axhline(0, color="0.5", linewidth=0.8)
    panel.set(xlim=(0, 100), xlabel="part of the steps that is done, %")
    panel.set_ylabel("resident memory since the warm-up, MiB")
    panel.legend(fontsize=8)
    panel.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Does memory grow?")
    parser.add_argument("--quick", action="store_true", help="few steps, to try it")
    parser.add_argument("--case", choices=CASES, help="one case alone, as JSON")
    parser.add_argument("--out", type=Path, help="file for the curves")
    args = parser.parse_args(arguments)
    if args.case is not None:
        print(json.dumps(asdict(measured(args.case))))
        return
    records = {}
    for name in CASES:
        records[name] = measured(name, 2) if args.quick else in_own_process(name)
    print(table(records))
    if args.out is not None:
        draw(records, args.out)


if __name__ == "__main__":
    main()
