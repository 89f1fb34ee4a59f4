r"""
One call that measures how robust a model is, and a report one can trust.

Every sample goes through the same conditions: clean measurements, random and worst-case
perturbations of growing size, and edited truths. Its numbers depend on the sample, the model and
the seed alone: not on the batch it is in, nor on what was evaluated before it.
"""

from __future__ import annotations

import copy
import math
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from numbers import Integral, Real
from random import Random

import torch
from deepinv.datasets.base import batch_as_dict
from deepinv.loss.metric import NMSE, PSNR, SSIM, Metric
from deepinv.physics import GaussianNoise, LinearPhysics, Physics
from torch import nn
from tqdm import tqdm

from . import checks, ranks
from .attacks import APGDAttack, Attack, PGDAttack, PowerAttack, RandomAttack, WorstCase
from .budgets import Budget, L2Ball, column
from .iterators import no_jitter
from .metrics import PaperPSNR, PaperSSIM
from .reports import ERROR, UNITS, Columns, Condition, RobustnessReport
from .shifts import Shift, contrast_recovery, error_outside
from .states import Ledger, describe, digests, fingerprint, joined, row

RECOVERY = "contrast recovery"
OUTSIDE = "error outside"
WORST_DRAW = "worst draw"


#: The attacks that have a name. The radius is set by the sweep.
PRESETS: dict[str, Callable[[Budget], Attack]] = {
    "quick": lambda ball: PowerAttack(ball, steps=10),
    "standard": lambda ball: WorstCase(
        [APGDAttack(ball, steps=100), PowerAttack(ball, steps=20), RandomAttack(ball)]
    ),
    "paper": lambda ball: PGDAttack.paper(ball.radius),
}


