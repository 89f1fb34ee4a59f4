r"""The paper's seven training methods: what each changes about the model, and about the trainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from problem import Problem
from pytorch_optimizer import SOAP
from settings import Settings

import deepinv_jitter as dj

ALGORITHMS = ("gd", "pgd")
#: Problem and algorithm of all that is trained.
CASES = (("points", "gd"), ("seismic", "gd"), ("seismic", "pgd"), ("mri", "gd"), ("mri", "pgd"))
#: The case of Table 5, of which other pages know nothing.
BASELINES = ("mri", "baselines")


def jittered(problem: Problem, algorithm: str, **options) -> torch.nn.Module:
    return problem.model(algorithm, jitter=problem.settings.jitter[algorithm], **options)


def normalised(problem: Problem, algorithm: str, **options) -> torch.nn.Module:
    return dj.spectral_normalize(problem.model(algorithm, **options))


def noisy(problem: Problem, algorithm: str) -> Callable:
    return partial(dj.InputJitterTrainer, sigma=problem.settings.input_sigma[algorithm])


def attacked(problem: Problem, algorithm: str) -> Callable:
    return partial(dj.AttackTrainer, attack=problem.training_attack)


@dataclass(frozen=True)
class Method:
    """A model and a trainer: a training method is the two together."""

    label: str
    model: Callable = Problem.model
    trainer: Callable = lambda problem, algorithm: dj.JitterTrainer
    epochs: float = 1.0  # of those of the preset
    lr: float = 1.0  # of that of the preset for Adam
    optimizer: str | None = None  # instead of the preset's
    noise: tuple[str, ...] = ()  # what it takes of the preset: "jitter", "input"
    # Where an algorithm has its own
    labels: dict[str, str] = field(default_factory=dict)

    def label_for(self, algorithm: str) -> str:
        return self.labels.get(algorithm, self.label)


METHODS = {
    "mse": Method("MSE training"),
    "at": Method("AT", trainer=attacked),
    "input": Method("Input jittering", trainer=noisy, noise=("input",)),
    "jitter": Method(
        "SGD jittering", model=jittered, labels={"pgd": "SPGD jittering"}, noise=("jitter",)
    ),
    "sn": Method("Spectral normalisation", model=normalised),
    # A step of the U-Net takes about 6 of the unrolled network's: half the epochs are about AT
    "ddpm": Method(
        "DDPM",
        model=lambda problem, algorithm: problem.diffusion(),
        trainer=lambda problem, algorithm: dj.DDPMTrainer,
        epochs=0.5,
        lr=0.25,
        optimizer="Adam",
    ),
}


# Recipes for at most twice the cost of MSE training, beyond the paper


def quick(problem: Problem, steps: int = 3) -> dj.Attack:
    """The library's attack for training."""
    return dj.FrankWolfeAttack(problem.settings.ball, steps=steps, keep="last")


def mixed(share: float, steps: int, problem: Problem, algorithm: str) -> Callable:
    return partial(
        dj.RobustTrainer,
        attack=quick(problem, steps),
        share=share,
        sigma=problem.settings.input_sigma[algorithm],
    )


def late(problem: Problem, algorithm: str) -> Callable:
    """Noise for 60 % of the epochs, then attacks."""
    start = problem.settings.epochs - max(1, int(0.4 * problem.settings.epochs))
    return mixed(lambda epoch: float(epoch >= start), 3, problem, algorithm)


INPUT, BOTH = ("input",), ("input", "jitter")
METHODS |= {
    "noise-jitter": Method("Input and SGD jittering", model=jittered, trainer=noisy, noise=BOTH),
    "sixth": Method("Noise, 1/6 attacked", trainer=partial(mixed, 1 / 6, 1), noise=INPUT),
    "half": Method("Noise, 1/2 attacked", trainer=partial(mixed, 1 / 2, 1), noise=INPUT),
    "half-strong": Method(
        "Noise, 1/2 attacked by 3 steps", trainer=partial(mixed, 1 / 2, 3), noise=INPUT
    ),
    "late": Method("Noise first, then AT", trainer=late, noise=INPUT),
}


