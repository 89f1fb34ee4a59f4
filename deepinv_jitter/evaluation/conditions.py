r"""The conditions that a batch is tried under, one by one."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from random import Random

import torch
from deepinv.loss.metric import PSNR, SSIM, Metric
from deepinv.physics import LinearPhysics, Physics
from torch import nn

from ..attacks.base import Attack, WorstCase
from ..attacks.parts import Layout
from ..attacks.samples import column
from .cache import describe, fingerprint
from .results import (
    ERROR,
    OUTSIDE,
    RANDOM,
    RECOVERY,
    REFERENCES,
    UNITS,
    WORST,
    WORST_DRAW,
    Columns,
    Condition,
)
from .shifts import Shift, contrast_recovery, error_outside


@dataclass
class Protocol:
    """What is done to each sample."""

    conditions: list[Condition]
    attack: Attack
    metrics: dict[str, Metric] | None
    draws: int
    seed: int
    pictures: int = 0

    def metrics_for(self, x: torch.Tensor) -> dict[str, Metric]:
        """The metrics, or those that suit the data."""
        return _default_metrics(x) if self.metrics is None else self.metrics

    def description(
        self, model: nn.Module, physics: Physics, device: torch.device
    ) -> dict[str, str]:
        """Everything that the results depend on except the data, as text."""
        budget = self.attack.budget
        return {
            "conditions": ", ".join(condition.label for condition in self.conditions),
            "shifts": describe([c.shift for c in self.conditions if c.shift]),
            "attack": attack_names(self.attack),
            "attack settings": describe(self.attack),
            "unit": budget.relative_to or budget.domain,
            "norm": type(budget).__name__,
            "lower bound": str(bool(getattr(self.attack, "lower_bound", False))),
            "metrics": describe(self.metrics),
            "draws": str(self.draws),
            "seed": str(self.seed),
            "pictures": str(self.pictures),
            "physics": fingerprint(physics),
            "model": fingerprint(model),
            "device": device.type,
        }


class Bench:
    """A batch on which the conditions are tried, one by one."""

    def __init__(self, protocol, model, physics, x, y, start):
        self.protocol, self.model, self.physics = protocol, model, physics
        self.x, self.y, self.start = x, y, start
        self.metrics, self.truths = protocol.metrics_for(x), self.kept(x)
        # Measurements of several parts are one tensor here, and so are their perturbations
        self.layout = Layout(y)
        self.flat = self.layout.pack(y)
        self.none = torch.zeros_like(self.flat)
        self.x_clean = self.reconstruct(self.none)
        self.adjoint = (
            physics.A_adjoint(y) if isinstance(physics, LinearPhysics) else None
        )

    def run(
        self, condition: Condition, done: dict[str, Columns], point: dict
    ) -> tuple[Columns, dict[str, torch.Tensor]]:
        """
        The columns of a condition, and its truths and reconstructions. The point is the worst so
        far, and is updated.
        """
        x, x_net = self.x, self.x_clean
        if condition.shift is not None:
            columns, x, x_net = self.shifted(condition.shift)
        elif condition.kind == RANDOM:
            columns, x_net = self.random(condition.eps)
        elif condition.kind == WORST:
            columns, x_net = self.worst(condition.eps, done, point)
        else:
            columns = self.score(x_net, x) | self.context(x, self.none)
        truths = self.truths if x is self.x else self.kept(x)
        return columns, {"x": truths, "x_net": self.kept(x_net)}

    def kept(self, samples: torch.Tensor) -> torch.Tensor:
        """The first samples, for pictures; of points, which are no larger than metrics, all."""
        count = self.protocol.pictures
        if count and samples.shape[1:] == (2,):
            count = self.start + len(samples)
        return samples[: max(0, count - self.start)].detach().cpu().clone()

    def random(self, eps: float) -> tuple[Columns, torch.Tensor]:
        """The means over all draws, and the reconstructions of the first."""
        budget, seed = self.protocol.attack.budget, self.protocol.seed
        radii = self.radii(eps)
        zero = budget.zero(self.y, self.physics)
        support = budget.support(self.y, self.physics)
        # A stream for each sample, the same for every radius
        generators = [
            torch.Generator().manual_seed(seed_of(seed, "draw", self.start + i))
            for i in range(len(zero))
        ]
        rounds, first = [], None
        for _ in range(self.protocol.draws):
            drawn = [
                budget.random(
                    zero[i : i + 1], radii[i : i + 1], g, "sphere", support[i : i + 1]
                )
                for i, g in enumerate(generators)
            ]
            delta = budget.to_measurement(torch.cat(drawn), self.physics)
            x_net = self.reconstruct(delta)
            first = x_net if first is None else first
            rounds.append(self.score(x_net, self.x) | self.context(self.x, delta))
        columns = {name: torch.stack([r[name] for r in rounds]) for name in rounds[0]}
        worst = columns[ERROR].amax(0)
        means = {name: values.mean(0) for name, values in columns.items()}
        return means | {WORST_DRAW: worst} | self.units(eps, radii), first

    def worst(
        self, eps: float, done: dict[str, Columns], point: dict
    ) -> tuple[Columns, torch.Tensor]:
        budget, radii = self.protocol.attack.budget, self.radii(eps)
        starts, gradients = [None], 0
        if point and point["eps"] > 0:
            starts.append(point["perturbation"] * (eps / point["eps"]))
        for init in starts:
            result = self.protocol.attack.run(
                self.model, self.x, self.y, self.physics, eps=radii, init=init
            )
            gradients = gradients + result.n_grad
            delta = self.layout.pack(result.delta)
            x_net = self.reconstruct(delta)
            found = {
                "perturbation": self.layout.pack(result.perturbation),
                "delta": delta,
                "x_net": x_net,
                "error": _squared_error(x_net, self.x),
            } | {name: flag for name, flag in result.flags.items()}
            won = found["error"] > point["error"] if point else None
            for name, value in found.items():
                old = point.get(name, torch.zeros_like(value))
                point[name] = value if won is None else _where(won, value, old)
        point["eps"] = eps
        columns = self.score(point["x_net"], self.x) | self.units(eps, radii)
        columns["|delta|"] = budget.norm(point["perturbation"]).double().cpu()
        columns |= self.context(self.x, point["delta"])
        # One number, or one per sample, as samples may leave a search early
        columns["gradients"] = torch.zeros_like(columns[ERROR]) + gradients
        drawn = done[Condition(RANDOM, eps).label][WORST_DRAW]
        columns["random_beats_attack"] = drawn > columns[ERROR]
        flags = {
            k: v.cpu()
            for k, v in point.items()
            if getattr(v, "dtype", None) == torch.bool
        }
        return columns | flags, point["x_net"]

    def context(self, x: torch.Tensor, delta: torch.Tensor) -> Columns:
        """
        What was added to the measurements, measured there and in the image, and the squared errors
        that every network should beat: those of no image, and of the adjoint of the same.
        """

        def norm(v: torch.Tensor) -> torch.Tensor:
            return v.abs().double().flatten(1).norm(dim=1)

        columns = {"|dy|/|y|": norm(delta) / norm(self.flat)}
        references = [torch.zeros_like(x)]
        if isinstance(self.physics, LinearPhysics):
            image = self.physics.A_adjoint(self.layout.unpack(delta))
            columns["|A'dy|"] = norm(image)
            if image.shape == x.shape:
                references.append(self.adjoint + image)
        errors = (_squared_error(reference, x) for reference in references)
        columns |= zip(REFERENCES, errors, strict=False)
        return {name: values.cpu() for name, values in columns.items()}

    def shifted(self, shift: Shift) -> tuple[Columns, torch.Tensor, torch.Tensor]:
        x, region = shift(self.x, start=self.start)
        delta = self.layout.pack(self.physics.A(x - self.x))
        x_net = self.reconstruct(delta)
        detail = {
            RECOVERY: contrast_recovery(x_net, self.x_clean, x, self.x),
            OUTSIDE: error_outside(x_net, x, region),
        }
        columns = self.score(x_net, x) | self.context(x, delta)
        columns |= {n: v.double().cpu() for n, v in detail.items()}
        return columns, x, x_net

    def reconstruct(self, delta: torch.Tensor) -> torch.Tensor:
        r""":math:`H(y + \delta)`."""
        x_net = self.model(self.layout.unpack(self.flat + delta), self.physics)
        if not isinstance(x_net, torch.Tensor):
            raise TypeError(
                f"the model must return a torch.Tensor, got {type(x_net).__name__}."
            )
        if x_net.shape != self.x.shape:
            raise ValueError(
                f"the reconstruction must have the shape of x, {tuple(self.x.shape)}, got "
                f"{tuple(x_net.shape)}."
            )
        if x_net.is_complex() != self.x.is_complex():
            raise TypeError(
                "the reconstruction must be complex if x is, and only then, got "
                f"{x_net.dtype} for x of {self.x.dtype}."
            )
        return x_net

    def score(self, x_net: torch.Tensor, x: torch.Tensor) -> Columns:
        columns = {ERROR: _squared_error(x_net, x)}
        for name, metric in self.metrics.items():
            columns[name] = metric(x_net=x_net, x=x)
            if columns[name].shape != (len(x),):
                raise ValueError(
                    f"metric {name!r} must give one value per sample, shape ({len(x)},), got "
                    f"{tuple(columns[name].shape)}: set reduction=None."
                )
        return {name: values.double().cpu() for name, values in columns.items()}

    def radii(self, eps: float) -> torch.Tensor:
        """A radius in the unit of the attack's budget as absolute ones."""
        budget = copy.copy(self.protocol.attack.budget)
        budget.radius = eps
        return budget.radii(self.y, self.physics)

    def units(self, eps: float, radii: torch.Tensor) -> Columns:
        """The radii as given, as they are, and relative to measurements and noise, or NaN."""
        nan = torch.full_like(radii, math.nan)
        budget = self.protocol.attack.budget
        norm_y = budget.norm(self.flat) if budget.domain == "measurement" else nan
        noise = budget.noise_norm(self.y, self.physics)
        given = torch.full_like(radii, eps, dtype=torch.float64)
        values = (given, radii, radii / norm_y, radii / noise)
        return {u: v.double().cpu() for u, v in zip(UNITS, values, strict=True)}


