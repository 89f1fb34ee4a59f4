r"""What an evaluation does to each sample, as the caller asked for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from deepinv.loss.metric import PSNR, SSIM, Metric
from deepinv.physics import LinearPhysics
from deepinv.utils.mixins import MRIMixin
from torch import nn

from .. import checks
from ..attacks.balls import L2Ball
from ..attacks.base import Attack, WorstCase
from ..attacks.budgets import Budget
from ..attacks.converged import ConvergedAttack
from ..attacks.frank_wolfe import FrankWolfeAttack
from ..attacks.pgd import PGDAttack
from ..attacks.problem import Objective
from ..attacks.random import RandomAttack
from ..memory import modules, preserved
from .batches import Source
from .cache import describe, fingerprint
from .metrics import WINDOW, PaperSSIM
from .results import (
    CLEAN,
    ERROR,
    OBJECTIVE,
    OUTSIDE,
    RANDOM,
    RECOVERY,
    RESERVED,
    UNDEFINED,
    WORST,
    Condition,
)
from .shifts import Shift

#: The attacks that have a name. The radius is set by the sweep.
PRESETS: dict[str, Callable[[Budget], Attack]] = {
    "quick": lambda ball: FrankWolfeAttack(ball, steps=10),
    "standard": lambda ball: WorstCase([ConvergedAttack.standard(ball), RandomAttack(ball)]),
    "paper": lambda ball: PGDAttack(ball, steps=20, rel_step=0.1, keep="last"),
}


@dataclass
class Protocol:
    conditions: list[Condition]
    attack: Attack
    metrics: dict[str, Metric] | None
    peak: float | str
    draws: int
    seed: int
    complex_abs: bool
    pictures: int = 0

    def metrics_for(self, x: torch.Tensor) -> dict[str, Metric]:
        """The metrics, or those that suit the data."""
        if self.metrics is not None or x.ndim < 3:
            return self.metrics or {}
        top, bottom = (None, None) if self.peak == "sample" else (self.peak, 0.0)
        pixels: dict[str, Any] = {"max_pixel": top, "min_pixel": bottom}
        pixels["complex_abs"] = x.is_complex() or (self.complex_abs and x.shape[1] == 2)
        wide = x.ndim == 4 and min(x.shape[-2:]) >= WINDOW
        return {"PSNR": PSNR(**pixels)} | ({"SSIM": SSIM(**pixels)} if wide else {})

    def best_values(self, metrics: dict[str, Metric], columns: Iterable[str]) -> dict[str, float]:
        """What is best for each score among the columns, which the squared error leads."""
        best = {name: -math.inf for name in (ERROR, OBJECTIVE) if name in columns}
        for name, metric in metrics.items():
            lower = metric.lower_better or metric.train_loss
            best[name] = -math.inf if lower else math.inf
        if any(condition.shift is not None for condition in self.conditions):
            best |= {RECOVERY: 1.0, OUTSIDE: -math.inf}
        return best

    def description(
        self, model: nn.Module, sources: Sequence[Source], device: torch.device
    ) -> dict[str, str]:
        """Everything that the results depend on except the data, as text."""
        physics = []
        for source in sources:
            with preserved(source.physics):
                # Not those of a training before
                if source.generator is not None:
                    source.physics.update(**source.drawn([0], device, self.seed)[0])
                physics.append(fingerprint(source.physics))
        peaks = [(peak_of(m), name) for name, m in (self.metrics or {}).items()]
        own = ", ".join(f"{p} ({name})" for p, name in peaks if p is not None)
        budget = self.attack.budget
        return {
            "conditions": ", ".join(condition.label for condition in self.conditions),
            "shifts": describe([c.shift for c in self.conditions if c.shift]),
            "attack": attack_names(self.attack),
            "attack settings": describe(self.attack),
            "objective": objective_name(self.attack.objective),
            "unit": budget.relative_to or budget.domain,
            "norm": type(budget).__name__,
            "lower bound": str(self.attack.lower_bound),
            "metrics": describe(self.metrics),
            "peak": str(self.peak) if self.metrics is None else own,
            "draws": str(self.draws),
            "seed": str(self.seed),
            "pictures": str(self.pictures),
            "physics": ", ".join(physics),
            "physics generator": describe([source.generator for source in sources]),
            "model": fingerprint(model),
            "device": device.type,
        }


def conditions_of(
    epsilons: Any,
    shifts: Shift | Sequence[Shift] | dict[str, Shift] | None,
    sources: Sequence[Source],
) -> list[Condition]:
    """All conditions, in the order in which they are tried."""
    given = checks.plain(epsilons)
    if isinstance(given, str) or not isinstance(given, (Real, Iterable)):
        raise TypeError(f"epsilons must be a radius or several, got {epsilons!r}.")
    given = [given] if isinstance(given, Real) else map(checks.plain, given)
    # As many digits as labels tell apart
    radii = sorted({float(f"{checks.real('epsilons', eps, 0):.12g}") for eps in given})
    if isinstance(shifts, str) or not isinstance(shifts, (Iterable, type(None))):
        shifts = [shifts]
    if not isinstance(shifts, dict):
        shifts = {repr(shift): shift for shift in shifts or []}
    for name, shift in shifts.items():
        if not isinstance(name, str):
            raise TypeError(f"shifts must be called by words, got the name {name!r}.")
        if not isinstance(shift, Shift):
            raise TypeError(f"shifts must be a Shift, such as Bias, or several, got {shift!r}.")
    for source in sources if shifts else ():
        if not isinstance(source.physics, LinearPhysics):
            raise TypeError(
                "shifts need a linear physics, as the noise is kept by y + A(d), got "
                f"{type(source.physics).__name__}."
            )
    conditions = [
        Condition(CLEAN),
        *(Condition(RANDOM, eps) for eps in radii),
        *(Condition(WORST, eps) for eps in radii),
        *(Condition(name, shift=shift) for name, shift in shifts.items()),
    ]
    # A kind by itself, too, by which tables find the conditions of it
    taken = {RANDOM, WORST, *(c.label for c in conditions if c.shift is None)}
    if again := taken & {*shifts}:
        raise ValueError(f"shifts must not be called like other conditions, got {sorted(again)}.")
    return conditions


def complex_channels(sources: Sequence[Source], metrics: dict[str, Metric] | None) -> bool:
    """
    Whether images of two channels are complex: those of deepinv's MRI, or of physics with such a
    part, or where a metric of the caller's says so. Two channels alone may be two colours.
    """
    said = any(metric.complex_abs for metric in (metrics or {}).values())
    parts = modules(*(source.physics for source in sources))
    return said or any(isinstance(part, MRIMixin) for part in parts)


def attack_of(attacks: str | Attack | Sequence[Attack], relative_to: str | None) -> Attack:
    """The attack of any radius, by its name or from several."""
    if isinstance(attacks, str):
        if attacks not in PRESETS:
            raise ValueError(
                f"attacks must be an attack, a list of them or one of {tuple(PRESETS)}, got "
                f"{attacks!r}."
            )
        return PRESETS[attacks](L2Ball(1.0, relative_to=relative_to))
    if relative_to is not None:
        raise ValueError(
            f"relative_to is for attacks that are named, {tuple(PRESETS)}, got {relative_to!r} "
            "beside attacks with budgets of their own: L2Ball(1.0, relative_to=...) there."
        )
    if not isinstance(attacks, Attack):
        members: list[Any] = [*WorstCase(attacks).attacks]
        first, *others = (attack.objective for attack in members)
        if any(o is not first and (not isinstance(o, str) or o != first) for o in others):
            raise ValueError(
                "attacks must have one objective, by which the worst is chosen: give "
                "WorstCase(attacks, objective=...), got different ones."
            )
        attacks = WorstCase(members, objective=first)
    budgets = [part.budget for part in attacks.modules() if isinstance(part, Attack)]
    kinds = [f"{type(b).__name__}(relative_to={b.relative_to!r})" for b in budgets]
    checks.alike("attacks", "kind of radius", kinds)
    return attacks


def named_metrics(
    metrics: Metric | Sequence[Metric] | dict[str, Metric] | None,
) -> dict[str, Metric] | None:
    """Metrics by name, which is that of their class unless the caller gives one."""
    if metrics is None:
        return None
    if isinstance(metrics, Metric):
        metrics = [metrics]
    if isinstance(metrics, (list, tuple)):
        kinds = [type(metric).__name__ for metric in metrics]
        again = (kinds[:i].count(kind) for i, kind in enumerate(kinds))
        names = [f"{kind} {n + 1}" if n else kind for kind, n in zip(kinds, again, strict=True)]
        metrics = dict(zip(names, metrics, strict=True))
    if not isinstance(metrics, dict):
        raise TypeError(
            "metrics must be deepinv metrics, in a list or a dictionary of names, got "
            f"{type(metrics).__name__}."
        )
    for name, metric in metrics.items():
        if not isinstance(name, str):
            raise TypeError(f"metrics must be called by words, got the name {name!r}.")
        if not isinstance(metric, Metric):
            raise TypeError(
                f"metrics must be deepinv metrics, got {type(metric).__name__} for {name!r}: wrap "
                "a function as deepinv.loss.metric.Metric(function)."
            )
        if name in RESERVED or name.endswith(UNDEFINED):
            raise ValueError(f"metrics must not be called {name!r}, a column of its own.")
    return metrics


def peak_for(
    peak: float | str | None, metrics: dict[str, Metric] | None, sources: Sequence[Source]
) -> float | str:
    """The range of the truths: as the caller says, or else as the data sets do, or else 1."""
    if peak is not None and metrics is not None:
        raise ValueError(
            f"peak is for the default metrics, got peak={peak!r} beside metrics: give each of them "
            "its max_pixel and min_pixel."
        )
    if peak == "sample":
        return peak
    if isinstance(peak, str):
        raise ValueError(f"peak must be positive, None or 'sample', got {peak!r}.")
    if peak is not None:
        return checks.positive("peak", peak)
    declared = {p for source in sources for p in _declared_peaks(source.loader)}
    if len(declared) > 1:
        raise ValueError(
            f"the data sets have different peaks, {sorted(declared)}: give peak, the one that "
            "all samples are measured by."
        )
    return declared.pop()


def peak_of(metric: Metric) -> float | str | None:
    """The range that a metric takes truths to have; ``"sample"`` for each its own."""
    # The paper's cut images to [0, 1]
    if isinstance(metric, PaperSSIM) or not hasattr(metric, "max_pixel"):
        return None
    low = getattr(metric, "min_pixel", 0.0)  # BRISQUE and NIMA have none
    return "sample" if None in (low, metric.max_pixel) else float(metric.max_pixel - low)


def attack_names(attack: nn.Module) -> str:
    if isinstance(attack, WorstCase):
        return f"worst of {', '.join(map(attack_names, attack.attacks))}"
    return str(attack)


def objective_name(objective: Objective) -> str:
    """What an attack maximises, in a word or two."""
    if isinstance(objective, str):
        return "squared error" if objective == "error" else objective
    if isinstance(objective, torch.Tensor):
        return "weighted squared error"
    if isinstance(objective, Metric):
        sign = "" if objective.lower_better or objective.train_loss else "-"
        return sign + type(objective).__name__
    return getattr(objective, "__name__", type(objective).__name__)


def _declared_peaks(data: object) -> Iterable[float]:
    """What a data set says, or those that it, or a loader, is made of; 1 if none does."""
    peak = checks.plain(getattr(data, "peak", None))
    if isinstance(peak, (int, float)):  # True as well, which is refused
        return [checks.positive("peak of the data set", peak)]
    parts = [getattr(data, "dataset", None), *(getattr(data, "datasets", None) or [])]
    known = [p for part in parts if part is not None for p in _declared_peaks(part)]
    return known or [1.0]
