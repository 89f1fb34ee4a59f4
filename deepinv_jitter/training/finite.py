r"""Losses and gradients that are not finite never reach the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import chain

import torch
from deepinv.utils.tensorlist import TensorList
from torch import nn

from ..attacks.parts import Measurements
from ..memory import modules
from . import distributed
from .host import HostTrainer
from .snapshot import Snapshot


class Guard:
    """
    Undoes a batch whose loss or gradient is not finite: that of one data set.

    Where a step of the optimizer has several of them, the gradients of the others count.
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
        named = ("", trainer.total_loss(train=True)), *trainer.loss_meters(train=True)
        self._meters = [(m, vars(m) | {"vals": len(m.vals)}) for _, m in named]
        # Of the other data sets of this step; with a step for each there are none
        parameters = set() if step else _parameters(trainer)
        self._gradients = {p: p.grad.clone() for p in parameters if p.grad is not None}

    def refuses_gradients(self, trainer: HostTrainer) -> bool:
        """Whether those of the batch, or of all data sets of a step, are not to be used."""
        if self._scaled_together(trainer):
            # The loss was looked at, and the scaler does the rest
            return all(p.grad is None for p in _parameters(trainer))
        # In float16 gradients may overflow, and the scaler leaves out such steps itself
        own = [] if trainer.loss_scaler.is_enabled() else trainer.model.parameters()
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
        return trainer.loss_scaler.is_enabled() and trainer.optimizer_step_multi_dataset


def finite(*batch: Measurements | None) -> bool:
    """Whether all values are finite, in all parts of what there is, in one look."""
    parts = chain.from_iterable(y if isinstance(y, TensorList) else [y] for y in batch)
    flags = [part.isfinite().all() for part in parts if part is not None]
    return bool(torch.stack(flags).all())


def _parameters(trainer: HostTrainer) -> set[nn.Parameter]:
    """Everything that may have a gradient."""
    groups = trainer.optimizer.param_groups
    return {*trainer.model.parameters(), *(p for group in groups for p in group["params"])}
