r"""What the paper's problems have in common: data, physics, networks, attacks and references."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

import deepinv as dinv
import torch
from settings import Settings
from torch.utils.data import DataLoader, RandomSampler

import deepinv_jitter as dj

Elsewhere = tuple[torch.Tensor, dict, dinv.physics.LinearPhysics]


class Problem(ABC):
    """
    A forward operator with data, networks, shifts and reference methods.

    Measurements are made by :func:`deepinv_jitter.evaluate_robustness` for the test and by the
    trainer in training; nothing here draws from a global generator.
    """

    name: str
    presets: dict[str, Settings]
    paper_attack = {"steps": 20, "step": 0.1}

    def __init__(self, preset: str, data: str | None = None):
        self.settings = self.presets[preset]
        self.data = data

    def at_noise(self, sigma: float | None) -> Problem:
        """The problem with another level of SGD and of input jittering, or as it is."""
        if sigma is None:
            return self
        other = copy.copy(self)
        noises = {k: dj.GaussianJitter(sigma, v.scale) for k, v in self.settings.jitter.items()}
        inputs = dict.fromkeys(self.settings.input_sigma, sigma)
        other.settings = replace(self.settings, jitter=noises, input_sigma=inputs)
        return other

    @abstractmethod
    def samples(self, split: str) -> torch.Tensor:
        """All truths of ``"train"``, ``"validation"`` or ``"test"``."""

    @abstractmethod
    def physics(self, seed: int, device: str = "cpu") -> dinv.physics.LinearPhysics:
        """The forward operator, with a noise generator of its own."""

    @abstractmethod
    def network(self, algorithm: str) -> torch.nn.Module:
        """The paper's network body, freshly initialised by the global generator."""

    @property
    @abstractmethod
    def shifts(self) -> dict[str, dj.Shift]:
        """The out-of-distribution edits; the first is the tables'."""

    @property
    def elsewhere(self) -> dict[str, Elsewhere]:
        """Data that nothing was tuned on: truths, parameters of the physics, and the physics."""
        return {}

    @property
    @abstractmethod
    def references(self) -> dict[str, Callable[[], torch.nn.Module]]:
        """Methods without training, as functions that make them."""

    reads_y = False
    complex = False  # images of 2 channels, real and imaginary
    stepsize = 1.0
    lambda_reg = 1.0
    init = staticmethod(dj.models.unfolded.adjoint)

    def model(self, algorithm: str, jitter: dj.GaussianJitter | None = None, **options):
        """The unrolled network of the paper: ``"gd"`` is eq. (8), ``"pgd"`` eq. (12)."""
        unfolded, prior = {
            "gd": (dj.UnfoldedGD, dj.GradientPrior),
            "pgd": (dj.UnfoldedPGD, dj.ProximalPrior),
        }[algorithm]
        arguments = {
            "stepsize": self.stepsize,
            "max_iter": self.settings.iterations,
            "jitter": jitter,
            "lambda_reg": self.lambda_reg,
            "positive_stepsize": True,
            "init": self.init,
        }
        count = self.settings.iterations if self.settings.own_networks else 1
        networks = [prior(self.network(algorithm), reads_y=self.reads_y) for _ in range(count)]
        return unfolded(networks if count > 1 else networks[0], **arguments | options)

    def noise(self, seed: int, device: str, factor: float = 1.0) -> dinv.physics.GaussianNoise:
        """The measurement noise."""
        rng = torch.Generator(device).manual_seed(seed)
        return dinv.physics.GaussianNoise(factor * self.settings.noise, rng=rng)

    def masks(
        self, seed: int, device: str = "cpu"
    ) -> dinv.physics.generator.PhysicsGenerator | None:
        """What draws the parameters of the physics for each batch, if anything does."""
        return None

    def loader(self, seed: int) -> DataLoader:
        """Training batches, in an order that follows from the seed."""
        truths = dj.IndexedDataset(
            dinv.datasets.TensorDataset(x=self.truths["train"], use_dict_output=True)
        )
        order = torch.Generator().manual_seed(seed)
        sampler = RandomSampler(truths, num_samples=self.settings.draws, generator=order)
        return DataLoader(truths, self.settings.batch, sampler=sampler, generator=order)

    @cached_property
    def truths(self) -> dict[str, torch.Tensor]:
        return {split: self.samples(split) for split in ("train", "validation", "test")}

    def batches(self, split: str) -> list[dict]:
        """All samples of a split in one batch, with parameters that are always the same."""
        x, masks = self.truths[split], self.masks(seed=1)
        return [{"x": x, "params": masks.step(len(x)) if masks else {}}]

    @property
    def metrics(self) -> dict[str, dinv.metric.Metric]:
        """For :func:`deepinv_jitter.evaluate_robustness`: the host's and the paper's."""
        psnr, ssim = (
            metric(complex_abs=self.complex) for metric in (dinv.metric.PSNR, dinv.metric.SSIM)
        )
        metrics = {"PSNR": psnr, "SSIM": ssim, "NMSE": dinv.metric.NMSE()}
        metrics |= {"PSNR (paper)": dj.PaperPSNR(), "SSIM (paper)": dj.PaperSSIM()}
        # The window of SSIM is 11 pixels wide
        wide = min(self.settings.size) >= 11
        return {name: m for name, m in metrics.items() if wide or "SSIM" not in name}

    def tuned(
        self, solver: Callable[[float], torch.nn.Module], weights: Sequence[float]
    ) -> torch.nn.Module:
        """The classical method with the weight that is best on the validation data."""
        batch, physics = self.batches("validation")[0], self.physics(3)
        psnr = dinv.metric.PSNR(complex_abs=self.complex)
        y = physics(batch["x"], **batch["params"])

        def quality(weight: float) -> float:
            with torch.no_grad():
                return psnr(solver(weight)(y, physics), batch["x"]).mean().item()

        return solver(max(weights, key=quality))

    def risks(self, model: torch.nn.Module) -> dict:
        """What else is measured of a trained model."""
        return {}

    @property
    def attack(self) -> dj.Attack:
        """The strong attack of the evaluation."""
        ball, steps = self.settings.ball, self.settings.steps
        if steps is None:
            return dj.ConvergedAttack.standard(ball, checks=False)
        power = dj.FrankWolfeAttack(ball, steps=10, momentum=0.0, checks=False)
        return dj.WorstCase([dj.APGDAttack(ball, steps=steps), power])

    def attack_of_the_paper(self, radius: float) -> dj.Attack:
        """Projected gradient ascent with the paper's number and length of steps, from zero."""
        ball = dj.L2Ball(radius, relative_to=self.settings.relative_to)
        steps, step = self.paper_attack["steps"], self.paper_attack["step"]
        return dj.PGDAttack(ball, steps=steps, rel_step=step, keep="last", checks=False)

    @property
    def training_attack(self) -> dj.Attack:
        if self.settings.train_attack == "paper":
            return self.attack_of_the_paper(self.settings.radius)
        return dj.FrankWolfeAttack(self.settings.ball, steps=3, momentum=0.0, keep="last")
