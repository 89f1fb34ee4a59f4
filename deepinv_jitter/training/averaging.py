r"""Averaged weights: validated, chosen as the best, saved and returned instead of the last ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from . import distributed
from .parts import Part


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

    def average(averages: Any, values: Any, _: Any) -> None:
        if not (averages[0].is_floating_point() or averages[0].is_complex()):
            for old, new in zip(averages, values, strict=True):
                old.copy_(new)
            return
        # At first over few steps: else the weights of the start would count for long
        steps = mean.n_averaged.item()  # which torch counts on the CPU, and hands over on the GPU
        now = min(decay, (1 + steps) / (10 + steps))
        get_ema_multi_avg_fn(now)(averages, values, steps)

    mean = AveragedModel(Weights(model), multi_avg_fn=average, use_buffers=True)
    return mean


class Averaging(Part):
    """
    The average beside the model, or in its place.

    While it trains, the model has its own weights, which attacks see too; both change places for
    evaluation and checkpoints.
    """

    def __init__(self) -> None:
        self._average: AveragedModel | None = None
        self._in_place = False  # whether the model has it, and this the model's own weights

    @contextmanager
    def following(self, trainer: Any) -> Iterator[None]:
        """A training whose steps are averaged, and whose model has the average at its end."""

        def follow(*_: Any) -> None:
            if self._average is not None:
                self._average.update_parameters(Weights(trainer.model))

        if trainer.ema is None:
            yield
            return
        # After steps that were made: not where gradients overflowed or a batch was left out
        steps = trainer.optimizer.register_step_post_hook(follow)
        try:
            yield
        finally:
            steps.remove()
            self._exchange(trainer.model, to_average=True)
            self.reset()

    def reset(self) -> None:
        self._average, self._in_place = None, False

    def begin_run(self, trainer: Any) -> None:
        """From the weights of the model, unless a checkpoint had an average."""
        if trainer.ema is not None and self._average is None:
            self._average = averaged(trainer.model, trainer.ema)

    @contextmanager
    def held(self, model: nn.Module, holds: bool = True) -> Iterator[None]:
        """The model with the average, or with its own weights."""
        before = self._in_place
        self._exchange(model, holds)
        try:
            yield
        finally:
            self._exchange(model, before)

    def finish(self, trainer: Any, epoch: int) -> None:
        if self._average is not None:
            distributed.same_buffers(self._average)

    def check(self, ema: float | None, checkpoint: dict, path: str | Path) -> None:
        """
        Refuse to go on with another average.

        :raises ValueError: if the checkpoint was written with another decay.
        """
        if "ranks" not in checkpoint:  # of the host's trainer: the average begins here
            return
        saved = (checkpoint.get("ema") or {}).get("decay")
        if saved != ema:
            raise ValueError(
                f"a run goes on with the ema it began with, got ema={ema} and {saved} in "
                f"{str(path)!r}: keep it, or begin a new run from these weights with "
                "model.load_state_dict(torch.load(path)['state_dict'])."
            )

    def state(self, trainer: Any) -> dict:
        if self._average is None:
            return {"ema": None}
        with self.held(trainer.model, False):
            raw = trainer.model.state_dict()
        steps = self._average.n_averaged.item()
        return {"ema": {"decay": trainer.ema, "steps": steps, "raw": raw}}

    def load(self, trainer: Any, checkpoint: dict) -> None:
        saved = checkpoint.get("ema")
        if saved is not None:
            self._average = averaged(trainer.model, trainer.ema)
            self._average.n_averaged.fill_(saved["steps"])
            trainer.model.load_state_dict(saved["raw"])

    def _exchange(self, model: nn.Module, to_average: bool) -> None:
        """Let model and average change places, unless they are where they should be."""
        if self._average is None or to_average == self._in_place:
            return
        held = self._average.module
        assert isinstance(held, Weights)
        for own, other in zip(Weights(model).tensors(), held.tensors(), strict=True):
            own.data, other.data = other.data, own.data
        self._in_place = to_average
