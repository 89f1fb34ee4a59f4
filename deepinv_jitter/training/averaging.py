r"""Averaged weights: validated, chosen as the best, saved and returned instead of the last ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..memory import own_buffers
from . import distributed
from .parts import Part


class Averaging(Part):
    """
    The average of the weights beside the model; for evaluation and checkpoints in its place.

    Statistics of batch normalisation belong to the weights of the steps that they were taken in,
    and are averaged with them. Buffers may come, go and change their shape with a batch.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._average: dict[str, torch.Tensor] = {}  # as long as nothing is averaged
        self._steps = 0
        self._in_place = False  # whether the model has it, and this the model's own weights

    @contextmanager
    def following(self, trainer: Any) -> Iterator[None]:
        """A training whose steps are averaged, and whose model has the average at its end."""
        if trainer.ema is None:
            yield
            return
        # After steps that were made: not where gradients overflowed or a batch was left out
        steps = trainer.optimizer.register_step_post_hook(
            lambda *_: self._follow(trainer.model, trainer.ema)
        )
        try:
            yield
        finally:
            steps.remove()
            self._exchange(trainer.model, to_average=True)
            self.reset()

    @torch.no_grad()
    def _follow(self, model: nn.Module, decay: float) -> None:
        # At first over few steps: else the weights of the start would count for long
        now = min(decay, (1 + self._steps) / (10 + self._steps)) if self._steps else 0.0
        averages: tuple[list[torch.Tensor], list[torch.Tensor]] = [], []
        for name, new in _tensors(model).items():
            old = self._average.get(name)
            if old is None or old.shape != new.shape:
                self._average[name] = new.clone()
            elif now and (old.is_floating_point() or old.is_complex()):
                averages[0].append(old)
                averages[1].append(new)
            else:  # such as a count of batches
                old.copy_(new)
        if averages[0]:
            get_ema_multi_avg_fn(now)(*averages, self._steps)  # all in one call, as a GPU wants it
        for old, new in zip(*averages, strict=True):
            if not isinstance(new, nn.Parameter):  # infinities, as in masks, have no average
                old.copy_(torch.where(old.isfinite(), old, new))
        self._steps += 1

    def begin_run(self, model: nn.Module, ema: float | None) -> None:
        """From the weights of the model, unless a checkpoint had an average."""
        if ema is not None and not self._average:
            self._average = {k: t.detach().clone() for k, t in _tensors(model).items()}

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
        # Parameters are the same on all processes, as their gradients are
        parameters = dict(trainer.model.named_parameters())
        distributed.share(t for name, t in self._average.items() if name not in parameters)

    @staticmethod
    def check(ema: float | None, checkpoint: dict, path: str | Path) -> None:
        """Refuse to go on from a checkpoint that was written with another decay."""
        saved = (checkpoint.get("ema") or {}).get("decay")
        # In a checkpoint of the host's trainer there is none: the average begins here
        if "ranks" in checkpoint and saved != ema:
            raise ValueError(
                f"a run goes on with the ema it began with, got ema={ema} and {saved} in "
                f"{str(path)!r}: keep it, or begin a new run from these weights with "
                "model.load_state_dict(torch.load(path)['state_dict'])."
            )

    def state(self, trainer: Any) -> dict:
        if not self._average:
            return {"ema": None}
        with self.held(trainer.model, False):
            raw = trainer.model.state_dict()
        return {"ema": {"decay": trainer.ema, "steps": self._steps, "raw": raw}}

    def load(self, trainer: Any, checkpoint: dict) -> None:
        saved = checkpoint.get("ema")
        if saved is not None:
            self.begin_run(trainer.model, trainer.ema)
            self._steps = saved["steps"]
            trainer.model.load_state_dict(saved["raw"])

    def _exchange(self, model: nn.Module, to_average: bool) -> None:
        """Let model and average change places, unless they are where they should be."""
        if not self._average or to_average == self._in_place:
            return
        tensors = _tensors(model)
        for name in tensors.keys() & self._average.keys():
            own, other = tensors[name], self._average[name]
            own.data, other.data = other.data, own.data
        self._in_place = to_average


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters()) | own_buffers(model)
