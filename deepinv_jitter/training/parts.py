r"""What a training is made of: parts that have a state of their own, and are told what happens."""

from __future__ import annotations

from typing import Any


class Part:
    """
    A part of a training, which is told of its batches and has its share of the checkpoints.

    Settings are read from the trainer when they are used, as the host does.
    """

    #: what the batch at hand has taught it, until that counts or is left out
    found: Any = None

    def learn(self, trainer: Any, found: Any) -> None:
        """The batch has counted, and what it has taught with it."""

    def finish(self, trainer: Any, epoch: int) -> None:
        """The last training batch of an epoch has passed."""

    def state(self, trainer: Any) -> dict:
        """What goes into a checkpoint, of tensors and builtins; called by all processes."""
        return {}

    def load(self, trainer: Any, checkpoint: dict) -> None:
        """Take it up again, from a checkpoint that may be of another trainer and lack it."""

    def own_state(self) -> dict:
        """What each process has of its own."""
        return {}

    def load_own(self, state: dict) -> None:
        """Take up that of this process."""
