r"""
One call that measures how robust a model is, and a report one can trust.

Every sample goes through the same conditions: clean measurements, random and worst-case
perturbations of growing size, and edited truths. Its numbers depend on the sample, the model and
the seed alone: not on the batch it is in, nor on what was evaluated before it.
"""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from numbers import Integral, Real

import torch
from deepinv.datasets.base import batch_as_dict
from deepinv.loss.metric import Metric
from deepinv.physics import LinearPhysics, Physics
from deepinv.utils import TensorList
from torch import nn
from tqdm import tqdm

from .. import checks
from ..attacks.apgd import APGDAttack
from ..attacks.base import Attack, WorstCase
from ..attacks.balls import L2Ball
from ..attacks.budgets import Budget
from ..attacks.frank_wolfe import FrankWolfeAttack
from ..attacks.parts import Measurements, modules, named_parts
from ..attacks.pgd import PGDAttack
from ..attacks.random import RandomAttack
from ..optim.jittering import no_jitter
from ..training import distributed as ranks
from .cache import Cache, digests, files, joined, pictures as kept, row
from .comparison import RobustnessComparison
from .conditions import Bench, Protocol, best_values, seed_of
from .report import RobustnessReport
from .results import CLEAN, RANDOM, RESERVED, WORST, Condition
from .shifts import Shift

#: The attacks that have a name. The radius is set by the sweep.
PRESETS: dict[str, Callable[[Budget], Attack]] = {
    "quick": lambda ball: FrankWolfeAttack(ball, steps=10),
    "standard": lambda ball: WorstCase(
        [
            APGDAttack(ball, steps=100),
            FrankWolfeAttack(ball, steps=20),
            RandomAttack(ball),
        ]
    ),
    "paper": lambda ball: PGDAttack.paper(ball.radius),
}


def evaluate_robustness(
    model: nn.Module | dict[str, nn.Module],
    dataloader: Iterable,
    physics: Physics,
    *,
    epsilons: Iterable[float],
    attacks: str | Attack | Sequence[Attack] = "standard",
    metrics: dict[str, Metric] | None = None,
    shifts: Shift | Sequence[Shift] | dict[str, Shift] | None = None,
    draws: int = 32,
    pictures: int = 4,
    state: str | os.PathLike | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    distributed: bool = False,
    verbose: bool = True,
) -> RobustnessReport | RobustnessComparison:
    r"""
    Measure the accuracy of a model on clean, randomly and adversarially perturbed measurements and
    on edited truths, sample by sample.

    The conditions:

    - ``clean``: :math:`H(y)`.
    - ``random`` for each :math:`\varepsilon`: random perturbations of norm
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

    Several networks are given as a dictionary. They see the very same batches and measurements, one
    after the other, and the numbers of each are those of a call of its own.

    :param torch.nn.Module, dict[str, torch.nn.Module] model: reconstruction network :math:`H`,
        called as ``model(y, physics)``, or several by their names.
    :param Iterable dataloader: batches in any of deepinv's formats, with truths ``x``, shape `(B,
        ...)`, and optionally measurements ``y`` (of stacked physics a
        :class:`deepinv.utils.TensorList`) and ``params`` of the physics; a
        :class:`torch.utils.data.DataLoader` or a list.
    :param deepinv.physics.Physics physics: forward operator :math:`A` and noise.
    :param Iterable[float] epsilons: radii, not negative, in the unit of the attack's budget: by
        default the :math:`\ell_2` norm of the measurements' perturbation.
    :param str, Attack, Sequence[Attack] attacks: ``"quick"``, 10 steps of
        :class:`FrankWolfeAttack`; ``"standard"``, the worst of 100 steps of :class:`APGDAttack`, 20
        of :class:`FrankWolfeAttack` and 100 random perturbations; ``"paper"``,
        :meth:`PGDAttack.paper` with 20 steps of :math:`\varepsilon/10`; an attack, or several, of
        which the worst counts. The radius of their budget is replaced, its ``relative_to`` stays.
        Default: ``"standard"``.
    :param dict[str, deepinv.loss.metric.Metric], None metrics: names and metrics, each giving one
        value per sample.
        Default: ``None``, deepinv's PSNR and SSIM with peak 1 (of the magnitude of complex images);
        SSIM for images of 11 pixels and more only, and no metric for points, whose norm may be
        zero. The squared error :math:`\|\hat x - x\|_2^2` is always measured, and shown where
        there is no metric. The paper's definitions are :class:`PaperPSNR` and :class:`PaperSSIM`.
    :param Shift, Sequence[Shift], dict[str, Shift], None shifts: edits of the truth, by name or
        not. Default: none.
    :param int draws: random perturbations per sample and radius. Default: 32.
    :param int pictures: of how many samples, the first ones, the truth and the reconstructions are
        kept for :meth:`RobustnessComparison.images`; of points, all. Default: 4.
    :param str, os.PathLike, None state: file that keeps the results after every batch and
        condition. A call with the same arguments goes on from there and gives, on the same machine,
        bit for bit what an uninterrupted one gives. For several networks it is a folder, made if
        there is none, with a file for each, its name and ``.pt``: a call with other networks joins
        those that were measured before. Default: ``None``, nothing is kept.
    :param int seed: seed of measurements, random perturbations and the order of the loader.
        Default: 0.
    :param torch.device, str, None device: where batches are moved to; model and physics must be
        there. Default: ``None``, the device of the model.
    :param bool distributed: share the batches among the ranks of ``torch.distributed``, all of
        which call with the same arguments, a loader that gives all data on each, and get the same
        report, that of a single process. Each rank keeps a ``state`` of its own, the name with its
        number appended. Default: ``False``, each process by itself.
    :param bool verbose: show progress and the time that remains. Default: ``True``.
    :return: (:class:`RobustnessReport`) all values of all samples; for a dictionary of models a
        :class:`RobustnessComparison` of their reports.
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
    ['clean', 'random, eps=0.01', 'random, eps=0.1', 'worst case, eps=0.01',
     'worst case, eps=0.1', 'Bias(value=[0.005, 0.0])']
    """
    models = _models(model)
    if not isinstance(physics, Physics):
        raise TypeError(
            f"physics must be a deepinv Physics, got {type(physics).__name__}."
        )
    if not isinstance(dataloader, Iterable):
        raise TypeError(
            f"dataloader must be iterable, got {type(dataloader).__name__}."
        )
    protocol = Protocol(
        conditions=_conditions(epsilons, shifts, physics),
        attack=_attack(attacks),
        metrics=_checked_metrics(metrics),
        draws=checks.number("draws", draws, Integral, 1),
        seed=checks.seed("seed", seed),
        pictures=checks.number("pictures", pictures, Integral, 0),
    )
    parameters = chain.from_iterable(m.parameters() for m in models.values())
    buffers = (b for m in modules(physics) for b in m.buffers(recurse=False))
    tensors = chain(parameters, buffers, [torch.empty(0)])
    device = torch.device(next(tensors).device if device is None else device)
    share = (ranks.own(), ranks.count()) if distributed else (0, 1)
    caches = {
        name: Cache(path, protocol.description(models[name], physics, device))
        for name, path in files(state, model, distributed).items()
    }
    modes = {name: m.training for name, m in models.items()}
    with _untouched(models.values(), physics), torch.no_grad():
        number = _fill(
            caches, protocol, models, physics, dataloader, device, share, verbose
        )
    reports = {}
    for name, cache in caches.items():
        content = cache.complete(number, distributed)
        reports[name] = RobustnessReport(
            conditions=protocol.conditions,
            values=joined(content["batches"]),
            metrics=content["metrics"],
            description=content["description"],
            digests=[d for batch in content["batches"] for d in batch["digests"]],
            model_in_train_mode=modes[name],
            seconds=content["seconds"],
            pictures=kept(content["batches"]),
        )
    return RobustnessComparison(reports) if isinstance(model, dict) else reports[""]


def _models(model: nn.Module | dict[str, nn.Module]) -> dict[str, nn.Module]:
    """All models by their names; a single one has none."""
    models = model if isinstance(model, dict) else {"": model}
    if not models:
        raise ValueError("model must be a network, or several by name, got none.")
    for name, network in models.items():
        if not isinstance(network, nn.Module) or not isinstance(name, str):
            of = f" for {name!r}" if isinstance(model, dict) else ""
            raise TypeError(
                "model must be a torch.nn.Module, or a dictionary of names and such, got "
                f"{type(network).__name__}{of}."
            )
        if isinstance(model, dict) and not name:
            raise ValueError("names of models must have letters, got ''.")
        ranks.check_plain(network)
    return models


def _fill(
    caches: dict[str, Cache],
    protocol: Protocol,
    models: dict[str, nn.Module],
    physics: Physics,
    dataloader: Iterable,
    device: torch.device,
    share: tuple[int, int],
    verbose: bool,
) -> int:
    """
    Try every condition on every batch, with each network, that the caches do not know yet, and
    count the batches.

    Of a share (number of this process, of all), the batches in between are left to the others.
    """
    own, processes = share
    start, count = 0, len(protocol.conditions)
    total = operator.length_hint(dataloader) * count * len(models) or None
    with (
        _seeded(protocol.seed, device),
        # The mean pace of all conditions, as the worst case takes much longer than the others
        tqdm(
            total=total,
            disable=not verbose or own > 0,
            unit="condition",
            smoothing=0,
            # In a log, a line every now and then
            mininterval=0.1 if sys.stderr.isatty() else 30,
            maxinterval=30,
        ) as bar,
    ):
        for index, batch in enumerate(dataloader):
            x, y, params = _unpacked(batch, device)
            if index % processes != own:
                bar.update(count * len(models))
                start += len(x)
                continue
            marks = digests(x, y, params)
            known = {name: cache.open(index, marks) for name, cache in caches.items()}
            for name, done in known.items():
                todo = [c for c in protocol.conditions if c.label not in done]
                bar.update(count - len(todo))
                if not todo:
                    continue
                if y is None:
                    y = _measured(physics, x, params, protocol.seed, start)
                physics.update(**params)
                cache = caches[name]
                cache.start()
                with _seeded(seed_of(protocol.seed, "clean", start), device):
                    bench = Bench(protocol, models[name], physics, x, y, start)
                cache.content["metrics"] = best_values(
                    bench.metrics, protocol.conditions
                )
                point = {
                    part: v.to(device) if isinstance(v, torch.Tensor) else v
                    for part, v in cache.content["point"].items()
                }
                for condition in todo:
                    title = f"{name}: {condition.label}" if name else condition.label
                    bar.set_description(title, refresh=False)
                    # So that a resumed evaluation of a random model goes on as it would have
                    seed = seed_of(protocol.seed, condition.label, start)
                    with _seeded(seed, device):
                        columns, images = bench.run(condition, done, point)
                    done[condition.label] = columns
                    if len(images["x"]):
                        cache.batches[index]["pictures"][condition.label] = images
                    cache.content["point"] = point
                    cache.save()
                    bar.update()
            start += len(x)
    if start == 0:
        raise ValueError("dataloader must give at least one batch, got none.")
    return index + 1


@contextmanager
def _untouched(models: Iterable[nn.Module], physics: Physics) -> Iterator[None]:
    """Evaluation mode without jitter; modes, physics and its generators come back."""
    modes = [
        (module, module.training) for model in models for module in model.modules()
    ]
    # Physics are updated by replacing tensors: shallow copies bring back what was there, and cost
    # nothing, unlike physics.clone()
    parts = [(m, vars(m).copy(), m._buffers.copy()) for m in modules(physics)]
    states = [(g, g.get_state()) for g in _generators(physics)]
    try:
        with ExitStack() as stack:
            for model in models:
                model.eval()
                stack.enter_context(no_jitter(model))
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
) -> Measurements:
    """Measurements, sample by sample, so that noise does not depend on the batch."""
    measurements = []
    for i in range(len(x)):
        physics.update(
            **{name: row(value, i, len(x)) for name, value in params.items()}
        )
        own = seed_of(seed, "noise", start + i)
        for generator in _generators(physics):
            generator.manual_seed(own)
        with _seeded(own, x.device):
            y = physics(x[i : i + 1])
        parts = named_parts("y", y).values()
        tensors = all(isinstance(part, torch.Tensor) for part in parts)
        if not tensors or any(len(part) != 1 for part in parts):
            shapes = " and ".join(str(tuple(getattr(p, "shape", ()))) for p in parts)
            got = shapes if tensors else type(y).__name__
            raise ValueError(
                f"the physics must measure samples one by one, as a tensor, got {got} for one "
                "sample: give its parameters with the batches, as params, or give y."
            )
        measurements.append(parts)
    batch = [torch.cat(part) for part in zip(*measurements, strict=True)]
    return TensorList(batch) if isinstance(y, TensorList) else batch[0]


def _generators(physics: Physics) -> Iterator[torch.Generator]:
    for module in modules(physics):
        for value in vars(module).values():
            if isinstance(value, torch.Generator):
                yield value


def _unpacked(
    batch: object, device: torch.device
) -> tuple[torch.Tensor, Measurements | None, dict]:
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
    for name, value in ({"x": x} | ({} if y is None else named_parts("y", y))).items():
        checks.batch(**{name: value})
    params = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in params.items()
    }
    for name, part in ({} if y is None else named_parts("y", y)).items():
        if len(part) != len(x):
            raise ValueError(
                f"x and {name} must have one batch size, got {len(x)} and {len(part)} samples."
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
        Condition(CLEAN),
        *(Condition(RANDOM, eps) for eps in radii),
        *(Condition(WORST, eps) for eps in radii),
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
        if name in RESERVED:
            raise ValueError(
                f"metrics must not be called {name!r}, a column of its own."
            )
    return metrics
