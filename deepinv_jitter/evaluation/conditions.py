r"""The conditions that a batch is tried under, one by one."""

from __future__ import annotations

import copy
import math

import torch
from deepinv.physics import LinearPhysics
from deepinv.utils.signals import complex_abs

from ..attacks.parts import Layout
from ..attacks.problem import as_function
from ..attacks.samples import where
from .batches import seed_of
from .metrics import contrast_recovery, error_outside
from .protocol import peak_of
from .results import (
    ERROR,
    OBJECTIVE,
    OUTSIDE,
    RANDOM,
    RECOVERY,
    REFERENCES,
    SIZES,
    UNDEFINED,
    UNITS,
    WORST,
    WORST_DRAW,
    Columns,
    Condition,
)


class Bench:
    """A batch on which the conditions are tried, one by one."""

    def __init__(self, protocol, model, physics, x, y, start):
        self.protocol, self.model, self.physics = protocol, model, physics
        self.x, self.y, self.start = x, y, start
        self.metrics, self.truths = protocol.metrics_for(x), self.kept(x)
        objective = protocol.attack.objective
        self.objective, self.against_clean = as_function(objective)
        by_error = isinstance(objective, str) and objective == "error"
        self.harm = ERROR if by_error else OBJECTIVE
        # Measurements of several parts are one tensor here, and so are their perturbations
        self.layout = Layout(y)
        self.flat = self.layout.pack(y)
        self.none = torch.zeros_like(self.flat)
        self.x_clean = self.reconstruct(self.none)
        linear = isinstance(physics, LinearPhysics)
        self.adjoint = physics.A_adjoint(y) if linear else None
        shifts = [c for c in protocol.conditions if c.shift is not None]
        self._check_shape(bool(shifts))
        # Before any work is lost to an edit that does not fit
        self.shifts = {c.label: c.shift(x, start=start) for c in shifts}
        self.undefined = self._undefined(x)

    def run(
        self, condition: Condition, done: dict[str, Columns], point: dict
    ) -> tuple[Columns, dict[str, torch.Tensor]]:
        """
        The columns of a condition, and its truths and reconstructions. The point is the worst so
        far, and is updated.
        """
        x, x_net = self.x, self.x_clean
        if condition.shift is not None:
            columns, x, x_net = self.shifted(*self.shifts[condition.label])
        elif condition.kind == RANDOM:
            columns, x_net = self.random(condition.eps)
        elif condition.kind == WORST:
            columns, x_net = self.worst(condition.eps, done, point)
        else:
            columns = self.score(x_net, x) | self.context(x, self.none)
            columns["peak_exceeded"] = self.peak_exceeded()
        columns = {
            name: values
            for name, values in columns.items()
            if not name.endswith(UNDEFINED) or values.any()
        }
        truths = self.truths if x is self.x else self.kept(x)
        return columns, {"x": truths, "x_net": self.kept(x_net)}

    def kept(self, samples: torch.Tensor) -> torch.Tensor:
        """The first samples, for pictures; of points, which are no larger than metrics, all."""
        count = self.protocol.pictures
        if count and samples.shape[1:] == (2,):
            count = self.start + len(samples)
        return samples[: max(0, count - self.start)].detach().cpu().clone()

    def peak_exceeded(self) -> torch.Tensor:
        """Truths of a larger range than a metric takes them to have."""
        exceeded = torch.zeros(len(self.x), dtype=torch.bool)
        for metric in self.metrics.values():
            peak = peak_of(metric)
            if isinstance(peak, float) and metric.norm_inputs is None:
                x = complex_abs(self.x) if metric.complex_abs else self.x
                x = x.flatten(1).cpu()
                exceeded |= x.amax(1) - x.amin(1) > (1 + 1e-3) * peak
        return exceeded

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
        worst = columns[self.harm].amax(0)
        means = {
            name: values.any(0) if values.dtype == torch.bool else values.mean(0)
            for name, values in columns.items()
        }
        return means | {WORST_DRAW: worst} | self.units(eps, radii), first

    def worst(
        self, eps: float, done: dict[str, Columns], point: dict
    ) -> tuple[Columns, torch.Tensor]:
        """The columns and reconstructions of the worst perturbations found so far."""
        budget, radii = self.protocol.attack.budget, self.radii(eps)
        starts, gradients = [None], 0
        if point and point["eps"] > 0:
            last = point["perturbation"] * (eps / point["eps"])
            starts = [last] if self.protocol.attack.adds_init else [None, last]
        for init in starts:
            result = self.protocol.attack.run(
                self.model, self.x, self.y, self.physics, eps=radii, init=init
            )
            gradients = gradients + result.n_grad
            delta = self.layout.pack(result.delta)
            x_net = self.reconstruct(delta)
            harm = self.score(x_net, self.x, metrics=False)[self.harm]
            found = {
                "perturbation": self.layout.pack(result.perturbation),
                "delta": delta,
                "x_net": x_net,
                "harm": harm.to(delta.device),
            } | {name: flag for name, flag in result.flags.items()}
            won = found["harm"] > point["harm"] if point else None
            for name, value in found.items():
                old = point.get(name, torch.zeros_like(value))
                point[name] = value if won is None else where(won, value, old)
        point["eps"] = eps
        columns = self.score(point["x_net"], self.x) | self.units(eps, radii)
        columns["|delta|"] = budget.norm(point["perturbation"]).double().cpu()
        columns |= self.context(self.x, point["delta"])
        # One number, or one per sample, as samples may leave a search early
        gradients = torch.as_tensor(gradients).cpu()
        columns["gradients"] = torch.zeros_like(columns[self.harm]) + gradients
        drawn = done[Condition(RANDOM, eps).label][WORST_DRAW]
        columns["random_beats_attack"] = drawn > columns[self.harm]
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

        sizes, references = [_ratio(norm(delta), norm(self.flat))], []
        if _alike(self.x_clean, x):
            references.append(torch.zeros_like(x))
        if self.adjoint is not None:
            image = self.physics.A_adjoint(self.layout.unpack(delta))
            sizes.append(norm(image))
            if _alike(self.x_clean, x) and image.shape == x.shape:
                references.append(self.adjoint + image)
        errors = (_squared_error(reference, x) for reference in references)
        columns = dict(zip(SIZES, sizes, strict=False))
        columns |= zip(REFERENCES, errors, strict=False)
        return {name: values.cpu() for name, values in columns.items()}

    def shifted(
        self, x: torch.Tensor, region: torch.Tensor
    ) -> tuple[Columns, torch.Tensor, torch.Tensor]:
        """The columns, truths and reconstructions of edited truths."""
        delta = self.layout.pack(self.physics.A(x - self.x))
        x_net = self.reconstruct(delta)
        detail = {
            RECOVERY: contrast_recovery(x_net, self.x_clean, x, self.x),
            OUTSIDE: error_outside(x_net, x, region),
        }
        columns = self.score(x_net, x) | self.context(x, delta)
        columns |= {n: v.double().cpu() for n, v in detail.items()}
        # Where the edit changes nothing, or everything
        changed = (x != self.x).flatten(1).any(1).cpu()
        columns[f"{RECOVERY}{UNDEFINED}"] = ~changed
        columns[f"{OUTSIDE}{UNDEFINED}"] = region.flatten(1).all(1).cpu()
        return columns, x, x_net

    def reconstruct(self, delta: torch.Tensor) -> torch.Tensor:
        r""":math:`H(y + \delta)`."""
        x_net = self.model(self.layout.unpack(self.flat + delta), self.physics)
        if not isinstance(x_net, torch.Tensor):
            raise TypeError(
                f"the model must return a torch.Tensor, got {type(x_net).__name__}."
            )
        return x_net

    def score(
        self, x_net: torch.Tensor, x: torch.Tensor, metrics: bool = True
    ) -> Columns:
        """Squared error, objective and metrics of reconstructions, and where they say nothing."""
        columns = {}
        if _alike(x_net, x):
            columns[ERROR] = _squared_error(x_net, x)
        if self.harm == OBJECTIVE and (x is self.x or not self.against_clean):
            values = self.objective(x_net, self.x_clean if self.against_clean else x)
            columns[OBJECTIVE] = _one_each("the objective", values, x)
        for name, metric in self.metrics.items() if metrics else ():
            columns[name] = _one_each(f"metric {name!r}", metric(x_net=x_net, x=x), x)
        undefined = self.undefined if x is self.x else self._undefined(x)
        best = self.protocol.best_values(self.metrics, columns)
        for name in self.metrics if metrics else ():
            # Of a perfect reconstruction there is no PSNR, either
            perfect = columns[name] == best[name]
            columns[f"{name}{UNDEFINED}"] = undefined[name] | perfect
        return {
            name: (v if v.dtype == torch.bool else v.double()).cpu()
            for name, v in columns.items()
        }

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
        values = (given, radii, _ratio(radii, norm_y), _ratio(radii, noise))
        return {u: v.double().cpu() for u, v in zip(UNITS, values, strict=True)}

    def _undefined(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Truths for which a metric has no value, whatever the reconstruction; NMSE, if blank."""
        none = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        if not _alike(self.x_clean, x):
            return dict.fromkeys(self.metrics, none)
        return {name: m(x_net=x, x=x).isnan() for name, m in self.metrics.items()}

    def _check_shape(self, shifts: bool) -> None:
        """Truths of another shape than the reconstruction are for the caller's own metrics."""
        shape, expected = tuple(self.x_clean.shape), tuple(self.x.shape)
        own = (
            self.harm == OBJECTIVE and self.protocol.metrics is not None and not shifts
        )
        if shape != expected and not (own and shape[:1] == expected[:1]):
            raise ValueError(
                f"the reconstruction must have the shape of x, {expected}, got {shape}: or give "
                "metrics, and an attack with an objective, that bring them together, for the same "
                "samples and without shifts."
            )
        if self.x_clean.is_complex() != self.x.is_complex() and not own:
            raise TypeError(
                "the reconstruction must be complex if x is, and only then, got "
                f"{self.x_clean.dtype} for x of {self.x.dtype}."
            )


def _squared_error(x_net: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return (x_net - x).abs().double().square().flatten(1).sum(1)


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Of one shape, and both real or both complex."""
    return a.shape == b.shape and a.is_complex() == b.is_complex()


def _one_each(name: str, values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    if not isinstance(values, torch.Tensor) or values.shape != (len(x),):
        got = tuple(values.shape) if isinstance(values, torch.Tensor) else values
        raise ValueError(
            f"{name} must give one value per sample, shape ({len(x)},), got {got}: set "
            "reduction=None."
        )
    return values


def _ratio(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """NaN where the divisor is zero: a blank measurement is no unit."""
    return torch.where(b == 0, math.nan, a / b)