@dataclass
class NormalisedStepTrainer(dj.JitterTrainer):
    r"""
    SGD jittering with :math:`\eta w_k` of fixed size: the noise is divided by the learned step.

    The optimiser can then no longer reduce the noise by reducing the step.

    :param float stepsize: step size for which :math:`w_k` has the level of the model's jitter.
    """

    stepsize: float = field(kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        self.noise = self.model.fixed_point.iterator.jitter.noise

    def perturb(self, x, y, physics):
        factor = self.stepsize / stepsizes(self.model)[0]
        levels = [factor * sigma for sigma in self.noise.sigma]
        dj.jitter(self.model, dj.GaussianJitter(levels, self.noise.scale, self.noise.generator))
        return y


def stepsizes(model: torch.nn.Module) -> list[float]:
    """The step sizes of an unrolled network as they are applied; none for other models."""
    if not hasattr(model, "update_params_fn"):
        return []
    learned = model.init_params_algo
    count = len(learned["log_stepsize" if "log_stepsize" in learned else "stepsize"])
    with torch.no_grad():
        return [float(model.update_params_fn(k)["stepsize"]) for k in range(count)]


def build(problem: Problem, algorithm: str, method: str, step: str = "learned"):
    """The untrained model."""
    options = {}
    if step == "fixed":
        options = {"trainable_params": [], "positive_stepsize": False}
    return METHODS[method].model(problem, algorithm, **options)


def optimizer_name(settings: Settings, method: str, optimizer: str | None = None) -> str:
    """The optimizer of a method, unless another is asked for."""
    return optimizer or METHODS[method].optimizer or settings.optimizer


def schedule(optimizer: torch.optim.Optimizer, epochs: int, warmup: float):
    """A learning rate that rises for a share of the epochs, then falls as a cosine, to zero."""
    if warmup == 0:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    (group,) = optimizer.param_groups
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, group["lr"], total_steps=epochs + 1, pct_start=warmup, cycle_momentum=False
    )


def fit(
    problem: Problem,
    algorithm: str,
    method: str,
    *,
    seed: int,
    step: str = "learned",
    optimizer: str | None = None,
    budget: float = 1,
    device: str = "cpu",
    verbose: bool = True,
    folder: Path | None = None,
) -> tuple[torch.nn.Module, float]:
    """
    Train from nothing, or from where it was interrupted if there is a folder.

    The model in evaluation mode, and the seconds it took.
    """
    settings = problem.settings
    torch.manual_seed(seed)
    model = build(problem, algorithm, method, step).to(device)
    trainer = METHODS[method].trainer(problem, algorithm)
    if step == "normalised":
        trainer = partial(NormalisedStepTrainer, stepsize=problem.stepsize)
    epochs = max(1, round(METHODS[method].epochs * settings.epochs * budget))
    if optimizer_name(settings, method, optimizer) == "SOAP":
        update = SOAP(model.parameters(), lr=settings.soap, weight_decay=0.0)
    else:
        update = torch.optim.Adam(model.parameters(), lr=METHODS[method].lr * settings.lr)
    loader = problem.loader(seed)
    measured = "y" in next(iter(loader))
    trainer = trainer(
        model,
        problem.physics(seed, device),
        update,
        loader,
        epochs=epochs,
        scheduler=schedule(update, epochs, settings.warmup),
        ema=settings.ema,
        online_measurements=not measured,
        physics_generator=None if measured else problem.masks(seed + 1000, device),
        grad_clip=1.0,
        device=device,
        save_path=folder,
        ckpt_pretrained=None if folder is None else dj.latest_checkpoint(folder),
        ckp_interval=max(1, epochs // 20),
        show_progress_bar=verbose,
        verbose=verbose,
    )
    return trainer.train().eval(), trainer.seconds
