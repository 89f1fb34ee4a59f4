r"""Losses and gradients that are not finite never reach the weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from deepinv import Trainer
from torch import nn

from . import distributed


@dataclass
class FiniteTrainer(Trainer):
    """Losses and gradients that are not finite never reach the weights."""

    on_non_finite: str = field(default="raise", kw_only=True)

    def __post_init__(self):
        if self.on_non_finite not in ("raise", "skip"):
            raise ValueError(
                f"on_non_finite must be 'raise' or 'skip', got {self.on_non_finite!r}."
            )
        if self.on_non_finite == "skip" and self.log_train_batch:
            raise ValueError(
                "on_non_finite='skip' leaves batches without a loss, but log_train_batch=True asks "
                "for that of every batch: choose one of both."
            )
        super().__post_init__()
        self.skipped = []
        self._place = 0, 0  # the epoch, and how many of its batches have passed

    def step(
        self, epoch, *args, train: bool = True, last_batch: bool = False, **kwargs
    ):
        """A batch, see :meth:`deepinv.Trainer.step`, which is then counted."""
        if train:
            self._place = epoch, self._place[1] if self._place[0] == epoch else 0
        super().step(epoch, *args, train=train, last_batch=last_batch, **kwargs)
        if train:
            self._place = epoch, self._place[1] + 1
            if last_batch and self.logs_total_loss_train.count == 0:
                raise FloatingPointError(
                    f"Every batch of epoch {epoch} was left out: no loss was finite."
                )

    def compute_loss(self, physics, x, y, train: bool = True, **kwargs):
        """Losses of a batch, see :meth:`deepinv.Trainer.compute_loss`."""
        meters = [self.logs_total_loss_train, *self.logs_losses_train]
        before = [len(meter.vals) for meter in meters]
        try:
            result = super().compute_loss(physics, x, y, train=train, **kwargs)
            if train and self.scaler.is_enabled():
                # Its gradients may overflow, and it leaves out such steps itself
                self._check_finite([])
            return result
        except FloatingPointError as error:
            for meter, count in zip(meters, before, strict=True):
                refill(meter, meter.vals[:count])
            self._leave_out(x, y, error)
            return 0.0, None, {}

    def check_clip_grad(self):
        """Check and clip the gradient, see :meth:`deepinv.Trainer.check_clip_grad`."""
        if not self.scaler.is_enabled():
            self._check_finite(self.model.parameters())
        return super().check_clip_grad()

    def _check_finite(self, parameters: Iterable[nn.Parameter]) -> None:
        loss = self.logs_total_loss_train.val
        gradients = [p.grad for p in parameters if p.grad is not None]
        peaks = [g.abs().max() for g in gradients if g.numel()]
        # All of them in one number, which is copied from the device once
        peak = torch.stack(peaks).max().item() if peaks else 0.0
        bad = not (math.isfinite(loss) and math.isfinite(peak))
        if distributed.largest([int(bad)], self.device)[0]:
            raise FloatingPointError(
                f"loss {loss:.3g}, largest entry of its gradient {peak:.3g}"
            )

    def _leave_out(self, x, y, error: FloatingPointError) -> None:
        """Stop at a batch that did not count, or go on without its gradient."""
        epoch, batch = self._place
        names = [
            name
            for name, t in {"x": x, "y": y}.items()
            if isinstance(t, torch.Tensor) and not t.isfinite().all()
        ]
        reason = f"{' and '.join(names)} not finite" if names else "x and y are finite"
        message = (
            f"Loss and gradient must be finite, got {error} in epoch {epoch}, batch {batch} "
            f"({reason})"
        )
        if self.on_non_finite == "raise":
            raise FloatingPointError(
                f"{message}: the weights are those of before this batch. on_non_finite='skip' "
                "leaves such batches out."
            ) from None
        warnings.warn(f"{message}: the batch is left out.", stacklevel=2)
        self.skipped.append((epoch, batch))
        if not self.scaler.is_enabled():  # which asks for gradients, and sees theirs
            self.optimizer.zero_grad(set_to_none=True)


def refill(meter, values: list[float]) -> None:
    meter.reset()
    if values:
        meter.update(np.array(values))
