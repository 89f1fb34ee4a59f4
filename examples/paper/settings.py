r"""The numbers of the presets: ``smoke`` for tests, ``cpu`` for two cores, ``paper`` for a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import deepinv_jitter as dj


def both(value: Any) -> dict[str, Any]:
    """The same for both algorithms."""
    return dict.fromkeys(("gd", "pgd"), value)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The numbers of a preset; those of ``paper`` are from its App. G and H, and its code."""

    size: tuple[int, ...]
    train: int  # samples
    validation: int
    test: int
    iterations: int  # K
    width: int
    depth: int
    batch: int
    epochs: int
    lr: float  # of Adam
    noise: float  # standard deviation of the measurement noise
    input_sigma: dict[str, float]  # input jittering: standard deviation of each entry
    jitter: dict[str, dj.GaussianJitter]  # SGD and SPGD jittering, by algorithm
    radius: float  # of the attack in training and in the tables
    relative_to: str | None  # the unit of the radius: None is absolute
    radii: tuple[float, ...]  # all that are evaluated
    train_attack: str  # "power" is 3 full steps, "paper" the paper's own attack
    steps: int | None = None  # of APGD in the evaluation; None goes on until it has converged
    solver_steps: int = 100  # iterations of the classical reference
    repeat: int = 1  # passes over the training set in one epoch of the trainer
    draws: int | None = None  # training samples drawn for an epoch; None takes each once
    # "Adam", or "SOAP" (Vyas et al., 2024), which takes the networks further in as many steps
    optimizer: str = "Adam"
    soap: float = 0.01  # learning rate of SOAP
    warmup: float = 0.0  # share of the epochs in which the learning rate rises
    own_networks: bool = False  # one network for each iteration instead of one for all
    ema: float | None = None  # decay of the average over the weights that is kept

    @property
    def ball(self) -> dj.L2Ball:
        return dj.L2Ball(self.radius, relative_to=self.relative_to)

    @property
    def attacked(self) -> str:
        """The condition of the strong attack, as reports call it."""
        return f"worst case, eps={self.radius:g}"


_POINTS = {
    "size": (2,), "train": 200, "validation": 50, "test": 50, "width": 32, "depth": 3,
    "batch": 200, "noise": 0.1, "input_sigma": both(0.1),
    "jitter": both(dj.GaussianJitter(0.1, "norm")), "radius": 0.01, "relative_to": None,
    "radii": (0.01, 0.02, 0.05, 0.1),
}  # fmt: skip
POINTS = {
    "smoke": Settings(**_POINTS | {"validation": 8, "test": 8, "radii": (0.01, 0.05)},
                      iterations=2, epochs=1, repeat=2, lr=1e-3, train_attack="power", steps=2),
    "cpu": Settings(**_POINTS, iterations=10, epochs=20, repeat=50, lr=1e-3,
                    train_attack="power"),
    "paper": Settings(**_POINTS, iterations=10, epochs=100, repeat=50, lr=1e-4,
                      train_attack="paper", steps=100),
}  # fmt: skip

SEISMIC = {
    "smoke": Settings(
        size=(24, 24), train=4, validation=2, test=2, iterations=2, width=8, depth=3, batch=2,
        epochs=1, lr=3e-3, optimizer="SOAP", noise=0.01, input_sigma=both(0.05),
        jitter=both(dj.GaussianJitter(0.1, "relative")),
        radius=0.5, relative_to="noise", radii=(0.5,), train_attack="power", steps=2,
        solver_steps=3),
    "cpu": Settings(
        size=(64, 64), train=4000, validation=12, test=36, iterations=5, width=16, depth=4, batch=4,
        epochs=20, draws=480, lr=5e-3, optimizer="SOAP", warmup=0.2, own_networks=True,
        ema=0.998, noise=0.01, input_sigma=both(0.01),
        jitter={k: dj.GaussianJitter(v, "relative") for k, v in {"gd": 2.0, "pgd": 0.5}.items()},
        radius=0.5, relative_to="noise", radii=(0.5,), train_attack="power"),
    "paper": Settings(
        size=(352, 352), train=1000, validation=100, test=100, iterations=10, width=64, depth=5,
        batch=16, epochs=100, lr=1e-4, noise=0.01, input_sigma=both(0.05),
        jitter=both(dj.GaussianJitter(0.1, "relative")), radius=1.0, relative_to=None,
        radii=(1.0, 3.52), train_attack="paper", steps=100),
}  # fmt: skip

MRI = {
    "smoke": Settings(
        size=(32, 32), train=4, validation=2, test=2, iterations=2, width=8, depth=3, batch=2,
        epochs=1, draws=2, lr=3e-3, optimizer="SOAP", warmup=0.2, own_networks=True, ema=0.9,
        noise=0.05, input_sigma=both(0.05), jitter=both(dj.GaussianJitter(0.05, "relative")),
        radius=0.5, relative_to="noise", radii=(0.5,), train_attack="power", steps=2,
        solver_steps=3),
    "cpu": Settings(
        size=(64, 64), train=12000, validation=12, test=12, iterations=5, width=16, depth=4,
        batch=2, epochs=20, draws=200, lr=2e-3, optimizer="SOAP", warmup=0.2, own_networks=True,
        ema=0.998, noise=0.05, input_sigma=both(0.05),
        jitter={k: dj.GaussianJitter(v, "relative") for k, v in {"gd": 0.02, "pgd": 0.05}.items()},
        radius=0.5, relative_to="noise", radii=(0.5,), train_attack="power", solver_steps=60),
    "paper": Settings(
        size=(320, 320), train=1000, validation=100, test=100, iterations=10, width=64, depth=8,
        batch=4, epochs=130, lr=1e-4, noise=0.05, input_sigma=both(0.05),
        jitter=both(dj.GaussianJitter(0.01, "relative")), radius=1.0, relative_to=None,
        radii=(1.0, 11.4), train_attack="paper", steps=100),
}  # fmt: skip
