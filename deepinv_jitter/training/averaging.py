r"""Averaged weights: validated, chosen as the best, saved and returned instead of the last ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .. import checks
from . import distributed
from .checkpoints import loaded
from .validation import ValidatingTrainer


class Weights(nn.Module):
    """The parameters and buffers of a model, shared with it, without all else."""

    def __init__(self, model: nn.Module):
        super().__init__()
        for i, parameter in enumerate(model.parameters()):
            self.register_parameter(f"parameter{i}", parameter)
        for i, buffer in enumerate(model.buffers()):
            self.register_buffer(f"buffer{i}", buffer)

    def tensors(self) -> list[torch.Tensor]:
        return [*self.parameters(), *self.buffers()]


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    r"""
    The running average of a model's weights, from those it has.

    Statistics of batch normalisation belong to the weights of the steps that they were taken in,
    and are averaged with them. What is no real number, such as the count of batches, is copied.

    :param torch.nn.Module model: the model.
    :param float decay: the largest decay.
    :return: (:class:`torch.optim.swa_utils.AveragedModel`) of its :class:`Weights`.
    """

    def average(averages: list, values: list, n: torch.Tensor) -> None:
        if not (averages[0].is_floating_point() or averages[0].is_complex()):
            for old, new in zip(averages, values, strict=True):
                old.copy_(new)
            return
        # At first over few steps: else the weights of the start would count for long
        now = min(decay, (1 + n.item()) / (10 + n.item()))
        get_ema_multi_avg_fn(now)(averages, values, n)

    return AveragedModel(Weights(model), multi_avg_fn=average, use_buffers=True)


@dataclass
class AveragingTrainer(ValidatingTrainer):
    """
    Averaged weights are validated, chosen as the best, saved and returned.

    While it trains, the model has its own weights, which attacks see too; the average lies beside
    it, and both change places for evaluation and checkpoints.
    """

    ema: float | None = field(default=None, kw_only=True)

    def __post_init__(self):
        if self.ema is not None:
            self.ema = checks.positive("ema", self.ema, below=1)
        super().__post_init__()
        self._trains = False
        self._average = (
            None  # beside the model, or the model's own weights while it holds them
        )
        self._holds_average = False

    def setup_train(self, train: bool = True, **kwargs) -> None:
        """Set up training or testing, see :meth:`deepinv.Trainer.setup_train`."""
        self._trains = train
        if train:
            self._average, self._holds_average = None, False
        super().setup_train(train=train, **kwargs)
        if train and self.ema is not None and self._average is None:
            self._average = averaged(self.model, self.ema)

    def train(self) -> nn.Module:
        """Train the model, see :meth:`deepinv.Trainer.train`."""

        def follow(*_) -> None:
            if self._average is not None:
                self._average.update_parameters(Weights(self.model))

        # After steps that were made: not where gradients overflowed or a batch was left out
        steps = (
            None if self.ema is None else self.optimizer.register_step_post_hook(follow)
        )
        try:
            return super().train()
        finally:
            if steps is not None:
                steps.remove()
                self._exchange(to_average=True)
                self._average, self._holds_average = None, False

    def step(self, *args, train: bool = True, last_batch: bool = False, **kwargs):
        """A batch, see :meth:`deepinv.Trainer.step`; evaluation is of the average."""
        arguments = {"train": train, "last_batch": last_batch} | kwargs
        if not train:
            with self._holding_average():
                super().step(*args, **arguments)
            return
        super().step(*args, **arguments)
        if last_batch and self._average is not None:
            distributed.same_buffers(self._average)

    def load_model(
        self, ckpt_pretrained: str | Path | None = None, strict: bool = True
    ) -> dict | None:
        """Load a checkpoint, see :meth:`deepinv.Trainer.load_model`."""
        resumes = self._trains and ckpt_pretrained is None
        if resumes and self.ckpt_pretrained is not None:
            self._check_setting(self.ckpt_pretrained)
        return super().load_model(ckpt_pretrained, strict)

    def _check_setting(self, path: str | Path) -> None:
        checkpoint = loaded(path)
        if "ranks" not in checkpoint:  # of the host's trainer: the average begins here
            return
        saved = (checkpoint.get("ema") or {}).get("decay")
        if saved != self.ema:
            raise ValueError(
                f"a run goes on with the ema it began with, got ema={self.ema} and {saved} in "
                f"{str(path)!r}: keep it, or begin a new run from these weights with "
                "model.load_state_dict(torch.load(path)['state_dict'])."
            )

    def save_model(self, filename: str, epoch: int, state: dict | None = None) -> None:
        """Save a checkpoint, see :meth:`deepinv.Trainer.save_model`; the model is the average."""
        saved = {"ema": None}
        if self._average is not None:
            with self._holding_average(False):
                raw = self.model.state_dict()
            steps = self._average.n_averaged.item()
            saved["ema"] = {"decay": self.ema, "steps": steps, "raw": raw}
        with self._holding_average():
            super().save_model(filename, epoch, (state or {}) | saved)

    def _restore(self, checkpoint: dict) -> None:
        saved = checkpoint.get("ema")
        if saved is not None:
            self._average = averaged(self.model, self.ema)
            self._average.n_averaged.fill_(saved["steps"])
            self.model.load_state_dict(saved["raw"])
        super()._restore(checkpoint)

    @contextmanager
    def _holding_average(self, holds: bool = True) -> Iterator[None]:
        before = self._holds_average
        self._exchange(holds)
        try:
            yield
        finally:
            self._exchange(before)

    def _exchange(self, to_average: bool) -> None:
        """Let model and average change places, unless they are where they should be."""
        if self._average is None or to_average == self._holds_average:
            return
        pairs = zip(
            Weights(self.model).tensors(), self._average.module.tensors(), strict=True
        )
        for own, other in pairs:
            own.data, other.data = other.data, own.data
        self._holds_average = to_average