def attack_names(attack: Attack) -> str:
    """An attack in one line."""
    if isinstance(attack, WorstCase):
        return f"worst of {', '.join(map(attack_names, attack.attacks))}"
    return str(attack)


def _default_metrics(x: torch.Tensor) -> dict[str, Metric]:
    if x.ndim < 3:
        return {}
    magnitude = x.is_complex() or x.shape[1] == 2
    # The window of SSIM is 11 pixels wide
    wide = x.ndim == 4 and min(x.shape[-2:]) >= 11
    metrics = {"PSNR": PSNR(complex_abs=magnitude)}
    return metrics | ({"SSIM": SSIM(complex_abs=magnitude)} if wide else {})


def best_values(
    metrics: dict[str, Metric], conditions: list[Condition]
) -> dict[str, float]:
    best = {ERROR: -math.inf}
    for name, metric in metrics.items():
        best[name] = -math.inf if metric.lower_better or metric.train_loss else math.inf
    if any(condition.shift is not None for condition in conditions):
        best |= {RECOVERY: 1.0, OUTSIDE: -math.inf}
    return best


def _squared_error(x_net: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return (x_net - x).abs().double().square().flatten(1).sum(1)


def _where(chosen: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Samples of ``a`` where chosen, else of ``b``."""
    return torch.where(column(chosen, a), a, b)


def seed_of(seed: int, purpose: str, number: int) -> int:
    """A seed for one purpose, unrelated to its neighbours."""
    return Random(f"{seed}, {purpose}, {number}").getrandbits(62)
