r"""A training or a test as a whole: set up, started, told to end and saved."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from .. import checks
from . import distributed
from .checkpoints import loaded
from .finite import Guard
from .host import SET_BY_TEST, as_list
from .parallel import Folder, Gradients, Merging
from .perturbations import Perturbation
from .preemption import Signals, obeyed
from .progress import Lines, Steps
from .resume import ResumingTrainer
from .validation import Validation
from .workers import Shielded

logger = logging.getLogger(__name__)


@dataclass
class LongRun(ResumingTrainer):
    """deepinv's Trainer for trainings that take days: each as a whole."""

    freq_update_progress_bar: int = 10
    ckp_minutes: float | None = field(default=None, kw_only=True)
    ddp_options: dict = field(default_factory=dict, kw_only=True)
    on_non_finite: str = field(default="raise", kw_only=True)

    def __post_init__(self) -> None:
        if self.ckp_minutes is not None:
            self.ckp_minutes = checks.real("ckp_minutes", self.ckp_minutes, low=0)
        distributed.check_plain(self.model)
        checks.choice("on_non_finite", self.on_non_finite, ("raise", "skip"))
        if self.on_non_finite == "skip" and self.log_train_batch:
            raise ValueError(
                "on_non_finite='skip' leaves batches without a loss, but log_train_batch=True asks "
                "for that of every batch: choose one of both."
            )
        if isinstance(self.scheduler, ReduceLROnPlateau):
            raise ValueError(
                "scheduler must step without a metric, which the host does not give it, got "
                "ReduceLROnPlateau: take one that follows the epoch, such as CosineAnnealingLR."
            )
        super().__post_init__()
        self._signals, self._folder, self._lines = Signals(), Folder(), Lines()
        self._gradients, self._merging = Gradients(), Merging()
        self._validation, self._steps = Validation(), Steps()
        self._perturbation = Perturbation()
        self._parts += [self._validation, self._steps]

    @property
    def history_steps(self) -> dict:
        """Where the host's histories were taken."""
        return self._steps.taken

    def setup_train(self, train: bool = True, **kwargs: Any) -> None:
        """Set up training or testing, see :meth:`deepinv.Trainer.setup_train`."""
        self._start = None
        if train:
            self._steps.reset("training batch" if self.log_train_batch else "epoch")
            self._averaging.reset()
            self._gradients.reset()
            distributed.check_same("ckpt_pretrained", self.ckpt_pretrained)
            distributed.check_loaders(as_list(self.train_dataloader), as_list(self.eval_dataloader))
            if self.ckpt_pretrained is not None:
                self._start = loaded(self.ckpt_pretrained)
                if self.wandb_vis or self.mlflow_vis:
                    self.go_on_logging(self._start)
        if distributed.own() > 0:  # the first process alone tells
            tells = "verbose", "plot_images", "wandb_vis", "mlflow_vis"
            self.assign(dict.fromkeys(tells, False))
        # The host warns that the bars slow down a GPU, also where there is none
        bars = self.show_progress_bar and self.device.type == "cuda"
        folder = self._folder.opened(self, train)
        with self._validation.adapting(self), self.having(show_progress_bar=bars), folder:
            super().setup_train(train=train, **kwargs)
        self._guard = Guard(self)
        if self._clock.running:
            found = self.loaders().items()
            self.assign({name: [*map(Shielded, loaders)] for name, loaders in found})
        if train:
            self._begin_run()

    def train(self) -> nn.Module:
        """Train the model, see :meth:`deepinv.Trainer.train`."""
        with ExitStack() as end:
            end.enter_context(self._lines.instead_of_bars(self))
            end.enter_context(self._averaging.following(self))
            end.callback(lambda: self.assign(self.loaders()))
            self._clock.start()
            end.callback(self._clock.stop)
            self._signals = end.enter_context(Signals())
            end.callback(self.release_iterators)
            end.callback(self._gradients.reset)
            return super().train()

    def test(self, test_dataloader, save_path=None, *args, **kwargs) -> dict:
        """Test the model, see :meth:`deepinv.Trainer.test`; the trainer is as before."""
        loaders = as_list(test_dataloader)
        distributed.check_loaders([], loaders)
        save_path = save_path if distributed.own() == 0 else None
        kept = {k: getattr(self, k) for k in SET_BY_TEST if hasattr(self, k)}
        with ExitStack() as end:
            end.enter_context(self._lines.instead_of_bars(self))
            end.enter_context(self.having(**kept))
            # From which the validation of a training draws
            end.callback(setattr, self._validation, "batches", self._validation.batches)
            self._signals = end.enter_context(Signals())
            end.callback(self.release_iterators)
            shielded = [*map(Shielded, loaders)]
            return super().test(shielded, save_path, *args, **kwargs)

    def reset_metrics(self) -> None:
        """Reset the meters, see :meth:`deepinv.Trainer.reset_metrics`; an epoch begins here."""
        self._lines.end(self)
        super().reset_metrics()
        for _, meter in self.no_learning_meters():  # which the host forgets
            meter.reset()
        if self._epoch.training or not self._clock.running:
            return
        epoch = self._epoch
        epoch.number, epoch.passed, epoch.ended = epoch.number + bool(epoch.passed), 0, None
        distributed.set_epoch(self.train_dataloader, epoch.number)
        if self._replay is None:
            epoch.begins = {"loaders": self._random_state()}

    def _obey(self, signal: int, progress_bar: Any) -> None:
        """Save where the run is, and leave, if there was a signal."""
        if not signal:
            return
        progress_bar.close()
        if self._clock.running:
            saved, epoch = self._save_amid(), self._epoch
            where = f"after batch {epoch.passed}" if epoch.passed else "before its first batch"
            if epoch.passed and not epoch.training:
                where = "in its validation"
            how = "nothing is saved, as save_path is None"
            if saved:
                newest = f"dj.latest_checkpoint({str(self._folder.base)!r})"
                how = f"saved as {saved}, to go on with ckpt_pretrained={newest}"
            elif self.save_path:
                how = "log_train_batch=True keeps whole epochs alone"
            if distributed.own() == 0:
                end = f"Interrupted in epoch {epoch.number + 1}/{self.epochs}, {where}: {how}."
                logger.warning(end)
        raise obeyed(signal)
