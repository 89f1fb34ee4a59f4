r"""One training on as many processes as torch.distributed has."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from deepinv.physics import Physics
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..attacks.parts import Measurements
from ..memory import own_buffers
from . import distributed
from .host import AverageMeter, HostTrainer, folder_is_taken, refill
from .snapshot import Snapshot


class Gradients:
    """The model whose gradients are averaged over the processes, and whether they were."""

    def __init__(self) -> None:
        self._model: nn.Module | None = None  # from the first pass of a training
        self.averaged = False  # those of the batch at hand

    def reset(self) -> None:
        self._model = None

    def model(
        self, trainer: Any, y: Measurements, physics: Physics, x: torch.Tensor | None
    ) -> nn.Module:
        """For the training pass alone: all else is with the plain model."""
        self.averaged = True
        if self._model is None:
            options = dict(trainer.ddp_options)
            if not options.keys() & {"find_unused_parameters", "static_graph"}:
                options["find_unused_parameters"] = has_unused(trainer, y, physics, x)
            device_ids = [trainer.device] if trainer.device.type == "cuda" else None
            # Every process has its own batch, and keeps the physics of that
            given = dict(trainer.model.named_buffers()).keys() - own_buffers(trainer.model).keys()
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
                trainer.model, given
            )
            self._model = DistributedDataParallel(trainer.model, device_ids, **options)
        return self._model

    def check(self, trainer: HostTrainer) -> None:
        """Refuse a training batch whose gradients no other process knows."""
        if shares_gradients(trainer) and not self.averaged:
            raise NotImplementedError(
                f"{type(trainer).__name__} trains the model outside its training pass, where "
                "gradients are averaged over the processes: use a single process."
            )


def shares_gradients(trainer: HostTrainer) -> bool:
    """Whether there is a gradient, and another process to share it with."""
    return distributed.count() > 1 and any(p.requires_grad for p in trainer.model.parameters())


def has_unused(
    trainer: HostTrainer, y: Measurements, physics: Physics, x: torch.Tensor | None
) -> bool:
    """Whether a parameter is without use, such as the weight of a prior, in one more pass."""
    free = [p for p in trainer.model.parameters() if p.requires_grad]
    with Snapshot([trainer.model, physics, trainer.losses]).unnoticed():
        x_net = HostTrainer.model_inference(trainer, y, physics, x=x, train=True)
        ones = torch.ones_like(x_net)
        found = torch.autograd.grad(x_net, free, ones, allow_unused=True)
    unused = any(gradient is None for gradient in found)
    return bool(distributed.largest([int(unused)], trainer.device)[0])


class Merging:
    """Losses and metrics of an epoch become those of all processes, after its last batch."""

    def __init__(self) -> None:
        self._left = -1  # losses until then

    def expect(self, trainer: HostTrainer, last_batch: bool) -> None:
        """A batch of every data set comes; never is the time if it is not the last."""
        self._left = len(trainer.train_dataloader) if last_batch and distributed.count() > 1 else -1

    def losses(self, trainer: HostTrainer, logs: dict, train: bool) -> None:
        self._left -= 1
        if self._left == 0:
            total = "TotalLoss", trainer.total_loss(train)
            self._merge(logs, [total, *trainer.loss_meters(train)])

    def metrics(self, trainer: HostTrainer, logs: dict, train: bool) -> None:
        if self._left == 0:
            self._merge(logs, trainer.metric_meters(train))
            if not train:
                self._merge(logs, trainer.no_learning_meters())

    @staticmethod
    def _merge(logs: dict, meters: list[tuple[str, AverageMeter]]) -> None:
        for name, meter in meters:
            refill(meter, [*chain.from_iterable(distributed.gathered(meter.vals))])
            if name in logs:
                logs[name] = meter.avg


class Folder:
    """
    One folder per training, of the first process.

    The host would open another for testing, and lose the one with the best model; and the next
    training would be inside the last.
    """

    def __init__(self) -> None:
        self.base: str | Path | None = None  # the user's
        self._run: str | Path | None = None  # that of the last training

    @contextmanager
    def opened(self, trainer: HostTrainer, train: bool) -> Iterator[None]:
        """While the host sets up, and makes it."""
        former = trainer.save_path
        if train:
            again = former is not None and former == self._run
            self.base = trainer.save_path = self.base if again else former
        if distributed.own() > 0 or not train:
            trainer.save_path = None
        # The host names a folder by the second, and refuses the second run of one
        while folder_is_taken(trainer.save_path):
            time.sleep(0.1)
        try:
            yield
        except BaseException:
            made = trainer.save_path
            if train and isinstance(made, str) and made != former:
                with suppress(OSError):
                    Path(made).rmdir()
            trainer.save_path = former
            raise
        if train:
            former = self._run = distributed.gathered(trainer.save_path)[0]
        trainer.save_path = former
