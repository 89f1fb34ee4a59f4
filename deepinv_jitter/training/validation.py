r"""Looking at a model changes nothing in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from ..memory import modules
from .host import ADAPTERS
from .parts import Part
from .snapshot import Snapshot


class Validation(Part):
    """
    Losses and metrics of evaluation data are those of the model in evaluation mode.

    Only what a self-supervised loss has wrapped around the network is in training mode for that
    loss, the network inside is not. Buffers, counters and random generators are afterwards as
    before.
    """

    def __init__(self) -> None:
        self.batches = 0  # evaluation batches so far
        self.looks = False  # whether evaluation data are reconstructed for the losses
        self._adapters: list[nn.Module] = []  # what the losses wrapped around the network
        self._held: Snapshot | None = None  # what an evaluation brings back

    @contextmanager
    def adapting(self, trainer: Any) -> Iterator[None]:
        """While the losses may wrap something around the network."""
        network = set(trainer.model.modules())
        yield
        self._adapters += [m for m in trainer.model.modules() if m not in network]
        self._held = None

    def forget(self) -> None:
        """A training batch is next, which may make modules and generators."""
        self._held = None

    @contextmanager
    def looking(self, trainer: Any) -> Iterator[None]:
        """While losses of evaluation data are computed."""
        self.looks = True
        try:
            with self.unnoticed(trainer), torch.no_grad():
                yield
        finally:
            self.looks = False

    @contextmanager
    def awake(self, model: nn.Module) -> Iterator[None]:
        """A pass in evaluation mode, but for what the losses wrapped around the network."""

        def wake(*_: Any) -> None:
            for part in self._all_adapters(model):
                part.training = True

        hook = model.register_forward_pre_hook(wake)
        try:
            yield
        finally:
            hook.remove()

    def unnoticed(self, trainer: Any) -> AbstractContextManager:
        """Of what happens inside nothing is left."""
        if self._held is None:
            roots = [trainer.model, trainer.physics, trainer.losses, trainer.metrics]
            counting = [*modules(trainer.losses), *self._all_adapters(trainer.model)]
            self._held = Snapshot(roots, counting)
        # What is drawn differs between batches, while the generators come back to where they were
        return self._held.unnoticed(stream=self.batches)

    def own_state(self) -> dict:
        return {"looked_at": self.batches}

    def load_own(self, state: dict) -> None:
        self.batches = state.get("looked_at", 0)

    def _all_adapters(self, model: nn.Module) -> list[nn.Module]:
        """Also those of a model that was given adapted."""
        return [m for m in model.modules() if isinstance(m, ADAPTERS)] + self._adapters
