r"""
What data-parallel training sends, and what that costs on 2, 8 and 64 GPUs.

``torchrun --standalone --nproc_per_node=2 examples/benchmarks/scaling.py`` measures, on two
processes, the step of a trainer with and without the others, and the messages of one step.
``python examples/benchmarks/scaling.py`` measures weak scaling: the step of 1, 2 and 4 processes,
in turns, each with a batch of its own. Where there are more processes than cores, the time of the
processor tells what they cost each other, the time of the clock that they wait for a core.

The table of GPUs is computed, for the faster of two ways to add up S bytes over N GPUs: a ring
sends 2 (N - 1) / N S through each link in 2 (N - 1) hops, a tree 2 S in 2 log2 N hops. Bandwidth,
latency and the step of a GPU are assumed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import deepinv as dinv
import torch
from measure import Times
from torch import distributed
from torch.utils.data import DataLoader, DistributedSampler, Subset

import deepinv_jitter as dj
from deepinv_jitter.evaluation.tables import markdown
from deepinv_jitter.training import distributed as processes

SIZE = (96, 96)
BATCH, STEPS = 4, 12
LINKS = {  # bytes per second and seconds per hop, of each GPU
    "NVLink, one machine": (200e9, 5e-6),
    "InfiniBand, 200 Gbit/s": (25e9, 15e-6),
    "Ethernet, 10 Gbit/s": (1.25e9, 50e-6),
}
MODELS = {  # parameters, and a step in seconds on one GPU
    "the demos' network": (19_747, 0.02),
    "the paper's MRI network": (224_322, 0.2),
    "a VarNet": (30_000_000, 0.5),
}
FLAGS = 2  # of a word: is every loss finite, has a signal come


def timed(action, repeat: int = STEPS) -> float:
    """Median seconds of an action of all processes together."""
    taken = []
    for _ in range(repeat + 2):
        distributed.barrier()
        start = time.perf_counter()
        action()
        taken.append(time.perf_counter() - start)
    return median(taken[2:])


def trainer() -> dj.JitterTrainer:
    torch.manual_seed(0)
    network = dj.UnrolledDnCNN(2, depth=4, width=32, residual=True)
    model = dj.UnfoldedPGD(network, max_iter=5, jitter=0.01)
    physics = dj.SingleCoilMRI(
        dj.FastMRIMaskGenerator(SIZE, seed=0).step(1)["mask"],
        img_size=SIZE,
        noise_model=dinv.physics.GaussianNoise(0.05),
    )
    data = dj.BrainSliceDataset("train", img_size=SIZE, resolution=2)
    data = Subset(data, range(BATCH * processes.count()))
    return dj.JitterTrainer(
        model,
        physics,
        torch.optim.Adam(model.parameters(), lr=1e-3),
        DataLoader(data, BATCH, sampler=DistributedSampler(data)),
        online_measurements=True,
        device="cpu",
        epochs=1,
        save_path=None,
        verbose=False,
        ddp_options={},
    )


def training_step(run: dj.JitterTrainer):
    """A step of the trainer, by all processes together."""
    run.setup_train()
    x = torch.stack([run.train_dataloader[0].dataset[i]["x"] for i in range(BATCH)])
    y = run.physics[0](x)

    def step() -> None:
        run.optimizer.zero_grad(set_to_none=True)
        run.compute_loss(run.physics[0], x, y, train=True, epoch=0)
        run.optimizer.step()

    return step


def measured() -> dict[str, float]:
    """Seconds of a step, together and alone, and of its messages."""
    run = trainer()
    step = training_step(run)
    seconds = {"step of two processes": timed(step)}
    run._parallel = None  # as in a single process, but for the flag
    seconds["step without their gradients"] = timed(step)
    count = sum(p.numel() for p in run.model.parameters())
    gradient = torch.zeros(count)
    seconds[f"gradient of {4 * count / 1e3:.0f} kB"] = timed(
        lambda: distributed.all_reduce(gradient), 50
    )
    seconds["flag"] = timed(lambda: processes.largest([0], run.device), 50)
    return seconds


def write_steps(path: Path) -> None:
    """Seconds of a step, by the clock and of the processor, the mean of all processes."""
    step, seconds = training_step(trainer()), []
    for _ in range(STEPS + 2):
        distributed.barrier()
        clock, processor = time.perf_counter(), time.process_time()
        step()
        seconds.append([time.perf_counter() - clock, time.process_time() - processor])
    mean = torch.tensor(seconds[2:], dtype=torch.float64)
    distributed.all_reduce(mean)
    if processes.own() == 0:
        path.write_text(json.dumps((mean / processes.count()).tolist()))


def weak(counts: list[int], rounds: int) -> str:
    """The table of weak scaling; of every round the medians of its steps."""
    names = ("clock", "processor")
    seconds: dict[str, list[float]] = {f"{n} {name}": [] for n in counts for name in names}
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for trial in range(rounds):
        for n in counts if trial % 2 else counts[::-1]:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "steps.json"
                command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
                command += [f"--nproc_per_node={n}", __file__, "--steps", str(path)]
                subprocess.run(command, env=environment, check=True, capture_output=True)
                steps = json.loads(path.read_text())
            for name, values in zip(names, zip(*steps, strict=True), strict=True):
                seconds[f"{n} {name}"].append(median(values))
    times, one = Times(seconds), counts[0]
    lines = [["processes", "ms, clock", "of one process's", "ms, processor", "of one process's"]]
    for n in counts:
        cells = [
            text
            for name in names
            for text in (
                f"{1e3 * times.median(f'{n} {name}'):.0f}",
                str(times.ratio(f"{n} {name}", f"{one} {name}")),
            )
        ]
        lines.append([str(n), *cells])
    return markdown(lines)


def computed(parameters: int, count: int, link: tuple[float, float]) -> float:
    """Seconds for the messages of a step on so many GPUs, none of it hidden by the computation."""
    bandwidth, latency = link

    def message(size: int) -> float:
        ring = 2 * (count - 1) * (size / count / bandwidth + latency)
        tree = 2 * size / bandwidth + 2 * math.log2(count) * latency
        return min(ring, tree)

    return message(4 * parameters) + FLAGS * message(8)


def main() -> None:
    parser = argparse.ArgumentParser(description="Data-parallel training: what the others cost")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if "RANK" not in os.environ:
        print(weak(args.counts, args.rounds))
        return
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    if args.steps is not None:
        write_steps(args.steps)
        distributed.destroy_process_group()
        return
    seconds = measured()
    if processes.own() == 0:
        milliseconds = [[name, f"{1e3 * s:.3g}"] for name, s in seconds.items()]
        print(markdown([["measured on 2 processes, gloo", "ms"], *milliseconds]))
        head = "network (parameters, gradient, assumed step)"
        lines = [[head, "link", "2", "8", "64 GPUs"]]
        for name, (parameters, step) in MODELS.items():
            size = f"{parameters:,}, {4 * parameters / 1e6:.3g} MB, {1e3 * step:g} ms"
            for link, speed in LINKS.items():
                costs = [computed(parameters, n, speed) for n in (2, 8, 64)]
                cells = [f"{float(f'{1e3 * c:.2g}'):g} ms, {100 * c / step:.2g} %" for c in costs]
                lines.append([f"{name} ({size})", link, *cells])
        print("\n" + markdown(lines))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
