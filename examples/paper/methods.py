r"""The paper's seven training methods: what each changes about the model, and about the trainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from problems import Problem

import deepinv_jitter as dj

ALGORITHMS = ("gd", "pgd")


def unrolled(problem: Problem, algorithm: str, **options) -> torch.nn.Module:
    return problem.model(algorithm, **options)


def jittered(problem: Problem, algorithm: str, **options) -> torch.nn.Module:
    return problem.model(algorithm, jitter=problem.settings.jitter[algorithm], **options)


def normalised(problem: Problem, algorithm: str, **options) -> torch.nn.Module:
    return dj.spectral_normalize(problem.model(algorithm, **options))


def diffusion(problem: Problem, algorithm: str) -> torch.nn.Module:
    return problem.diffusion()


def plain(problem: Problem) -> Callable:
    return dj.JitterTrainer


def noisy(problem: Problem) -> Callable:
    return partial(dj.InputJitterTrainer, sigma=problem.settings.input_sigma)


def attacked(problem: Problem) -> Callable:
    return partial(dj.AttackTrainer, attack=problem.training_attack)


def denoising(problem: Problem) -> Callable:
    return dj.DDPMTrainer


@dataclass(frozen=True)
class Method:
    """A model and a trainer: a training method is the two together."""

    label: str
    model: Callable = unrolled
    trainer: Callable = plain
    epochs: float = 1.0  # of those of the preset
    lr: float = 1.0  # of that of the preset
    # Where an algorithm has its own
    labels: dict[str, str] = field(default_factory=dict)

    def label_for(self, algorithm: str) -> str:
        return self.labels.get(algorithm, self.label)


METHODS = {
    "mse": Method("MSE training"),
    "at": Method("AT", trainer=attacked),
    "input": Method("Input jittering", trainer=noisy),
    "jitter": Method("SGD jittering", model=jittered, labels={"pgd": "SPGD jittering"}),
    "sn": Method("Spectral normalisation", model=normalised),
    # A step of the U-Net takes about 6 of the unrolled network's: half the epochs are about AT
    "ddpm": Method("DDPM", model=diffusion, trainer=denoising, epochs=0.5, lr=0.25),
}


# Recipes for at most twice the cost of MSE training, beyond the paper


def quick(problem: Problem, steps: int = 3) -> dj.Attack:
    """The library's attack for training."""
    return dj.FrankWolfeAttack(problem.settings.ball, steps=steps, keep="last")


def persistent(problem: Problem) -> Callable:
    return partial(dj.AttackTrainer, attack=quick(problem, steps=1), persistent=True)


def shared(share: float, problem: Problem) -> Callable:
    return partial(dj.AttackTrainer, attack=quick(problem), share=share)


def robust(share: float | None, problem: Problem) -> Callable:
    return partial(
        dj.RobustTrainer, attack=quick(problem), share=share, sigma=problem.settings.input_sigma
    )


METHODS |= {
    "persistent": Method("Persistent attack", trainer=persistent),
    "half": Method("Attack on 1/2 of the batches", trainer=partial(shared, 1 / 2)),
    "third-noise": Method("Attack on 1/3, noise on the others", trainer=partial(robust, 1 / 3)),
    "recipe": Method("Noise, then attack", trainer=partial(robust, None)),
    "recipe-jitter": Method(
        "Noise, then attack, SGD jittering", model=jittered, trainer=partial(robust, None)
    ),
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
        self.law = self.model.fixed_point.iterator.jitter.noise

    def perturb(self, x, y, physics):
        factor = self.stepsize / stepsizes(self.model)[0]
        levels = [factor * sigma for sigma in self.law.sigma]
        dj.jitter(self.model, dj.GaussianJitter(levels, self.law.scale, self.law.generator))
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


def fit(
    problem: Problem,
    algorithm: str,
    method: str,
    *,
    seed: int,
    step: str = "learned",
    budget: int = 1,
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
    trainer = METHODS[method].trainer(problem)
    if step == "normalised":
        trainer = partial(NormalisedStepTrainer, stepsize=problem.stepsize)
    epochs = max(1, round(METHODS[method].epochs * settings.epochs * budget))
    optimizer = torch.optim.Adam(model.parameters(), lr=METHODS[method].lr * settings.lr)
    loader = problem.loader(seed)
    measured = "y" in next(iter(loader))
    trainer = trainer(
        model,
        problem.physics(seed, device),
        optimizer,
        loader,
        epochs=epochs,
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs),
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
