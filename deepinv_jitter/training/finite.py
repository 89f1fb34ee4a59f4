r"""Losses and gradients that are not finite never reach the weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from deepinv import Trainer
from deepinv.utils.tensorlist import TensorList
from torch import nn
from torch.amp import GradScaler

from ..attacks.parts import modules
from . import distributed
from .snapshot import Snapshot


@dataclass
class FiniteTrainer(Trainer):
    """
    Losses and gradients that are not finite never reach the weights.

    What is left out is a batch of one data set: with several of them in a step of the optimizer,
    the gradients of the others count, in whatever order they come.
    """

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
        self._found = {}  # what perturbing a batch taught, until the batch has counted

    def setup_train(self, train: bool = True, **kwargs) -> None:
        """Set up training or testing, see :meth:`deepinv.Trainer.setup_train`."""
        super().setup_train(train=train, **kwargs)
        self._held = Snapshot([self.model, self.losses], counting=modules(self.losses))
        enabled = self.scaler.is_enabled()
        self.scaler = NoEmptySteps(device=self.device.type, enabled=enabled)

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

    def compute_loss(
        self, physics, x, y, train: bool = True, epoch=None, step: bool = False
    ):
        """Losses of a batch, see :meth:`deepinv.Trainer.compute_loss`."""
        arguments = {"train": train, "epoch": epoch, "step": step}
        if not train:
            return super().compute_loss(physics, x, y, **arguments)
        meters = [self.logs_total_loss_train, *self.logs_losses_train]
        contents = [vars(meter) | {"vals": len(meter.vals)} for meter in meters]
        self._held.take()
        # Of the other data sets of this step; with a step for each there are none
        gradients = {} if step else self._gradients()
        try:
            result = super().compute_loss(physics, x, y, **arguments)
            if self._scaled_together:
                self._check_finite([])
        except FloatingPointError as error:
            self._held.restore()
            self._found.clear()
            for p in self._parameters():
                p.grad = gradients.get(p)
            for meter, content in zip(meters, contents, strict=True):
                vals = meter.vals[: content["vals"]]
                vars(meter).update(content, vals=vals)
            self._leave_out(x, y, error)
            return 0.0, None, self._so_far()
        self._count()
        return result

    def compute_metrics(self, x, x_net, y, physics, logs, train=True, **kwargs):
        """Metrics of a batch, see :meth:`deepinv.Trainer.compute_metrics`."""
        if train and x_net is None:  # left out
            return x_net, logs
        return super().compute_metrics(
            x, x_net, y, physics, logs, train=train, **kwargs
        )

    def check_clip_grad(self):
        """Check and clip the gradient, see :meth:`deepinv.Trainer.check_clip_grad`."""
        if not self._scaled_together:
            scaled = self.scaler.is_enabled()
            self._check_finite([] if scaled else self.model.parameters())
        elif all(p.grad is None for p in self._parameters()):
            return None
        return super().check_clip_grad()

    @property
    def _scaled_together(self) -> bool:
        """Whether the host looks at gradients after all data sets of a step, not after each."""
        return self.scaler.is_enabled() and self.optimizer_step_multi_dataset

    def _parameters(self) -> Iterator[nn.Parameter]:
        """Everything that may have a gradient."""
        yield from self.model.parameters()
        for group in self.optimizer.param_groups:
            yield from group["params"]

    def _gradients(self) -> dict[nn.Parameter, torch.Tensor]:
        groups = self.optimizer.param_groups
        own = [p for group in groups for p in group["params"] if p.grad is not None]
        return {p: p.grad.clone() for p in own}

    def _check_finite(self, parameters: Iterable[nn.Parameter]) -> None:
        # In float16 gradients may overflow, and the scaler leaves out such steps itself
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

    def _so_far(self) -> dict[str, float]:
        """What the host says of the epoch so far."""
        names = [type(loss).__name__ for loss in self.losses]
        meters = self.logs_losses_train if len(names) > 1 else []
        named = dict(zip(names, meters, strict=False))
        named["TotalLoss"] = self.logs_total_loss_train
        return {name: meter.avg for name, meter in named.items() if meter.count}

    def _count(self) -> None:
        """A batch has counted, and with it what was found on the way."""

    def _leave_out(self, x, y, error: FloatingPointError) -> None:
        """Stop at a batch that did not count, or go on without its gradient."""
        epoch, batch = self._place
        named = {"x": x, "y": y}
        names = [n for n, t in named.items() if t is not None and not finite(t)]
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


class NoEmptySteps(GradScaler):
    """The host's scaler and steps, without those of a batch that was left out as a whole."""

    def step(self, optimizer: torch.optim.Optimizer, *args, **kwargs) -> float | None:
        groups = optimizer.param_groups
        self._empty = all(p.grad is None for group in groups for p in group["params"])
        return None if self._empty else super().step(optimizer, *args, **kwargs)

    def update(self, *args, **kwargs) -> None:
        if not self._empty:
            super().update(*args, **kwargs)


def finite(y: torch.Tensor | TensorList) -> bool:
    """Whether all values are finite, in all parts of the measurements."""
    parts = y if isinstance(y, TensorList) else [y]
    return all(bool(part.isfinite().all()) for part in parts)


def refill(meter, values: list[float]) -> None:
    meter.reset()
    if values:
        meter.update(np.array(values))
