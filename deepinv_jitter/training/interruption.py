r"""A training that is told to end ends in good order."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from .. import checks
from . import distributed
from .parallel import ParallelTrainer, as_list
from .preemption import Signals, obeyed
from .workers import Shielded

logger = logging.getLogger(__name__)


@dataclass
class InterruptibleTrainer(ParallelTrainer):
    """A training that is told to end ends in good order, its worker processes after it."""

    ckp_minutes: float | None = field(default=None, kw_only=True)

    def __post_init__(self):
        if self.ckp_minutes is not None:
            self.ckp_minutes = checks.number("ckp_minutes", self.ckp_minutes, low=0)
        super().__post_init__()
        self.seconds = 0.0
        self._since = 0.0  # when they were counted last
        self._saved = 0.0  # how many they were at the last checkpoint
        self._signals = Signals()
        self._running = False
        self._in_epoch = False  # from its first training batch to its last

    def train(self) -> nn.Module:
        """Train the model, see :meth:`deepinv.Trainer.train`."""
        self.seconds = self._saved = 0.0
        self._since = time.perf_counter()
        self._running = True
        try:
            with Signals() as self._signals:
                return super().train()
        finally:
            self._count_time()
            self._running = False
            vars(self).update(self._loaders())

    def test(self, test_dataloader, *args, **kwargs) -> dict:
        """Test the model, see :meth:`deepinv.Trainer.test`."""
        # Which the host does not set back where it is interrupted
        names = "wandb_vis", "wandb_setup", "mlflow_vis", "mlflow_setup"
        former = {name: getattr(self, name) for name in (*names, "log_train_batch")}
        loaders = [Shielded(loader) for loader in as_list(test_dataloader)]
        try:
            with Signals() as self._signals:
                return super().test(loaders, *args, **kwargs)
        finally:
            vars(self).update(former)

    def setup_train(self, train: bool = True, **kwargs) -> None:
        """Set up training or testing, see :meth:`deepinv.Trainer.setup_train`."""
        super().setup_train(train=train, **kwargs)
        if train:
            self._in_epoch = False
        if self._running:
            for name, loaders in self._loaders().items():
                setattr(self, name, [Shielded(loader) for loader in loaders])

    def step(
        self,
        epoch,
        progress_bar,
        *args,
        train: bool = True,
        last_batch: bool = False,
        **kwargs,
    ):
        """A batch, see :meth:`deepinv.Trainer.step`; signals are obeyed before and after it."""
        if not train:
            # Without a word to the others, who have other numbers of batches
            if distributed.count() == 1 or not self._running:
                self._obey(self._signals.received, progress_bar)
        elif not self._in_epoch:
            words = [self._signals.received]
            self._obey(*distributed.largest(words, self.device), progress_bar)
        self._in_epoch |= train
        super().step(
            epoch, progress_bar, *args, train=train, last_batch=last_batch, **kwargs
        )
        if train:
            self._in_epoch = not last_batch
            if last_batch:
                self._finish_training(epoch)
            self._count_time()
            pause = math.inf if self.ckp_minutes is None else 60 * self.ckp_minutes
            due = self.seconds - self._saved >= pause
            words = [self._signals.received, int(due)]
            stop, due = distributed.largest(words, self.device)
            if not last_batch:
                self._obey(stop, progress_bar)
                if due:
                    self._save_place()

    def _finish_training(self, epoch: int) -> None:
        """After the last training batch of an epoch, before its validation."""

    def _save_place(self) -> Path | None:
        """Save where the run is; ``None`` if that is not to be."""
        raise NotImplementedError

    def _obey(self, signal: int, progress_bar) -> None:
        """Save where the run is, and leave, if there was a signal."""
        if not signal:
            return
        progress_bar.close()
        if self._running:
            saved = self._save_place()
            if distributed.own() == 0:
                logger.warning("%s", self._farewell(saved))
        raise obeyed(signal)

    def _farewell(self, saved: Path | None) -> str:
        epoch, batch = self._place
        where = f"after batch {batch}" if batch else "before its first batch"
        where = "in its validation" if batch and not self._in_epoch else where
        end = f"Interrupted in epoch {epoch + 1}/{self.epochs}, {where}"
        if saved:
            return (
                f"{end}: saved as {saved}, to go on with "
                f"ckpt_pretrained=dj.latest_checkpoint({str(self._base_path)!r})."
            )
        if self.save_path:
            return f"{end}: log_train_batch=True keeps whole epochs alone."
        return f"{end}: nothing is saved, as save_path is None."

    def _count_time(self) -> None:
        if self._running:
            now = time.perf_counter()
            self.seconds, self._since = self.seconds + now - self._since, now

    def _loaders(self) -> dict[str, list]:
        names = "train_dataloader", "eval_dataloader"
        loaders = {name: as_list(getattr(self, name)) for name in names}
        return {
            name: [part.plain if type(part) is Shielded else part for part in parts]
            for name, parts in loaders.items()
            if parts
        }
