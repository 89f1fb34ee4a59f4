r"""A training in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from deepinv.datasets.base import batch_as_dict
from deepinv.physics import Physics
from torch import nn
from torch.utils.data import DataLoader, Dataset

from .. import checks
from .jitter import JitterTrainer


def fit(
    model: nn.Module,
    physics: Physics,
    data: Dataset | DataLoader,
    *,
    epochs: int,
    lr: float = 1e-3,
    batch_size: int = 4,
    trainer: Callable[..., JitterTrainer] = JitterTrainer,
    verbose: bool = False,
    **kwargs,
) -> nn.Module:
    r"""
    Train a model by Adam, with a cosine schedule and gradients clipped to norm 1.

    It is a trainer with arguments that suit small experiments: nothing is saved, and nothing is
    printed unless asked for. ``kwargs`` go first. Data without measurements are
    measured by the physics, anew in every epoch. The order of the samples and the noise come from
    the global generator, see :func:`torch.manual_seed`.

    :param torch.nn.Module model: the model, trained in place, where its weights are.
    :param deepinv.physics.Physics physics: forward operator and noise, on the same device.
    :param torch.utils.data.Dataset, torch.utils.data.DataLoader data: training data, in any of
        deepinv's formats; a loader comes as it is, a data set is shuffled.
    :param int epochs: number of epochs, at least 1.
    :param float lr: learning rate of the first epoch, positive. Default: 1e-3.
    :param int batch_size: samples in a batch of a data set. Default: 4.
    :param Callable trainer: :class:`JitterTrainer` (default) or another of the trainers.
    :param bool verbose: print, and show progress. Default: ``False``.
    :param kwargs: arguments of the trainer, such as ``attack`` of :class:`AttackTrainer`,
        ``losses`` or ``physics_generator``.
    :return: (:class:`torch.nn.Module`) ``model``, in evaluation mode, in what a self-supervised
        loss has wrapped around it.
    :raises TypeError: if ``model`` is not a module, ``data`` not a data set of samples, or a number
        of another type.
    :raises ValueError: if a number is out of range. Other errors are the trainer's.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    >>> model = dj.UnfoldedGD(dj.PointMLP(), stepsize=0.5, max_iter=3, jitter=0.1)
    >>> dj.fit(model, physics, dj.PointDataset(20), epochs=2, batch_size=10).training
    False
    """
    checks.instance("model", model, nn.Module, "torch.nn.Module")
    samples: Any = data.dataset if isinstance(data, DataLoader) else data
    items = all(hasattr(samples, name) for name in ("__len__", "__getitem__"))
    if not items or isinstance(samples, (str, Mapping)) or not len(samples):
        raise TypeError(
            "data must be a data set with at least one sample, or a DataLoader of such, got "
            f"{type(data).__name__}."
        )
    epochs = checks.whole("epochs", epochs, 1)
    batch_size = checks.whole("batch_size", batch_size, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=checks.positive("lr", lr, below=1e6))
    if not isinstance(data, DataLoader):
        data = DataLoader(data, batch_size, shuffle=True)
    usual = {
        "scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs),
        "online_measurements": batch_as_dict(samples[0]).get("y") is None,
        "grad_clip": 1.0,
        "device": next(model.parameters()).device,
        "save_path": None,
        "verbose": verbose,
        "show_progress_bar": verbose,
    }
    arguments = usual | kwargs
    return trainer(model, physics, optimizer, data, epochs=epochs, **arguments).train().eval()
