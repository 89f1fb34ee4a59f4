r"""The conditions that a batch is tried under, one by one."""

from __future__ import annotations

import copy
import math

import torch
from deepinv.physics import GaussianNoise, LinearPhysics
from deepinv.utils.signals import complex_abs

from ..attacks.budgets import column
from ..attacks.problem import as_function
from .batches import seed_of
from .protocol import OBJECTIVE, OUTSIDE, RECOVERY, WORST_DRAW, peak_of
from .report import Columns, Condition, ERROR, UNDEFINED, UNITS
from .shifts import contrast_recovery, error_outside


class Bench:
    """A batch on which the conditions are tried, one by one."""

    def __init__(self, protocol, model, physics, x, y, start):
        self.protocol, self.model, self.physics = protocol, model, physics
        self.x, self.y, self.start = x, y, start
        self.metrics = protocol.metrics_for(x)
        objective = protocol.attack.objective
        self.objective, self.against_clean = as_function(objective)
        self.harm = (
            ERROR if isinstance(objective, str) and objective == "error" else OBJECTIVE
        )
        self.x_clean = self.reconstruct(torch.zeros_like(y))
        shifts = [c for c in protocol.conditions if c.shift is not None]
        self._check_shape(bool(shifts))
        # Before any work is lost to an edit that does not fit
        self.shifts = {c.label: c.shift(x, start=start) for c in shifts}
        self.undefined = self._undefined(x)

    def run(
        self, condition: Condition, done: dict[str, Columns], point: dict
    ) -> Columns:
        """The columns of a condition. The point is the worst so far, and is updated."""
        if condition.shift is not None:
            columns = self.shifted(*self.shifts[condition.label])
        elif condition.kind == "average case":
            columns = self.average(condition.eps)
        elif condition.kind == "worst case":
            columns = self.worst(condition.eps, done, point)
        else:
            columns = self.score(self.x_clean, self.x) | self.truths()
        return {
            name: values
            for name, values in columns.items()
            if not name.endswith(UNDEFINED) or values.any()
        }

    def truths(self) -> Columns:
        """What is wrong with the truths themselves."""
        exceeded = torch.zeros(len(self.x), dtype=torch.bool)
        for metric in self.metrics.values():
            peak = peak_of(metric)
            if isinstance(peak, float) and metric.norm_inputs is None:
                x = complex_abs(self.x) if metric.complex_abs else self.x
                x = x.flatten(1).cpu()
                exceeded |= x.amax(1) - x.amin(1) > (1 + 1e-3) * peak
        return {"peak_exceeded": exceeded}

    def average(self, eps: float) -> Columns:
        budget, seed = self.protocol.attack.budget, self.protocol.seed
        radii = self.radii(eps)
        zero = budget.zero(self.y, self.physics)
        support = budget.support(self.y, self.physics)
        # A stream for each sample, the same for every radius
        generators = [
            torch.Generator().manual_seed(seed_of(seed, "draw", self.start + i))
            for i in range(len(zero))
        ]
        rounds = []
        for _ in range(self.protocol.draws):
            drawn = [
                budget.random(
                    zero[i : i + 1], radii[i : i + 1], g, "sphere", support[i : i + 1]
                )
                for i, g in enumerate(generators)
            ]
            delta = budget.to_measurement(torch.cat(drawn), self.physics)
            rounds.append(self.score(self.reconstruct(delta), self.x))
        columns = {name: torch.stack([r[name] for r in rounds]) for name in rounds[0]}
        worst = columns[self.harm].amax(0)
        means = {
            name: values.any(0) if values.dtype == torch.bool else values.mean(0)
            for name, values in columns.items()
        }
        return means | {WORST_DRAW: worst} | self.units(radii)

    def worst(self, eps: float, done: dict[str, Columns], point: dict) -> Columns:
        budget, radii = self.protocol.attack.budget, self.radii(eps)
        starts, gradients = [None], 0
        if point and point["eps"] > 0:
            starts.append(point["perturbation"] * (eps / point["eps"]))
        for init in starts:
            result = self.protocol.attack.run(
                self.model, self.x, self.y, self.physics, eps=radii, init=init
            )
            gradients += result.n_grad
            x_net = self.reconstruct(result.delta)
            found = {
                "perturbation": result.perturbation,
                "delta": result.delta,
                "x_net": x_net,
                "harm": self.score(x_net, self.x, metrics=False)[self.harm],
            } | {name: flag for name, flag in result.flags.items()}
            won = found["harm"] > point["harm"] if point else None
            for name, value in found.items():
                old = point.get(name, torch.zeros_like(value))
                point[name] = value if won is None else _where(won, value, old)
        point["eps"] = eps
        columns = self.score(point["x_net"], self.x) | self.units(radii)
        columns["|delta|"] = budget.norm(point["perturbation"]).double().cpu()
        columns |= self.sizes(point["delta"])
        columns["gradients"] = torch.full_like(columns[self.harm], gradients)
        rival = done[Condition("average case", eps).label][WORST_DRAW]
        columns["random_beats_attack"] = rival > columns[self.harm]
        flags = {
            k: v.cpu()
            for k, v in point.items()
            if getattr(v, "dtype", None) == torch.bool
        }
        return columns | flags

    def sizes(self, delta: torch.Tensor) -> Columns:
        """What was added to the measurements, measured again there and in the image."""

        def norm(v: torch.Tensor) -> torch.Tensor:
            return v.abs().double().flatten(1).norm(dim=1).cpu()

        columns = {"|dy|/|y|": _ratio(norm(delta), norm(self.y))}
        if isinstance(self.physics, LinearPhysics):
            columns["|A'dy|"] = norm(self.physics.A_adjoint(delta))
        return columns

    def shifted(self, x: torch.Tensor, region: torch.Tensor) -> Columns:
        x_net = self.reconstruct(self.physics.A(x - self.x))
        detail = {
            RECOVERY: contrast_recovery(x_net, self.x_clean, x, self.x),
            OUTSIDE: error_outside(x_net, x, region),
        }
        columns = self.score(x_net, x) | {
            n: v.double().cpu() for n, v in detail.items()
        }
        # Where the edit changes nothing, or everything
        changed = (x != self.x).flatten(1).any(1).cpu()
        columns[f"{RECOVERY}{UNDEFINED}"] = ~changed
        columns[f"{OUTSIDE}{UNDEFINED}"] = region.flatten(1).all(1).cpu()
        return columns

    def reconstruct(self, delta: torch.Tensor) -> torch.Tensor:
        r""":math:`H(y + \delta)`."""
        x_net = self.model(self.y + delta, self.physics)
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
        if x_net.shape == x.shape:
            columns[ERROR] = (x_net - x).abs().double().square().flatten(1).sum(1)
        if self.harm == OBJECTIVE and (x is self.x or not self.against_clean):
            target = self.x_clean if self.against_clean else x
            columns[OBJECTIVE] = _one_each(
                "the objective", self.objective(x_net, target), x
            )
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

    def radii(self, eps: float, **changes) -> torch.Tensor:
        """A radius in the unit of the attack's budget, or in another, as absolute ones."""
        budget = copy.copy(self.protocol.attack.budget)
        vars(budget).update(radius=eps, **changes)
        return budget.radii(self.y, self.physics)

    def units(self, radii: torch.Tensor) -> Columns:
        """The radii as they are and in the units of measurements and noise, NaN without such."""
        nan = torch.full_like(radii, math.nan)
        in_y = self.protocol.attack.budget.domain == "measurement"
        noisy = in_y and isinstance(
            getattr(self.physics, "noise_model", None), GaussianNoise
        )
        norm_y = self.radii(1.0, relative_to="y") if in_y else nan
        noise = self.radii(1.0, relative_to="noise") if noisy else nan
        values = (radii, _ratio(radii, norm_y), _ratio(radii, noise))
        return {u: v.double().cpu() for u, v in zip(UNITS, values, strict=True)}

    def _undefined(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Truths for which a metric has no value, whatever the reconstruction; NMSE, if blank."""
        none = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        if self.x_clean.shape != x.shape:
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


def _where(chosen: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Samples of ``a`` where chosen, else of ``b``."""
    return torch.where(column(chosen, a), a, b)
