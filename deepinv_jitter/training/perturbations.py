r"""What is done to the measurements of a training batch; and the perturbations it remembers."""

from __future__ import annotations

import warnings
from statistics import median
from typing import Any

import torch
from deepinv.utils.tensorlist import TensorList

from ..attacks.base import Attack
from ..attacks.parts import Measurements
from ..memory import Memory, modules
from . import distributed
from .parts import Part
from .snapshot import tensors


class Perturbation(Part):
    """Measurements as they are; others derive from it."""

    def __call__(self, trainer, x, y, physics) -> Measurements:
        """The measurements that a training batch is made of."""
        return y


class Deltas(Part):
    """The last perturbation of every sample, of whatever process."""

    def __init__(self) -> None:
        # By the numbers of the loader and of the sample
        self.known: dict[tuple[int, int], torch.Tensor] = {}
        self._fresh: set[tuple[int, int]] = set()  # which other processes do not know
        self._batch: list[tuple[int, int]] = []

    def meet(self, g: int, batch: Any) -> Any:
        """Note the samples of a batch, which is handed on as it is."""
        indices = batch.get("index", []) if isinstance(batch, dict) else []
        self._batch = [(int(g), int(i)) for i in indices]
        return batch

    def last(self, y: Measurements) -> torch.Tensor:
        """The last perturbations of the samples of a batch, zero for those that had none."""
        if isinstance(y, TensorList):
            raise ValueError(
                "persistent keeps one tensor for each sample, got measurements of "
                f"{len(y)} parts: set persistent=False and give the attack more steps."
            )
        if len(self._batch) != len(y):
            raise ValueError(
                "persistent needs the index of every sample, got "
                f"{len(self._batch)} for a batch of {len(y)}: wrap the data set in "
                "IndexedDataset."
            )
        zero = torch.zeros_like(y[0], device="cpu")
        return torch.stack([self.known.get(key, zero) for key in self._batch]).to(y)

    def note(self, delta: torch.Tensor) -> None:
        # Copies: a row would keep the memory of its whole batch
        rows = map(torch.clone, delta.cpu())
        self.found = dict(zip(self._batch, rows, strict=True))

    def learn(self, trainer: Any, found: dict) -> None:
        self.known |= found
        self._fresh.update(found)

    def finish(self, trainer: Any, epoch: int) -> None:
        self.share()

    def share(self) -> None:
        """Tell all processes of the samples of each, which the next epoch gives to others."""
        for deltas in distributed.gathered({k: self.known[k] for k in self._fresh}):
            self.known |= deltas
        self._fresh.clear()

    def state(self, trainer: Any) -> dict:
        self.share()
        return {"deltas": self.known}

    def load(self, trainer: Any, checkpoint: dict) -> None:
        self.known = dict(checkpoint.get("deltas", {}))


class Monitor(Part):
    """A stronger attack beside that of the training, on one batch after each epoch."""

    def __init__(self) -> None:
        self.history: list[float] = []
        self._batch: dict | None = None

    def note(self, trainer, x, y, physics) -> None:
        """Keep the first batch that counts."""
        if trainer.monitor is not None and self._batch is None:
            # Copies: what comes from a worker lies in shared memory, an open file
            self.found = {
                "x": None if x is None else x.clone(),
                # A checkpoint holds plain lists
                "y": list(y.clone()) if isinstance(y, TensorList) else y.clone(),
                "physics": [p is physics for p in trainer.physics].index(True),
                "parameters": {name: t.detach().clone() for name, t in tensors(physics).items()},
            }

    def learn(self, trainer: Any, found: dict) -> None:
        self._batch = self._batch or found

    def finish(self, trainer: Any, epoch: int) -> None:
        """Compare both attacks, and warn of catastrophic overfitting."""
        if trainer.monitor is None or self._batch is None:
            return
        batch, physics = self._batch, trainer.physics[self._batch["physics"]]
        x = None if batch["x"] is None else batch["x"].to(trainer.device)
        y = TensorList(batch["y"]) if isinstance(batch["y"], list) else batch["y"]
        y = y.to(trainer.device)

        def excess(attack: Attack) -> float:
            result = attack.run(trainer.model, x, y, physics)
            own = float((result.loss - result.loss_clean).mean())
            return sum(distributed.gathered(own)) / distributed.count()

        # Not by physics.update, which may treat what it is given, such as normalising it
        now, then = tensors(physics), batch["parameters"]
        others = {id(now[k]): then[k].to(now[k].device) for k in now.keys() & then.keys()}
        with Memory(modules(physics)).holding(others):
            harm = [excess(attack) for attack in (trainer.monitor, trainer.attack)]
        ratio = harm[0] / max(harm[1], torch.finfo(torch.float32).tiny)
        if len(self.history) > 1 and ratio > 1.5 * median(self.history):
            warnings.warn(
                f"Epoch {epoch}: the monitor attack harms {ratio:.2f} times as much as the "
                f"training attack, up from {median(self.history):.2f}: catastrophic overfitting. "
                "Train with more steps, or go back to an earlier checkpoint.",
                stacklevel=2,
            )
        self.history.append(ratio)

    def state(self, trainer: Any) -> dict:
        return {"monitor_history": self.history}

    def own_state(self) -> dict:
        return {"monitored": self._batch}

    def load(self, trainer: Any, checkpoint: dict) -> None:
        self.history = list(checkpoint.get("monitor_history", []))

    def load_own(self, state: dict) -> None:
        # Of another trainer, which attacked nothing, there is none
        self._batch = state.get("monitored")
