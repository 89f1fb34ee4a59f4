r"""How far a training is, and how long it took."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Epoch:
    """The epoch at hand, and what it takes to go through it again."""

    number: int = 0
    #: how many of its training batches have passed
    passed: int = 0
    #: from its first training batch to its last
    training: bool = False
    #: random states: before its loaders were asked, and at the first batch of each
    begins: dict[str | int, dict] = field(default_factory=dict)
    #: what this process has of its own after its training, while it is validated
    ended: dict | None = None


class Clock:
    """The seconds that all parts of a run took, and how many they were at the last checkpoint."""

    def __init__(self) -> None:
        self.running = False  # while a training runs
        self._since = 0.0
        self.set(0.0)

    @property
    def seconds(self) -> float:
        return self._before + (time.perf_counter() - self._since if self.running else 0)

    def set(self, seconds: float) -> None:
        """As many before this part as a checkpoint says."""
        self.saved = self._before = seconds

    def start(self) -> None:
        self.set(0.0)
        self.running, self._since = True, time.perf_counter()

    def stop(self) -> None:
        self.set(self.seconds)
        self.running = False

    def due(self, minutes: float | None) -> bool:
        """Whether the last checkpoint is so old."""
        return minutes is not None and self.seconds - self.saved >= 60 * minutes
