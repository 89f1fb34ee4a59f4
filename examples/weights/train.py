r"""
Trains the networks of ``dj.demo_network``, and keeps the log of each beside its weights.

``python examples/weights/train.py mri_pgd`` writes into the package ``mri_pgd.pt``, the weights,
and ``mri_pgd.csv``, the loss and the PSNR on test data after every epoch. All randomness is seeded;
another processor or another version of torch may round differently. A training takes a quarter of
an hour on one core, the one with attacks half an hour.
"""

import argparse
import csv
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import deepinv as dinv
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import deepinv_jitter as dj

WEIGHTS = Path(dj.__file__).parent / "models" / "weights"


@dataclass(kw_only=True)
class Task:
    """A network, what it learns from, and for how long."""

    model: nn.Module
    physics: dinv.physics.Physics
    train: Dataset
    test: Dataset
    psnr: dinv.metric.PSNR
    masks: dinv.physics.generator.PhysicsGenerator | None = None
    epochs: int
    lr: float
    trainer: Callable = dj.JitterTrainer


def mri(model, jitter=None, trainer=dj.JitterTrainer) -> Task:
    """Brain slices, single-coil MRI, 4x accelerated."""
    size = (96, 96)
    network = dj.UnrolledDnCNN(2, depth=4, width=32, residual=model is dj.UnfoldedPGD)
    noise = dinv.physics.GaussianNoise(0.05, rng=torch.Generator().manual_seed(0))
    brain = dict(img_size=size, resolution=2)
    return Task(
        model=model(network, stepsize=1.0, max_iter=5, jitter=jitter),
        physics=dj.SingleCoilMRI(img_size=size, noise_model=noise),
        train=dj.BrainSliceDataset("train", contrast=True, copies=2, **brain),
        test=dj.BrainSliceDataset("test", spacing=3, **brain),
        psnr=dinv.metric.PSNR(complex_abs=True),
        masks=dj.FastMRIMaskGenerator(size, acceleration=4, seed=0),
        epochs=40,
        lr=2e-3,
        trainer=trainer,
    )


def seismic(jitter=None) -> Task:
    """Layered-earth sections, blurred by a Ricker wavelet."""
    size = (96, 96)
    noise = dinv.physics.GaussianNoise(0.01, rng=torch.Generator().manual_seed(0))
    network = dj.UnrolledDnCNN(1, depth=4, width=32, residual=True)
    return Task(
        model=dj.UnfoldedPGD(network, stepsize=1.0, max_iter=5, jitter=jitter),
        physics=dj.SeismicConvolution(noise_model=noise),
        train=dj.ReflectivityDataset(200, img_size=size, seed=1),
        test=dj.ReflectivityDataset(12, img_size=size, seed=2),
        psnr=dinv.metric.PSNR(),
        epochs=30,
        lr=2e-3,
    )


# relative to the largest magnitude of an iterate, as the noise levels of examples/paper
MRI_JITTER = dj.GaussianJitter(0.05, "relative")
# noise for 60 % of the epochs, then attacks of half the norm of the measurement noise
ROBUST = partial(
    dj.RobustTrainer,
    sigma=0.05,
    attack=dj.FrankWolfeAttack(dj.L2Ball(0.5, relative_to="noise"), steps=3, keep="last"),
)
TASKS = {
    "mri_gd": lambda: mri(dj.UnfoldedGD),
    "mri_gd_jittered": lambda: mri(dj.UnfoldedGD, MRI_JITTER),
    "mri_pgd": lambda: mri(dj.UnfoldedPGD),
    "mri_pgd_jittered": lambda: mri(dj.UnfoldedPGD, MRI_JITTER),
    "mri_pgd_robust": lambda: mri(dj.UnfoldedPGD, trainer=ROBUST),
    "seismic_mse": lambda: seismic(),
    "seismic_jittered": lambda: seismic(jitter=0.01),
}


def train(name: str, out: Path) -> None:
    torch.manual_seed(0)
    task = TASKS[name]()
    optimizer = torch.optim.Adam(task.model.parameters(), lr=task.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, task.epochs)
    trainer = task.trainer(
        task.model,
        task.physics,
        optimizer,
        DataLoader(task.train, batch_size=4, shuffle=True),
        eval_dataloader=DataLoader(task.test, batch_size=4),
        metrics=task.psnr,
        epochs=task.epochs,
        scheduler=schedule,
        online_measurements=True,
        physics_generator=task.masks,
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
        log.writerow(["epoch", "training loss", "test PSNR (dB)"])
        log.writerows(
            (epoch, f"{a:.6g}", f"{b:.3f}")
            for epoch, (a, b) in enumerate(zip(loss, psnr, strict=True), 1)
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="+", choices=TASKS)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    for name in args.names:
        train(name, args.out)
