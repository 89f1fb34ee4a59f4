r"""The conditions that a batch is tried under, one by one."""

from __future__ import annotations

import copy
import math

import torch
from deepinv.physics import LinearPhysics
from torch import nn
from tqdm import tqdm

from .. import checks
from ..attacks.parts import Layout
from ..attacks.samples import where
from ..training.rng import seed_of, seeded
from .batches import Batch
from .cache import Cache
from .metrics import contrast_recovery, error_outside
from .protocol import Protocol
from .results import (
    CLEAN,
    OUTSIDE,
    RANDOM,
    RECOVERY,
    REFERENCES,
    SIZES,
    UNDEFINED,
    UNITS,
    WORST_DRAW,
    Columns,
    Condition,
    agree,
)
from .scores import Scores, alike, squared_error


class Bench:
    """A batch to try conditions on, with the columns of those done and the worst point so far."""

    def __init__(self, protocol: Protocol, model: nn.Module, batch: Batch, done: dict, point: dict):
        self.protocol, self.model, self.physics = protocol, model, batch.physics
        self.done, self.point = done, point
        self.x, self.y, self.start = batch.x, batch.y, batch.start
        self.truths = self.kept(self.x)
        # Measurements of several parts are one tensor here, and so are their perturbations
        self.layout = Layout(self.y)
        self.flat = self.layout.pack(self.y)
        self.none = torch.zeros_like(self.flat)
        self.x_clean = self.reconstruct(self.none)
        linear = isinstance(self.physics, LinearPhysics)
        self.adjoint = self.physics.A_adjoint(self.y) if linear else None
        self.scores = Scores(protocol, self.x, self.x_clean)
        # Before any work is lost to an edit that does not fit
        shifts = {c.label: c.shift for c in protocol.conditions if c.shift is not None}
        self.shifts = {label: shift(self.x, self.start) for label, shift in shifts.items()}

    def run(self, condition: Condition) -> tuple[Columns, dict[str, torch.Tensor]]:
        """The columns and pictures of a condition."""
        x, x_net = self.x, self.x_clean
        if condition.shift is not None:
            columns, x, x_net = self.shifted(condition.label)
        elif condition.eps is None:
            columns = self.scores.of(x_net, x) | self.context(x, self.none)
            columns["peak_exceeded"] = self.scores.peak_exceeded()
        elif condition.kind == RANDOM:
            columns, x_net = self.random(condition.eps)
        else:
            columns, x_net = self.worst(condition.eps)
        told = {
            name: v.cpu() if v.dtype == torch.bool else v.cpu().double()
            for name, v in columns.items()
            if not name.endswith(UNDEFINED) or v.any()
        }
        truths = self.truths if x is self.x else self.kept(x)
        return told, {"x": truths, "x_net": self.kept(x_net)}

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
        seeds = (seed_of(seed, "draw", self.start + i) for i in range(len(zero)))
        generators = [torch.Generator().manual_seed(own) for own in seeds]
        rounds: list[Columns] = []
        images: list[torch.Tensor] = []
        for _ in range(self.protocol.draws):
            drawn = [
                budget.random(zero[i : i + 1], radii[i : i + 1], g, "sphere", support[i : i + 1])
                for i, g in enumerate(generators)
            ]
            delta = budget.to_measurement(torch.cat(drawn), self.physics)
            x_net = self.reconstruct(delta)
            images = images or [x_net]
            rounds.append(self.scores.of(x_net, self.x) | self.context(self.x, delta))
        columns = {name: torch.stack([r[name] for r in rounds]) for name in rounds[0]}
        worst = {WORST_DRAW: columns[self.scores.harm].amax(0)}
        double = checks.widest(radii.device)
        for name, v in columns.items():
            columns[name] = v.any(0) if v.dtype == torch.bool else v.to(double).mean(0)
        return columns | worst | self.units(eps, radii), images[0]

    def worst(self, eps: float) -> tuple[Columns, torch.Tensor]:
        """The columns and reconstructions of the worst perturbations found so far."""
        attack, radii, point = self.protocol.attack, self.radii(eps), self.point
        starts: list[torch.Tensor | None] = [None]
        gradients: int | torch.Tensor = 0
        if point.get("eps"):
            last = point["perturbation"] * (eps / point["eps"])
            starts = [last] if attack.adds_init else [None, last]
        for init in starts:
            result = attack.run(self.model, self.x, self.y, self.physics, eps=radii, init=init)
            gradients = gradients + result.n_grad
            delta = self.layout.pack(result.delta)
            x_net = self.reconstruct(delta)
            harm = self.scores.harms(x_net, self.x)[self.scores.harm]
            found = {"delta": delta, "x_net": x_net, "harm": harm} | result.flags
            found["perturbation"] = self.layout.pack(result.perturbation)
            won = harm > point["harm"] if point else torch.ones_like(harm).bool()
            for name, value in found.items():
                point[name] = where(won, value, point.get(name, value))
        point["eps"] = eps
        columns = self.scores.of(point["x_net"], self.x) | self.units(eps, radii)
        columns["|delta|"] = attack.budget.norm(point["perturbation"])
        columns |= self.context(self.x, point["delta"])
        harm = columns[self.scores.harm]
        # One number, or one per sample, as samples may leave a search early
        columns["gradients"] = torch.zeros_like(harm) + gradients
        drawn = self.done[Condition(RANDOM, eps).label][WORST_DRAW]
        columns["random_beats_attack"] = drawn.to(harm) > harm
        flags = {k: v for k, v in point.items() if getattr(v, "dtype", None) == torch.bool}
        return columns | flags, point["x_net"]

    def context(self, x: torch.Tensor, delta: torch.Tensor) -> Columns:
        """The sizes of what was added to measurements, and the errors to beat."""

        def norm(v: torch.Tensor) -> torch.Tensor:
            return v.abs().to(checks.widest(v.device)).flatten(1).norm(dim=1)

        relative, in_image = SIZES
        zero, adjoint = REFERENCES
        columns = {relative: _ratio(norm(delta), norm(self.flat))}
        images = {zero: torch.zeros_like(x)} if alike(self.x_clean, x) else {}
        if self.adjoint is not None:
            image = self.physics.A_adjoint(self.layout.unpack(delta))
            columns[in_image] = norm(image)
            if images and image.shape == x.shape:
                images[adjoint] = self.adjoint + image
        return columns | {name: squared_error(image, x) for name, image in images.items()}

    def shifted(self, label: str) -> tuple[Columns, torch.Tensor, torch.Tensor]:
        """The columns, truths and reconstructions of edited truths."""
        x, region = self.shifts[label]
        delta = self.layout.pack(self.physics.A(x - self.x))
        x_net = self.reconstruct(delta)
        columns = self.scores.of(x_net, x) | self.context(x, delta)
        columns[RECOVERY] = contrast_recovery(x_net, self.x_clean, x, self.x)
        columns[OUTSIDE] = error_outside(x_net, x, region)
        # Where the edit changes nothing, or everything
        columns[f"{RECOVERY}{UNDEFINED}"] = (x == self.x).flatten(1).all(1)
        columns[f"{OUTSIDE}{UNDEFINED}"] = region.flatten(1).all(1)
        return columns, x, x_net

    def reconstruct(self, delta: torch.Tensor) -> torch.Tensor:
        r""":math:`H(y + \delta)`."""
        x_net = self.model(self.layout.unpack(self.flat + delta), self.physics)
        if not isinstance(x_net, torch.Tensor):
            raise TypeError(f"the model must return a torch.Tensor, got {type(x_net).__name__}.")
        return x_net

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
        given = torch.full_like(radii, eps, dtype=checks.widest(radii.device))
        values = (given, radii, _ratio(radii, norm_y), _ratio(radii, noise))
        return dict(zip(UNITS, values, strict=True))


def complete(
    entry: dict, batch: Batch, protocol: Protocol, model: nn.Module, cache: Cache, bar: tqdm
) -> None:
    """Try the conditions of a batch that are not done yet, once those that are may be believed."""
    done, content = entry["results"], cache.content
    todo = [c for c in protocol.conditions if c.label not in done]
    bar.update(len(protocol.conditions) - len(todo))
    device = batch.x.device

    def randomness(purpose: str):
        # So that a resumed evaluation of a random model goes on as it would have
        own = seed_of(protocol.seed, purpose, batch.start)
        return seeded(own, model, batch.physics)

    batch.measure(protocol.seed)
    cache.start()
    known = content["point"].items()
    point = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in known}
    with randomness(CLEAN):
        bench = Bench(protocol, model, batch, done, point)
    if CLEAN in done:
        # No description has all that results depend on, such as the code of a model or a metric
        with randomness(CLEAN):
            columns, _ = bench.run(protocol.conditions[0])
        if not agree(columns, done[CLEAN]):
            raise cache.refusal(f"gives other results in batch {cache.index}")
    for condition in todo:
        bar.set_description(condition.label, refresh=False)
        with randomness(condition.label):
            columns, images = bench.run(condition)
        done[condition.label] = columns
        if len(images["x"]):
            entry["pictures"][condition.label] = images
        content["metrics"] |= protocol.best_values(bench.scores.metrics, done[CLEAN])
        content["point"] = point
        cache.save(done=condition is todo[-1])
        bar.update()


def _ratio(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """NaN where the divisor is zero: a blank measurement is no unit."""
    return torch.where(b == 0, math.nan, a / b)