def evaluate_robustness(
    model: nn.Module,
    dataloader: Iterable,
    physics: Physics,
    *,
    epsilons: Iterable[float],
    attacks: str | Attack | Sequence[Attack] = "standard",
    metrics: dict[str, Metric] | None = None,
    shifts: Shift | Sequence[Shift] | dict[str, Shift] | None = None,
    draws: int = 32,
    state: str | os.PathLike | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    distributed: bool = False,
    verbose: bool = True,
) -> RobustnessReport:
    r"""
    Measure the accuracy of a model on clean, randomly and adversarially perturbed measurements and
    on edited truths, sample by sample.

    The conditions:

    - ``clean``: :math:`H(y)`.
    - ``average case`` for each :math:`\varepsilon`: random perturbations of norm
      :math:`\varepsilon`, uniform on the sphere and on measured entries only; every metric is
      averaged over the draws.
    - ``worst case`` for each :math:`\varepsilon`, in increasing order: the attack from its own
      start, and again from what it found at the last :math:`\varepsilon`, rescaled. For each sample
      the worst of both and of the last perturbation itself is kept, so that the squared error
      cannot fall as :math:`\varepsilon` grows.
    - each shift: the truth :math:`x` becomes :math:`x + d` and the measurements of the linear
      physics :math:`y + Ad`, with the same mask and the same noise. Two more columns,
      ``contrast recovery`` and ``error outside``, tell whether the detail survived, see
      :func:`contrast_recovery` and :func:`error_outside`.

    Batches without measurements get them from the physics, each sample with noise of its own that
    follows from ``seed`` and the number of the sample: all models see the same measurements, in
    batches of any size. The data loader is iterated under ``seed`` too, so that one which shuffles
    has the same order each time.

    The model is evaluated in evaluation mode with jitter silent, mostly without gradients.
    Afterwards, also after an exception, its mode, the physics and its generators and the global
    random generators of torch are as before.

    :param torch.nn.Module model: reconstruction network :math:`H`, called as ``model(y, physics)``.
    :param Iterable dataloader: batches in any of deepinv's formats, with truths ``x``, shape `(B,
        ...)`, and optionally measurements ``y`` and ``params`` of the physics; a
        :class:`torch.utils.data.DataLoader` or a list.
    :param deepinv.physics.Physics physics: forward operator :math:`A` and noise.
    :param Iterable[float] epsilons: radii, not negative, in the unit of the attack's budget: by
        default the :math:`\ell_2` norm of the measurements' perturbation.
    :param str, Attack, Sequence[Attack] attacks: ``"quick"``, 10 steps of :class:`PowerAttack`;
        ``"standard"``, the worst of 100 steps of :class:`APGDAttack`, 20 of :class:`PowerAttack`
        and 100 random perturbations; ``"paper"``, :meth:`PGDAttack.paper` with 20 steps of
        :math:`\varepsilon/10`; an attack, or several, of which the worst counts. The radius of
        their budget is replaced, its ``relative_to`` stays. Default: ``"standard"``.
    :param dict[str, deepinv.loss.metric.Metric], None metrics: names and metrics, each giving one
        value per sample.
        Default: ``None``, deepinv's PSNR and SSIM with peak 1 (of the magnitude of complex images)
        and NMSE, and the paper's definitions as columns of their own, :class:`PaperPSNR` and
        :class:`PaperSSIM`; SSIM for images of 11 pixels and more only, and no metric for points,
        whose norm may be zero. The squared error :math:`\|\hat x - x\|_2^2` always comes first.
    :param Shift, Sequence[Shift], dict[str, Shift], None shifts: edits of the truth, by name or
        not. Default: none.
    :param int draws: random perturbations per sample and radius. Default: 32.
    :param str, os.PathLike, None state: file that keeps the results after every batch and
        condition. A call with the same arguments goes on from there and gives, on the same machine,
        bit for bit what an uninterrupted one gives. Default: ``None``, no file.
    :param int seed: seed of measurements, random perturbations and the order of the loader.
        Default: 0.
    :param torch.device, str, None device: where batches are moved to; model and physics must be
        there. Default: ``None``, the device of the model.
    :param bool distributed: share the batches among the ranks of ``torch.distributed``, all of
        which call with the same arguments, a loader that gives all data on each, and get the same
        report, that of a single process. Each rank keeps a ``state`` of its own, the name with its
        number appended. Default: ``False``, each process by itself.
    :param bool verbose: show progress and the time that remains. Default: ``True``.
    :return: (:class:`RobustnessReport`) all values of all samples.
    :raises TypeError: if an argument is of the wrong type, or shifts meet a physics that is not
        linear.
    :raises ValueError: if a number is out of range, a preset is unknown, the loader is empty, a
        batch has no truth, shapes do not match, or ``state`` belongs to another evaluation.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    >>> loader = torch.utils.data.DataLoader(dj.PointDataset(50), batch_size=50)
    >>> model = dj.UnfoldedGD(dj.PointMLP(), stepsize=0.5, max_iter=3)
    >>> report = dj.evaluate_robustness(
    ...     model, loader, physics, epsilons=[0.01, 0.1], attacks="quick",
    ...     shifts=dj.Bias((0.005, 0)), verbose=False)
    >>> [condition.label for condition in report.conditions]  # doctest: +NORMALIZE_WHITESPACE
    ['clean', 'average case, eps=0.01', 'average case, eps=0.1', 'worst case, eps=0.01',
     'worst case, eps=0.1', 'Bias(value=[0.005, 0.0])']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    ranks.check_plain(model)
    if not isinstance(physics, Physics):
        raise TypeError(
            f"physics must be a deepinv Physics, got {type(physics).__name__}."
        )
    if not isinstance(dataloader, Iterable):
        raise TypeError(
            f"dataloader must be iterable, got {type(dataloader).__name__}."
        )
    protocol = _Protocol(
        conditions=_conditions(epsilons, shifts, physics),
        attack=_attack(attacks),
        metrics=_checked_metrics(metrics),
        draws=checks.number("draws", draws, Integral, 1),
        seed=checks.seed("seed", seed),
    )
    tensors = chain(model.parameters(), physics.buffers(), [torch.empty(0)])
    device = torch.device(next(tensors).device if device is None else device)
    share = (ranks.own(), ranks.count()) if distributed else (0, 1)
    if state is not None and distributed and ranks.count() > 1:
        state = f"{os.fspath(state)}.{share[0]}of{share[1]}"
    ledger = Ledger(state, protocol.description(model, physics, device))
    in_train_mode = model.training
    with _untouched(model, physics), torch.no_grad():
        number = _fill(
            ledger, protocol, model, physics, dataloader, device, share, verbose
        )
    content = ledger.complete(number, distributed)
    return RobustnessReport(
        conditions=protocol.conditions,
        values=joined(content["batches"]),
        metrics=content["metrics"],
        description=content["description"],
        digests=[d for batch in content["batches"] for d in batch["digests"]],
        model_in_train_mode=in_train_mode,
        seconds=content["seconds"],
    )


@dataclass
class _Protocol:
    """What is done to each sample."""

    conditions: list[Condition]
    attack: Attack
    metrics: dict[str, Metric] | None
    draws: int
    seed: int

    def metrics_for(self, x: torch.Tensor) -> dict[str, Metric]:
        """The metrics, or those that suit the data."""
        return _default_metrics(x) if self.metrics is None else self.metrics

    def description(
        self, model: nn.Module, physics: Physics, device: torch.device
    ) -> dict[str, str]:
        """Everything that the results depend on except the data, as text."""
        return {
            "conditions": ", ".join(condition.label for condition in self.conditions),
            "shifts": describe([c.shift for c in self.conditions if c.shift]),
            "attack": _names(self.attack),
            "attack settings": describe(self.attack),
            "metrics": describe(self.metrics),
            "draws": str(self.draws),
            "seed": str(self.seed),
            "physics": fingerprint(physics),
            "model": fingerprint(model),
            "device": device.type,
        }


class _Bench:
    """A batch on which the conditions are tried, one by one."""

    def __init__(self, protocol, model, physics, x, y, start):
        self.protocol, self.model, self.physics = protocol, model, physics
        self.x, self.y, self.start = x, y, start
        self.metrics = protocol.metrics_for(x)
        self.x_clean = self.reconstruct(torch.zeros_like(y))

    def run(
        self, condition: Condition, done: dict[str, Columns], point: dict
    ) -> Columns:
        """The columns of a condition. The point is the worst so far, and is updated."""
        if condition.shift is not None:
            return self.shifted(condition.shift)
        if condition.kind == "average case":
            return self.average(condition.eps)
        if condition.kind == "worst case":
            return self.worst(condition.eps, done, point)
        return self.score(self.x_clean, self.x)

    def average(self, eps: float) -> Columns:
        budget, seed = self.protocol.attack.budget, self.protocol.seed
        radii = self.radii(eps)
        zero = budget.zero(self.y, self.physics)
        support = budget.support(self.y, self.physics)
        # A stream for each sample, the same for every radius
        generators = [
            torch.Generator().manual_seed(_seed(seed, "draw", self.start + i))
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
        worst = columns[ERROR].amax(0)
        means = {name: values.mean(0) for name, values in columns.items()}
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
                "error": _squared_error(x_net, self.x),
            } | {name: flag for name, flag in result.flags.items()}
            won = found["error"] > point["error"] if point else None
            for name, value in found.items():
                old = point.get(name, torch.zeros_like(value))
                point[name] = value if won is None else _where(won, value, old)
        point["eps"] = eps
        columns = self.score(point["x_net"], self.x) | self.units(radii)
        columns["|delta|"] = budget.norm(point["perturbation"]).double().cpu()
        columns |= self.sizes(point["delta"])
        columns["gradients"] = torch.full_like(columns[ERROR], gradients)
        rival = done[Condition("average case", eps).label][WORST_DRAW]
        columns["random_beats_attack"] = rival > columns[ERROR]
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

        columns = {"|dy|/|y|": norm(delta) / norm(self.y)}
        if isinstance(self.physics, LinearPhysics):
            columns["|A'dy|"] = norm(self.physics.A_adjoint(delta))
        return columns

    def shifted(self, shift: Shift) -> Columns:
        x, region = shift(self.x, start=self.start)
        x_net = self.reconstruct(self.physics.A(x - self.x))
        detail = {
            RECOVERY: contrast_recovery(x_net, self.x_clean, x, self.x),
            OUTSIDE: error_outside(x_net, x, region),
        }
        return self.score(x_net, x) | {n: v.double().cpu() for n, v in detail.items()}

    def reconstruct(self, delta: torch.Tensor) -> torch.Tensor:
        r""":math:`H(y + \delta)`."""
        x_net = self.model(self.y + delta, self.physics)
        if not isinstance(x_net, torch.Tensor):
            raise TypeError(
                f"the model must return a torch.Tensor, got {type(x_net).__name__}."
            )
        if x_net.shape != self.x.shape:
            raise ValueError(
                f"the reconstruction must have the shape of x, {tuple(self.x.shape)}, got "
                f"{tuple(x_net.shape)}."
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
        values = (radii, radii / norm_y, radii / noise)
        return {u: v.double().cpu() for u, v in zip(UNITS, values, strict=True)}


def _fill(
    ledger: Ledger,
    protocol: _Protocol,
    model: nn.Module,
    physics: Physics,
    dataloader: Iterable,
    device: torch.device,
    share: tuple[int, int],
    verbose: bool,
) -> int:
    """
    Try every condition on every batch that the ledger does not know yet, and count the batches.

    Of a share (rank, number of ranks), the batches in between are left to other ranks.
    """
    rank, count_of_ranks = share
    start, count = 0, len(protocol.conditions)
    total = operator.length_hint(dataloader) * count or None
    with (
        _seeded(protocol.seed, device),
        tqdm(total=total, disable=not verbose or rank > 0, unit="condition") as bar,
    ):
        for index, batch in enumerate(dataloader):
            x, y, params = _unpacked(batch, device)
            if index % count_of_ranks != rank:
                bar.update(count)
                start += len(x)
                continue
            done = ledger.open(index, digests(x, y, params))
            todo = [c for c in protocol.conditions if c.label not in done]
            bar.update(count - len(todo))
            if todo:
                if y is None:
                    y = _measured(physics, x, params, protocol.seed, start)
                physics.update(**params)
                with _seeded(_seed(protocol.seed, "clean", start), device):
                    bench = _Bench(protocol, model, physics, x, y, start)
                ledger.content["metrics"] = _best_values(
                    bench.metrics, protocol.conditions
                )
                point = {
                    name: v.to(device) if isinstance(v, torch.Tensor) else v
                    for name, v in ledger.content["point"].items()
                }
            for condition in todo:
                bar.set_description(condition.label)
                # So that a resumed evaluation of a random model goes on as it would have
                with _seeded(_seed(protocol.seed, condition.label, start), device):
                    done[condition.label] = bench.run(condition, done, point)
                ledger.content["point"] = point
                ledger.save()
                bar.update()
            start += len(x)
    if start == 0:
        raise ValueError("dataloader must give at least one batch, got none.")
    return index + 1


@contextmanager
def _untouched(model: nn.Module, physics: Physics) -> Iterator[None]:
    """Evaluation mode without jitter; mode, physics and its generators come back."""
    modes = [(module, module.training) for module in model.modules()]
    # Physics are updated by replacing tensors: shallow copies bring back what was there, and cost
    # nothing, unlike physics.clone()
    parts = [(m, vars(m).copy(), m._buffers.copy()) for m in physics.modules()]
    states = [(g, g.get_state()) for g in _generators(physics)]
    try:
        model.eval()
        with no_jitter(model):
            yield
    finally:
        for module, training in modes:
            module.training = training
        for module, attributes, buffers in parts:
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)
        for generator, before in states:
            generator.set_state(before)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """The global generators of torch from a seed on, and back."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _measured(
    physics: Physics, x: torch.Tensor, params: dict, seed: int, start: int
) -> torch.Tensor:
    """Measurements, sample by sample, so that noise does not depend on the batch."""
    measurements = []
    for i in range(len(x)):
        physics.update(
            **{name: row(value, i, len(x)) for name, value in params.items()}
        )
        own = _seed(seed, "noise", start + i)
        for generator in _generators(physics):
            generator.manual_seed(own)
        with _seeded(own, x.device):
            y = physics(x[i : i + 1])
        if not isinstance(y, torch.Tensor) or len(y) != 1:
            got = tuple(y.shape) if isinstance(y, torch.Tensor) else type(y).__name__
            raise ValueError(
                f"the physics must measure samples one by one, as a tensor, got {got} for one "
                "sample: give its parameters with the batches, as params, or give y."
            )
        measurements.append(y)
    return torch.cat(measurements)


def _generators(physics: Physics) -> Iterator[torch.Generator]:
    for module in physics.modules():
        for value in vars(module).values():
            if isinstance(value, torch.Generator):
                yield value


def _unpacked(
    batch: object, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor | None, dict]:
    """Truth, measurements if any, and parameters of the physics."""
    if not isinstance(batch, (dict, list, tuple, torch.Tensor)):
        raise TypeError(
            "every batch must be a dictionary, a tuple or a tensor, got "
            f"{type(batch).__name__}."
        )
    batch = batch_as_dict(batch)
    x, y, params = batch.get("x"), batch.get("y"), batch.get("params") or {}
    if x is None:
        raise ValueError(
            "every batch needs the truth x, which errors are measured against, got "
            f"{sorted(batch)}."
        )
    # Once per batch: NaN would travel silently into every mean
    for name, value in {"x": x, "y": x if y is None else y}.items():
        checks.batch(**{name: value})
    params = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in params.items()
    }
    if y is not None and len(y) != len(x):
        raise ValueError(
            f"x and y must have one batch size, got {len(x)} and {len(y)} samples."
        )
    return x.to(device), None if y is None else y.to(device), params


def _conditions(
    epsilons: Iterable[float],
    shifts: Shift | Sequence[Shift] | dict[str, Shift] | None,
    physics: Physics,
) -> list[Condition]:
    """All conditions, in the order in which they are tried."""
    if isinstance(epsilons, (Real, str)) or not isinstance(epsilons, Iterable):
        raise TypeError(f"epsilons must be a list of radii, got {epsilons!r}.")
    # What tensors and arrays hold is a number, too
    radii = [e.item() if getattr(e, "shape", None) == () else e for e in epsilons]
    radii = sorted({checks.number("epsilons", eps, Real, 0) for eps in radii})
    if isinstance(shifts, Shift):
        shifts = [shifts]
    if isinstance(shifts, str) or not isinstance(shifts, (Iterable, type(None))):
        raise TypeError(
            f"shifts must be a Shift, such as Bias, or several, got {shifts!r}."
        )
    if not isinstance(shifts, dict):
        shifts = {repr(shift): shift for shift in shifts or []}
    for name, shift in shifts.items():
        if not isinstance(shift, Shift):
            raise TypeError(
                f"shifts must be made of Shifts, such as Bias, got {shift!r} for {name!r}."
            )
    if shifts and not isinstance(physics, LinearPhysics):
        raise TypeError(
            "shifts need a linear physics, as the noise is kept by y + A(d), got "
            f"{type(physics).__name__}."
        )
    conditions = [
        Condition("clean"),
        *(Condition("average case", eps) for eps in radii),
        *(Condition("worst case", eps) for eps in radii),
        *(Condition(name, shift=shift) for name, shift in shifts.items()),
    ]
    labels = [condition.label for condition in conditions]
    if len(set(labels)) < len(labels):
        raise ValueError(
            f"shifts must not be called like other conditions, got {labels}."
        )
    return conditions


def _attack(attacks: str | Attack | Sequence[Attack]) -> Attack:
    if isinstance(attacks, str):
        if attacks not in PRESETS:
            raise ValueError(
                f"attacks must be an attack, a list of them or one of {tuple(PRESETS)}, got "
                f"{attacks!r}."
            )
        return PRESETS[attacks](L2Ball(1.0))
    return attacks if isinstance(attacks, Attack) else WorstCase(attacks)


def _names(attack: Attack) -> str:
    """An attack in one line."""
    if isinstance(attack, WorstCase):
        return f"worst of {', '.join(map(_names, attack.attacks))}"
    return str(attack)


def _checked_metrics(metrics: dict[str, Metric] | None) -> dict[str, Metric] | None:
    if metrics is None:
        return None
    if not isinstance(metrics, dict):
        raise TypeError(
            "metrics must be a dictionary of names and deepinv metrics, got "
            f"{type(metrics).__name__}."
        )
    for name, metric in metrics.items():
        if not isinstance(metric, Metric):
            raise TypeError(
                f"metrics must be deepinv metrics, got {type(metric).__name__} for {name!r}: wrap "
                "a function as deepinv.loss.metric.Metric(function)."
            )
        if name in (ERROR, RECOVERY, OUTSIDE, WORST_DRAW, *UNITS):
            raise ValueError(
                f"metrics must not be called {name!r}, a column of its own."
            )
    return metrics


def _default_metrics(x: torch.Tensor) -> dict[str, Metric]:
    if x.ndim < 3:
        return {}
    magnitude = x.is_complex() or x.shape[1] == 2
    # The window of SSIM is 11 pixels wide
    wide = x.ndim == 4 and min(x.shape[-2:]) >= 11
    return (
        {"PSNR": PSNR(complex_abs=magnitude)}
        | ({"SSIM": SSIM(complex_abs=magnitude)} if wide else {})
        | {"NMSE": NMSE(), "PSNR (paper)": PaperPSNR()}
        | ({"SSIM (paper)": PaperSSIM()} if wide else {})
    )


def _best_values(
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


def _seed(seed: int, purpose: str, number: int) -> int:
    """A seed for one purpose, unrelated to its neighbours."""
    return Random(f"{seed}, {purpose}, {number}").getrandbits(62)
