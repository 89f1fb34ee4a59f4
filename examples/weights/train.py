r"""
Trains the networks of ``dj.demo_network``, and keeps the log of each beside its weights.

``python examples/weights/train.py mri_mse`` writes into the package ``mri_mse.pt``, the weights,
and ``mri_mse.csv``, the loss and the PSNR on held-out data after every epoch. All randomness is
seeded; another processor or another version of torch may round differently. A training takes
about five minutes on one core: drawn data, a learning rate that rises and falls, averaged weights,
as in ``examples/paper``.
"""

import argparse
import csv
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import deepinv as dinv
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler

import deepinv_jitter as dj
from deepinv_jitter.models.demo import WEIGHTS, untrained

EPOCHS, STEPS = 20, 100  # steps of an epoch


@dataclass(kw_only=True)
class Problem:
    """What a network learns from."""

    physics: dinv.physics.Physics
    train: Dataset
    held_out: Dataset
    psnr: dinv.metric.PSNR
    jitter: float  # relative to the largest magnitude of an iterate
    input_sigma: float
    masks: dinv.physics.generator.PhysicsGenerator | None = None
    batch_size: int
    lr: float


def mri() -> Problem:
    """Brain slices of 1 mm, single-coil MRI, 4x accelerated."""
    size = (160, 128)
    noise = dinv.physics.GaussianNoise(0.05, rng=torch.Generator().manual_seed(0))
    return Problem(
        physics=dj.SingleCoilMRI(img_size=size, noise_model=noise),
        train=dj.BrainSliceDataset("train", img_size=size, contrast=True, copies=100),
        held_out=dj.BrainSliceDataset("test", img_size=size, spacing=3),
        psnr=dinv.metric.PSNR(complex_abs=True),
        jitter=0.05,
        input_sigma=0.05,
        masks=dj.FastMRIMaskGenerator(size, acceleration=4, seed=0),
        batch_size=1,
        lr=2e-3,
    )


def seismic() -> Problem:
    """Layered-earth sections, blurred by a Ricker wavelet."""
    size = (96, 96)
    noise = dinv.physics.GaussianNoise(0.01, rng=torch.Generator().manual_seed(0))
    return Problem(
        physics=dj.SeismicConvolution(noise_model=noise),
        train=dj.ReflectivityDataset(10_000, img_size=size, seed=1),
        held_out=dj.ReflectivityDataset(12, img_size=size, seed=2),
        psnr=dinv.metric.PSNR(),
        jitter=0.01,
        input_sigma=0.01,
        batch_size=2,
        lr=4e-3,
    )


PROBLEMS = {"mri": mri, "seismic": seismic}
ATTACK = dj.FrankWolfeAttack(dj.L2Ball(0.5, relative_to="noise"), steps=1, keep="last")


def trainer_of(method: str, problem: Problem) -> Callable:
    if method == "robust":
        return partial(dj.RobustTrainer, attack=ATTACK, sigma=problem.input_sigma)
    return dj.JitterTrainer


def train(name: str, out: Path) -> None:
    kind, method = name.split("_")
    problem = PROBLEMS[kind]()
    torch.manual_seed(0)
    jitter = dj.GaussianJitter(problem.jitter, "relative") if method == "jittered" else None
    model = untrained(kind, jitter)
    optimizer = torch.optim.Adam(model.parameters(), lr=problem.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, problem.lr, total_steps=EPOCHS + 1, pct_start=0.2, cycle_momentum=False
    )
    sampler = RandomSampler(problem.train, num_samples=STEPS * problem.batch_size)
    trainer = trainer_of(method, problem)(
        model,
        problem.physics,
        optimizer,
        DataLoader(problem.train, problem.batch_size, sampler=sampler),
        eval_dataloader=DataLoader(problem.held_out, batch_size=4),
        metrics=problem.psnr,
        epochs=EPOCHS,
        scheduler=schedule,
        ema=0.998,
        online_measurements=True,
        physics_generator=problem.masks,
        grad_clip=1.0,
        device="cpu",
        save_path=None,
        show_progress_bar=False,
    )
    torch.save(trainer.train().state_dict(), out / f"{name}.pt")
    loss = trainer.loss_history["SupLoss"]
    psnr = trainer.eval_metrics_history["PSNR"]
    with open(out / f"{name}.csv", "w", newline="") as file:
        log = csv.writer(file)
        log.writerow(["epoch", "training loss", "held-out PSNR (dB)"])
        log.writerows(
            (epoch, f"{a:.6g}", f"{b:.3f}")
            for epoch, (a, b) in enumerate(zip(loss, psnr, strict=True), 1)
        )


NAMES = [f"{problem}_{method}" for problem in PROBLEMS for method in ("mse", "jittered", "robust")]

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="+", choices=NAMES)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    for name in args.names:
        train(name, args.out)
