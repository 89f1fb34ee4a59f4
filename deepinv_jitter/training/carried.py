r"""What a model and its losses carry from batch to batch besides weights, for resumed runs."""

from __future__ import annotations

from typing import Any

import torch
from deepinv.physics import Physics
from deepinv.physics.generator import PhysicsGenerator

from ..memory import modules
from .parts import Part


class Carried(Part):
    """
    Tensors and numbers that are plain attributes, and no longer as they were before the training.

    Such are the count of batches after which a loss goes, a level that it learns, and where a
    solver starts from. What no batch changes is as the script says that goes on.
    """

    def __init__(self) -> None:
        self._holders: dict[str, dict[str, Any]] = {}  # from the beginning of a training
        self._before: dict[str, Any] = {}

    def begin_run(self, trainer: Any) -> None:
        """What there is before the first batch, and before a checkpoint is taken up."""
        self._device = trainer.device
        # Generators of masks may be made in the first pass: with them others had other numbers
        leave = Physics, PhysicsGenerator
        found = enumerate(modules(trainer.model, trainer.losses, leave=leave))
        self._holders = {
            f"{i} {type(part).__name__}": vars(part)
            for i, part in found
            if not type(part).__module__.startswith("torch.nn.")
        }
        self._before = self._now()

    def own_state(self) -> dict:
        now = self._now().items()
        return {"carried": {k: v for k, v in now if not _same(v, self._before.get(k))}}

    def load_own(self, state: dict) -> None:
        for key, value in state.get("carried", {}).items():
            holder, _, name = key.rpartition(".")
            own = self._holders.get(holder)
            if own is None:
                continue
            if isinstance(value, torch.Tensor):
                here = own.get(name)
                if isinstance(here, torch.Tensor):
                    # Not by way of the GPU, which may have no double precision
                    value = value.to(here.device).requires_grad_(here.requires_grad)
                else:
                    value = value.to(self._device)
            own[name] = value

    def _now(self) -> dict[str, Any]:
        now = {}
        for holder, own in self._holders.items():
            for name, value in own.items():
                if isinstance(value, torch.Tensor):
                    now[f"{holder}.{name}"] = value.detach().cpu().clone()
                elif type(value) in (bool, int, float) and name != "training":
                    now[f"{holder}.{name}"] = value
        return now


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and a == b
