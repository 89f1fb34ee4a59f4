r"""What a training tells of itself: bars on a terminal, a line for each epoch in a log file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from .averaging import AveragingTrainer
from .checkpoints import loaded
from .history import steps_from_sizes


@dataclass
class ProgressTrainer(AveragingTrainer):
    """Bars on a terminal, a line for each epoch in a log file, and where histories were taken."""

    freq_update_progress_bar: int = 10

    def __post_init__(self):
        super().__post_init__()
        #: the epochs, or with ``log_train_batch`` the batches, from 1, of the host's histories
        self.history_steps = {"losses": [], "evaluations": [], "unit": "epoch"}
        self._lines = False  # whether lines take the place of the bars
        self._line = ""  # of the current epoch, as far as it goes

    def setup_train(self, train: bool = True, **kwargs) -> None:
        """Set up training or testing, see :meth:`deepinv.Trainer.setup_train`."""
        if train:
            unit = "training batch" if self.log_train_batch else "epoch"
            self.history_steps = {"losses": [], "evaluations": [], "unit": unit}
            self._go_on_logging()
        shown = self.show_progress_bar
        # The host warns that the bars slow down a GPU, also where there is none
        self.show_progress_bar &= self.device.type == "cuda"
        try:
            super().setup_train(train=train, **kwargs)
        finally:
            self.show_progress_bar = shown

    def train(self) -> nn.Module:
        """Train the model, see :meth:`deepinv.Trainer.train`."""
        with self._bars_or_lines():
            return super().train()

    def test(self, test_dataloader, *args, **kwargs) -> dict:
        """Test the model, see :meth:`deepinv.Trainer.test`."""
        with self._bars_or_lines():
            return super().test(test_dataloader, *args, **kwargs)

    def step(
        self,
        epoch,
        progress_bar,
        train_ite: int | None = None,
        train: bool = True,
        last_batch: bool = False,
        update_progress_bar: bool = False,
    ):
        """A batch, see :meth:`deepinv.Trainer.step`."""
        # Without bars the host prints a line for training and one for evaluation
        self.show_progress_bar |= self._lines
        try:
            super().step(
                epoch,
                progress_bar,
                train_ite=train_ite,
                train=train,
                last_batch=last_batch,
                # what an epoch amounts to, however seldom the bar is updated
                update_progress_bar=update_progress_bar or last_batch,
            )
        finally:
            self.show_progress_bar &= not self._lines
        if train and (last_batch or self.log_train_batch):
            self._note("losses", epoch, train_ite)
        if self._lines and last_batch and self._running:
            self._add_to_line(epoch, train)

    def save_best_model(self, epoch, train_ite, **kwargs) -> None:
        """Save the best model, see :meth:`deepinv.Trainer.save_best_model`; after evaluations."""
        self._note("evaluations", epoch, train_ite)
        super().save_best_model(epoch, train_ite, **kwargs)

    def reset_metrics(self) -> None:
        """Reset the meters, see :meth:`deepinv.Trainer.reset_metrics`."""
        self._end_line()
        super().reset_metrics()

    def save_model(self, filename: str, epoch: int, state: dict | None = None) -> None:
        """Save a checkpoint, see :meth:`deepinv.Trainer.save_model`."""
        # Within an epoch its own is not in the histories that are saved
        steps = {k: self.history_steps[k][:n] for k, n in self._lengths_of_histories()}
        steps = {"history_steps": self.history_steps | steps}
        super().save_model(filename, epoch, (state or {}) | steps)

    def _restore(self, checkpoint: dict) -> None:
        super()._restore(checkpoint)
        saved = checkpoint.get("history_steps") or steps_from_sizes(checkpoint)
        for kind, length in self._lengths_of_histories():
            if length == len(saved[kind]):  # else they begin anew, with others
                self.history_steps[kind] = list(saved[kind])

    def _lengths_of_histories(self) -> Iterator[tuple[str, int]]:
        evaluations = self.eval_loss_history, self.eval_metrics_history
        for kind, histories in {
            "losses": [self.loss_history],
            "evaluations": evaluations,
        }.items():
            lengths = [len(values) for own in histories for values in own.values()]
            yield kind, max(lengths, default=0)

    def _note(self, kind: str, epoch: int, train_ite: int) -> None:
        """The epoch as the bar counts it; once, as a resumed run passes over known batches."""
        step = (train_ite if self.log_train_batch else epoch) + 1
        if step not in self.history_steps[kind][-1:]:
            self.history_steps[kind].append(step)

    def _go_on_logging(self) -> None:
        """In the run that wandb and mlflow know; the host begins another before it loads which."""
        if self.ckpt_pretrained is None or not (self.wandb_vis or self.mlflow_vis):
            return
        saved = loaded(self.ckpt_pretrained)
        if "wandb_id" in saved:
            known = {"id": saved["wandb_id"], "resume": "allow"}
            self.wandb_setup = known | self.wandb_setup
        if "mlflow_id" in saved:
            self.mlflow_setup = {"run_id": saved["mlflow_id"]} | self.mlflow_setup

    @contextmanager
    def _bars_or_lines(self) -> Iterator[None]:
        shown = self.show_progress_bar
        self._lines = shown and not _overwrites()
        self.show_progress_bar &= not self._lines
        try:
            yield
        finally:
            self._end_line()
            self.show_progress_bar, self._lines = shown, False

    def _add_to_line(self, epoch: int, train: bool) -> None:
        kind = "train" if train else "eval"
        meters = getattr(self, f"logs_losses_{kind}") + getattr(
            self, f"logs_metrics_{kind}"
        )
        names = [type(part).__name__ for part in [*self.losses, *self.metrics]]
        pairs = zip(names, meters, strict=True)
        said = [f"{name} {meter.avg:.4g}" for name, meter in pairs if meter.count]
        if train:
            self._line = f"Epoch {epoch + 1}/{self.epochs}: {', '.join(said)}"
        elif self._line:  # else amid an epoch, with log_train_batch
            self._line += f"; validation: {', '.join(said)}"
            self._end_line()

    def _end_line(self) -> None:
        if self._line and self.verbose:
            sys.stderr.write(f"{self._line}\n")
        self._line = ""


def _overwrites() -> bool:
    """Whether a bar can be drawn over: not in a file; a notebook is no terminal, but can."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules
