r"""The one call that measures how robust a model is."""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import chain
from typing import Any

import torch
from deepinv.loss.metric import Metric
from deepinv.physics import Physics
from deepinv.physics.generator import PhysicsGenerator
from torch import nn
from tqdm import tqdm

from .. import checks
from ..attacks.base import Attack
from ..memory import evaluated, modules, preserved
from ..optim.jittering import no_jitter
from ..training import distributed as processes
from ..training.rng import seeded
from .batches import Source, paired
from .cache import Cache, digests, files
from .comparison import RobustnessComparison
from .conditions import complete
from .protocol import Protocol, attack_of, complex_channels, conditions_of, named_metrics, peak_for
from .report import RobustnessReport
from .shifts import Shift


def evaluate_robustness(
    model: nn.Module | dict[str, nn.Module],
    dataloader: Iterable | Sequence[Iterable],
    physics: Physics | Sequence[Physics],
    *,
    epsilons: float | Iterable[float],
    physics_generator: PhysicsGenerator | Sequence[PhysicsGenerator] | None = None,
    attacks: str | Attack | Sequence[Attack] = "standard",
    relative_to: str | None = None,
    metrics: Metric | Sequence[Metric] | dict[str, Metric] | None = None,
    peak: float | str | None = None,
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

    The conditions are

    - ``clean``: :math:`H(y)`.
    - ``random`` for each :math:`\varepsilon`: perturbations of that norm, uniform on the sphere and
      on measured entries only; every metric is averaged over the draws.
    - ``worst case`` for each :math:`\varepsilon`, in increasing order: the attack from its own
      start, and again from what it found at the last :math:`\varepsilon`, rescaled. For each sample
      the worst of both and of the last perturbation itself is kept, by the attack's objective,
      which therefore cannot fall as :math:`\varepsilon` grows.
    - each shift: the truth :math:`x` becomes :math:`x + d` and the measurements of the linear
      physics :math:`y + Ad`, with the same mask and noise. Two more columns, ``contrast recovery``
      and ``error outside``, tell whether the detail survived, see :func:`contrast_recovery` and
      :func:`error_outside`.

    Batches without measurements get them from the physics. The noise of each sample, and its
    parameters from ``physics_generator``, follow from ``seed`` and the number of the sample: all
    models see the same measurements, in batches of any size, and the numbers of a sample do not
    depend on what was evaluated before it. A data loader that shuffles has the same order each
    time, by ``seed``.

    The model is evaluated in evaluation mode with jitter silent, and keeps nothing from one call to
    the next. Afterwards, also after an exception, its mode, attributes and buffers, the physics and
    all generators are as before. The numbers of each of several networks, in a dictionary, are
    those of a call of its own.

    :param torch.nn.Module, dict[str, torch.nn.Module] model: reconstruction network :math:`H`,
        called as ``model(y, physics)``, or several by their names.
    :param Iterable, Sequence[Iterable] dataloader: a :class:`torch.utils.data.DataLoader` or a list
        of batches, in any of deepinv's formats: truths ``x``, shape `(B, ...)`, and optionally
        measurements ``y`` (of stacked physics a :class:`deepinv.utils.TensorList`) and ``params``
        of the physics, for each sample or for all. Lists of loaders and physics are paired as in a
        trainer.
    :param deepinv.physics.Physics, Sequence[deepinv.physics.Physics] physics: forward operator
        :math:`A` and noise.
    :param float, Iterable[float] epsilons: radii, not negative, in the unit of the attack's budget:
        by default the :math:`\ell_2` norm of the measurements' perturbation.
    :param deepinv.physics.generator.PhysicsGenerator, Sequence, None physics_generator: draws
        parameters of the physics for each sample. Default: ``None``, the physics is as it was set.
    :param str, Attack, Sequence[Attack] attacks: ``"quick"``, 10 steps of
        :class:`FrankWolfeAttack`, a lower bound; ``"standard"``, the worst of
        :meth:`ConvergedAttack.standard` and of 100 random perturbations; ``"paper"``,
        :meth:`PGDAttack.paper` with 20 steps of :math:`\varepsilon/10`; an attack, or several of
        one objective and one kind of radius, of which the worst counts. The radius of their budget
        is replaced, its ``relative_to`` stays. Default: ``"standard"``.
    :param str, None relative_to: unit of the radii of a named attack, see :class:`L2Ball`: ``"y"``,
        ``"noise"``, or ``None``, absolute. Default: ``None``.
    :param deepinv.loss.metric.Metric, Sequence, dict, None metrics: deepinv metrics, each giving
        one value per sample, by name or called like their class. The squared error
        :math:`\|\hat x - x\|_2^2`, and the attack's objective if it is another, are always
        measured. Truths of another shape than the reconstruction need metrics and an objective that
        bring them together; there is no squared error then. Default: ``None``, deepinv's PSNR and
        SSIM, of the magnitude of complex images; none for points, and SSIM for images `(B, C, H,
        W)` of 11 pixels and more only: for volumes ask for it by ``[PSNR(), SSIM()]``. Images are
        complex if their type is, or if they have two channels and the physics, or a part of it, is
        deepinv's MRI; other channels count as they are. For an MRI physics of your own, derive it
        from ``deepinv.utils.mixins.MRIMixin`` too, or give metrics with ``complex_abs=True``.
        The paper's definitions are :class:`PaperPSNR` and :class:`PaperSSIM`.
    :param float, str, None peak: range of the truths, largest minus smallest value, for the default
        PSNR and SSIM: a number, or ``"sample"``, for each truth its own. Default: ``None``, the
        ``peak`` that the data set declares as an attribute, or 1. Truths of a larger range are
        flagged ``peak_exceeded``.
    :param Shift, Sequence[Shift], dict[str, Shift], None shifts: edits of the truth, by name or
        not. Default: none.
    :param int draws: random perturbations per sample and radius. Default: 32.
    :param int pictures: of how many samples, the first ones, the truth and the reconstructions are
        kept for :meth:`RobustnessComparison.images`; of points, all. Default: 4.
    :param str, os.PathLike, None state: file that keeps the results of every batch, beside one with
        the ending ``.batch`` for the conditions of the batch at hand. A call with the same
        arguments goes on from there and gives, on the same machine, bit for bit what an
        uninterrupted one gives; it makes one clean reconstruction of each known batch, to be sure
        that nothing else has changed. For several networks it is a folder, made if there is none,
        with a file for each, its name and ``.pt``, to which later calls may add networks. Default:
        ``None``, nothing is kept.
    :param int seed: seed of measurements, parameters, random perturbations and the order of the
        loader. Default: 0.
    :param torch.device, str, None device: where batches are moved to; model and physics must be
        there. Default: ``None``, the device of the model.
    :param bool distributed: share the batches among the processes of ``torch.distributed``. All
        call with the same arguments, a loader of all data on each, and get the report of a single
        process, if samples do not depend on which were read before; of a
        :class:`~torch.utils.data.DataLoader` each reads its share alone. Each has a ``state`` of
        its own, its number appended. Default: ``False``.
    :param bool verbose: show progress and the time that remains. Default: ``True``.
    :return: (:class:`RobustnessReport`) all values of all samples; for a dictionary of models a
        :class:`RobustnessComparison` of their reports.
    :raises TypeError: if an argument is of the wrong type, or shifts meet a physics that is not
        linear.
    :raises ValueError: if a number is out of range, a preset is unknown, a loader is empty, a batch
        has no truth, shapes do not match, parameters of the physics were never set or fit neither
        one sample nor the batch, or ``state`` belongs to another evaluation.

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
    sources = paired(dataloader, physics, physics_generator)
    metrics = named_metrics(metrics)
    protocol = Protocol(
        conditions=conditions_of(epsilons, shifts, sources),
        attack=attack_of(attacks, relative_to),
        metrics=metrics,
        peak=peak_for(peak, metrics, sources),
        draws=checks.whole("draws", draws, 1),
        seed=checks.seed("seed", seed),
        complex_abs=complex_channels(sources, metrics),
        pictures=checks.whole("pictures", pictures, 0),
    )
    operators = [source.physics for source in sources]
    parameters = (p for m in models.values() for p in m.parameters())
    buffers = (b for m in modules(*operators) for b in m.buffers(recurse=False))
    tensors = chain(parameters, buffers, [torch.empty(0)])
    device = torch.device(next(tensors).device if device is None else device)
    caches = {
        name: Cache(path, protocol.description(models[name], sources, device))
        for name, path in files(state, model, distributed).items()
    }
    with ExitStack() as stack, torch.no_grad():
        stack.enter_context(preserved(*operators))
        for m in models.values():
            stack.enter_context(no_jitter(m))
            stack.enter_context(evaluated(m))
        number = _fill(caches, protocol, models, sources, device, distributed, verbose)
    reports: dict[str, Any] = {
        name: RobustnessReport(
            conditions=protocol.conditions,
            complex_abs=protocol.complex_abs,
            model_in_train_mode=models[name].training,
            **cache.complete(number, distributed),
        )
        for name, cache in caches.items()
    }
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
        processes.check_plain(network)
    return models


def _fill(
    caches: dict[str, Cache],
    protocol: Protocol,
    models: dict[str, nn.Module],
    sources: list[Source],
    device: torch.device,
    distributed: bool,
    verbose: bool,
) -> int:
    """Try what the caches do not know yet, and count the batches, which processes share in turn."""
    process, turns = (processes.own(), processes.count()) if distributed else (0, 1)
    count = len(protocol.conditions)
    batches = sum(operator.length_hint(source.loader) for source in sources)
    index = start = 0
    with (
        seeded(protocol.seed, *(source.loader for source in sources)),
        tqdm(
            total=batches * count * len(models) or None,
            disable=not verbose or process > 0,
            unit="condition",
            smoothing=0,  # the mean pace, as the worst case takes much longer than the others
            mininterval=0.1 if sys.stderr.isatty() else 30,  # in a log, a line now and then
            maxinterval=30,
        ) as bar,
    ):
        for source in sources:
            before = index
            for batch, size in source.batches(device, start, (process - index) % turns, turns):
                if batch is not None:
                    batch.settle(protocol.seed)
                    marks = digests(batch)
                    # All of them first, before work is lost to data that do not fit one
                    entries = {k: c.open(index, marks) for k, c in caches.items()}
                    for name, entry in entries.items():
                        bar.set_postfix_str(name, refresh=False)
                        complete(entry, batch, protocol, models[name], caches[name], bar)
                else:
                    bar.update(count * len(models))
                start += size
                index += 1
            source.memory.restore()  # other loaders may share the physics, or its noise model
            if index == before:
                raise ValueError("dataloader must give at least one batch, got none.")
    return index
