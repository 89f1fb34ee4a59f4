r"""Where a training starts, how far it is, and how long it took."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


class Position(NamedTuple):
    """An epoch, and how many of its training batches have passed."""

    epoch: int
    batch: int


@dataclass
class Epoch:
    """The epoch at hand, and what it takes to go through it again."""

    position: Position
    #: from its first training batch to its last
    training: bool = False
    #: random states: before its loaders were asked, and at the first batch of each
    begins: dict[str | int, dict] = field(default_factory=dict)
    #: what this process has of its own after its training, while it is validated
    ended: dict | None = None

    def pass_batch(self) -> None:
        """One more training batch has passed."""
        epoch, batch = self.position
        self.position = Position(epoch, batch + 1)

    def farewell(self, epochs: int, saved: Path | None, folder: object) -> str:
        """
        What is said of a training that ends before its time.

        :param int epochs: how many epochs it was to have.
        :param pathlib.Path, None saved: the checkpoint, if there is one.
        :param str, pathlib.Path, None folder: the user's folder.
        """
        epoch, batch = self.position
        where = f"after batch {batch}" if batch else "before its first batch"
        where = "in its validation" if batch and not self.training else where
        end = f"Interrupted in epoch {epoch + 1}/{epochs}, {where}"
        if saved:
            return (
                f"{end}: saved as {saved}, to go on with "
                f"ckpt_pretrained=dj.latest_checkpoint({str(folder)!r})."
            )
        if folder:
            return f"{end}: log_train_batch=True keeps whole epochs alone."
        return f"{end}: nothing is saved, as save_path is None."


@dataclass
class Start:
    """A training that is being set up, and the checkpoint that it goes on from."""

    checkpoint: dict | None = None


class Clock:
    """The seconds that all parts of a run took, and how many they were at the last checkpoint."""

    def __init__(self) -> None:
        self.seconds = self._saved = 0.0
        self._since: float | None = None  # when they were counted last, while a training runs

    @property
    def running(self) -> bool:
        """Whether it is the time of a training."""
        return self._since is not None

    @contextmanager
    def started(self) -> Iterator[None]:
        """While a training runs."""
        self.set(0.0)
        self._since = time.perf_counter()
        try:
            yield
        finally:
            self.count()
            self._since = None

    def count(self) -> None:
        """Add the time since it was counted last."""
        if self._since is not None:
            now = time.perf_counter()
            self.seconds, self._since = self.seconds + now - self._since, now

    def set(self, seconds: float) -> None:
        """As many as a checkpoint says."""
        self.seconds = self._saved = seconds

    def save(self) -> None:
        """A checkpoint is written."""
        self.count()
        self._saved = self.seconds

    def due(self, minutes: float | None) -> bool:
        """Whether the last checkpoint is so old."""
        pause = math.inf if minutes is None else 60 * minutes
        return self.seconds - self._saved >= pause
