r"""What a training tells of itself: bars on a terminal, a line for each epoch in a log file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from .history import steps_from_sizes
from .host import HISTORIES, HostTrainer
from .parts import Part


class Lines:
    """A line for each epoch instead of bars, where the output is no terminal."""

    def __init__(self) -> None:
        self._shown = False  # whether lines take the place of the bars
        self._line = ""  # of the current epoch, as far as it goes

    @contextmanager
    def instead_of_bars(self, trainer: HostTrainer) -> Iterator[None]:
        """A training or a test."""
        bars = trainer.show_progress_bar
        self._shown = bars and not _overwrites()
        with trainer.having(show_progress_bar=bars and not self._shown):
            try:
                yield
            finally:
                self.end(trainer)
                self._shown = False

    def alone(self, trainer: HostTrainer) -> AbstractContextManager:
        """A batch: without bars the host prints lines of its own."""
        return trainer.having(show_progress_bar=trainer.show_progress_bar or self._shown)

    def add(self, trainer: HostTrainer, epoch: int, train: bool) -> None:
        """What the training or the validation of an epoch has come to."""
        if not self._shown:
            return
        meters = trainer.loss_meters(train) + trainer.metric_meters(train)
        said = ", ".join(f"{name} {m.avg:.4g}" for name, m in meters if m.count)
        if train:
            self._line = f"Epoch {epoch + 1}/{trainer.epochs}: {said}"
        elif self._line:  # else amid an epoch, with log_train_batch
            self._line += f"; validation: {said}"
            self.end(trainer)

    def end(self, trainer: HostTrainer) -> None:
        if self._line and trainer.verbose:
            sys.stderr.write(f"{self._line}\n")
        self._line = ""


class Steps(Part):
    """The epochs, or with ``log_train_batch`` the batches, from 1, of the host's histories."""

    def __init__(self) -> None:
        self.reset("epoch")

    def reset(self, unit: str) -> None:
        self.taken: dict[str, Any] = {"losses": [], "evaluations": [], "unit": unit}

    def note(self, kind: str, step: int) -> None:
        """As the bar counts it; once, as a resumed run passes over known batches."""
        if step + 1 not in self.taken[kind][-1:]:
            self.taken[kind].append(step + 1)

    def state(self, trainer: Any) -> dict:
        # Within an epoch its own is not in the histories that are saved
        steps = {kind: self.taken[kind][:n] for kind, n in _lengths(trainer).items()}
        return {"history_steps": self.taken | steps}

    def load(self, trainer: Any, checkpoint: dict) -> None:
        saved = checkpoint.get("history_steps") or steps_from_sizes(checkpoint)
        for kind, length in _lengths(trainer).items():
            if length == len(saved[kind]):  # else they begin anew, with others
                self.taken[kind] = list(saved[kind])


def _lengths(trainer: Any) -> dict[str, int]:
    lengths = {
        key: max(map(len, getattr(trainer, name).values()), default=0)
        for name, key in HISTORIES.items()
    }
    evaluations = max(lengths["eval_loss"], lengths["eval_metrics"])
    return {"losses": lengths["loss"], "evaluations": evaluations}


def _overwrites() -> bool:
    """Whether a bar can be drawn over: not in a file; a notebook is no terminal, but can."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules
