r"""Losses and gradients that are not finite never reach the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from deepinv.utils.tensorlist import TensorList
from torch import nn
from torch.amp import GradScaler

from ..attacks.parts import Measurements
from ..memory import modules
from . import distributed
from .host import HostTrainer
from .snapshot import Snapshot


class Guard:
    """
    Undoes a batch whose loss or gradient is not finite.

    What is undone is a batch of one data set: with several of them in a step of the optimizer, the
    gradients of the others count, in whatever order they come.
    """

    def __init__(self, trainer: HostTrainer):
        losses = modules(trainer.losses)
        self._held = Snapshot([trainer.model, trainer.losses], counting=losses)
        self.found: str | None = None  # what is not finite in the batch at hand
        self._gradients: dict[nn.Parameter, torch.Tensor] = {}

    def begin(self, trainer: HostTrainer, step: bool) -> None:
        """Keep what a batch may change."""
        self.found = None
        self._held.take()
        meters = [meter for _, meter in trainer.loss_meters(train=True)]
        meters.append(trainer.total_loss(train=True))
        self._meters = [(m, vars(m) | {"vals": len(m.vals)}) for m in meters]
        # Of the other data sets of this step; with a step for each there are none
        self._gradients = {} if step else _gradients(trainer.optimizer)

    def refuses_gradients(self, trainer: HostTrainer) -> bool:
        """Whether those of the batch, or of all data sets of a step, are not to be used."""
        if self._scaled_together(trainer):
            # The loss was looked at, and the scaler does the rest
            return all(p.grad is None for p in _parameters(trainer))
        # In float16 gradients may overflow, and the scaler leaves out such steps itself
        own = [] if trainer.scales_loss else trainer.model.parameters()
        return self._refuses(trainer, own)

    def refuses(self, trainer: HostTrainer) -> bool:
        """Whether a batch that has passed is one to leave out, of which nothing is left then."""
        if self._scaled_together(trainer):
            self._refuses(trainer, [])
        self._gradients = {}
        if self.found is None:
            return False
        self._held.restore()
        for meter, counts in self._meters:
            vars(meter).update(counts, vals=meter.vals[: counts["vals"]])
        return True

    def _refuses(self, trainer: HostTrainer, own: Iterable[nn.Parameter]) -> bool:
        loss = trainer.total_loss(train=True).val
        gradients = [p.grad for p in own if p.grad is not None]
        peaks = [g.abs().max() for g in gradients if g.numel()]
        # All of them in one number, which is copied from the device once
        peak = torch.stack(peaks).max().item() if peaks else 0.0
        bad = not (math.isfinite(loss) and math.isfinite(peak))
        if not distributed.largest([int(bad)], trainer.device)[0]:
            return False
        self.found = f"loss {loss:.3g}, largest entry of its gradient {peak:.3g}"
        for p in _parameters(trainer):
            p.grad = self._gradients.get(p)
        return True

    @staticmethod
    def _scaled_together(trainer: HostTrainer) -> bool:
        """Whether the host looks at gradients after all data sets of a step, not after each."""
        return trainer.scales_loss and trainer.optimizer_step_multi_dataset


class NoEmptySteps(GradScaler):
    """The host's scaler and steps, without those of a batch that was left out as a whole."""

    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> float | None:
        groups = optimizer.param_groups
        self._empty = all(p.grad is None for group in groups for p in group["params"])
        return None if self._empty else super().step(optimizer, *args, **kwargs)

    def update(self, new_scale: float | torch.Tensor | None = None) -> None:
        if not self._empty:
            super().update(new_scale)


def finite(*batch: Measurements | None) -> bool:
    """Whether all values are finite, in all parts of what there is, in one look."""
    parts = chain.from_iterable(y if isinstance(y, TensorList) else [y] for y in batch)
    flags = [part.isfinite().all() for part in parts if part is not None]
    return bool(torch.stack(flags).all())


def where_not_finite(x: torch.Tensor | None, y: Measurements) -> str:
    """In which of both, for messages."""
    named = {"x": x, "y": y}
    names = [n for n, t in named.items() if t is not None and not finite(t)]
    return f"{' and '.join(names)} not finite" if names else "x and y are finite"


def _parameters(trainer: HostTrainer) -> Iterator[nn.Parameter]:
    """Everything that may have a gradient."""
    yield from trainer.model.parameters()
    for group in trainer.optimizer.param_groups:
        yield from group["params"]


def _gradients(optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, torch.Tensor]:
    every = [p for group in optimizer.param_groups for p in group["params"]]
    return {p: p.grad.clone() for p in every if p.grad is not None}
