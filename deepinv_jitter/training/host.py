r"""What the trainers use of deepinv's Trainer beyond what it documents: here, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import deepinv
import numpy as np
import torch
from deepinv import Trainer
from deepinv.loss import ReducedResolutionLoss, ScoreLoss, SplittingLoss
from deepinv.loss.r2r import R2RModel
from deepinv.physics.generator import BernoulliSplittingMaskGenerator
from deepinv.utils import AverageMeter, get_timestamp
from torch import nn
from torch.amp import GradScaler

from .workers import plain

#: Histories that the host saves but does not load: attribute, key in the checkpoint.
HISTORIES = {
    "loss_history": "loss",
    "eval_loss_history": "eval_loss",
    "train_metrics_history": "train_metrics",
    "eval_metrics_history": "eval_metrics",
}

#: Its checkpoints, and the one of the best model among them.
CHECKPOINTS = "ckp_*.pth.tar"
BEST = "ckp_best.pth.tar"

#: What its self-supervised losses wrap around a network. They split, corrupt or degrade the
#: measurements, and keep what the loss then needs, in training mode alone.
ADAPTERS = (
    SplittingLoss.SplittingModel,
    R2RModel,
    ScoreLoss.ScoreModel,
    ReducedResolutionLoss.ReducedResolutionModel,
)

#: Attributes of a trainer that is set up.
ATTRIBUTES = (
    *("epoch_start", "scaler"),
    *("logs_total_loss_train", "logs_losses_train", "logs_metrics_train"),
    *("logs_total_loss_eval", "logs_losses_eval", "logs_metrics_eval"),
    *HISTORIES,
)
#: Those it has if it is asked to check gradients, or to compare with no learning.
ASKED_FOR = ("check_grad_val", "logs_metrics_no_learning")
#: Where it keeps the iterators of its loaders.
ITERATORS = ("current_train_iterators", "current_eval_iterators")
#: What a test sets for its own purposes, and leaves so if it is interrupted or done.
SET_BY_TEST = (
    *("wandb_vis", "wandb_setup", "mlflow_vis", "mlflow_setup", "log_train_batch"),
    *("metrics", "compute_eval_losses", "compare_no_learning", "ckpt_pretrained", *HISTORIES),
)
#: What a meter counts, and what it is called.
COUNTS = ("vals", "val", "avg", "sum", "count", "std", "sum2")
NAMES = ("name", "fmt")


@dataclass
class HostTrainer(Trainer):
    """deepinv's Trainer, with ways to what it keeps to itself."""

    def setup_train(self, train: bool = True, **kwargs: Any) -> None:
        """Set up, and refuse a version of deepinv that has not what the trainers build on."""
        super().setup_train(train=train, **kwargs)
        missing = [name for name in ATTRIBUTES if not hasattr(self, name)]
        meter = vars(AverageMeter("any"))
        missing += [f"AverageMeter.{name}" for name in COUNTS if name not in meter]
        if missing:
            raise RuntimeError(
                "deepinv_jitter builds on deepinv 0.5, but version "
                f"{deepinv.__version__} has no {', '.join(missing)} in its Trainer: install "
                "'deepinv>=0.5,<0.6'."
            )
        self.scaler = NoEmptySteps(self.device.type, enabled=self.loss_scaler.is_enabled())

    @property
    def first_epoch(self) -> int:
        """Where the training begins, by the checkpoint that it goes on from."""
        return self.epoch_start

    def end_here(self) -> None:
        """No epoch is left to train."""
        self.epoch_start = max(self.first_epoch, self.epochs)

    @property
    def loss_scaler(self) -> GradScaler:
        """What scales the loss, enabled in float16 alone."""
        return self.scaler

    def assign(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            setattr(self, name, value)

    @contextmanager
    def having(self, **values: Any) -> Iterator[None]:
        """With other values of some attributes, for a while."""
        former = {name: getattr(self, name) for name in values}
        self.assign(values)
        try:
            yield
        finally:
            self.assign(former)

    def stop_criterion(self, epoch, train_ite, **kwargs) -> bool:
        """Whether too many evaluations have passed since the best, see :class:`deepinv.Trainer`."""
        on_losses = self.early_stop_on_losses
        kind = "eval_loss_history" if on_losses else "eval_metrics_history"
        names = [type(part).__name__ for part in (self.losses if on_losses else self.metrics)]
        # Those of one class share a history
        own = getattr(self, kind)[names[0]][:: names.count(names[0])]
        # The host takes all to be eval_interval epochs apart, which those of a run that goes on
        # after its last epoch, or with another interval, are not
        apart = Fraction(epoch, max(len(own) - 1, 1))
        with self.having(eval_interval=apart, **{kind: {names[0]: own}}):
            return super().stop_criterion(epoch, train_ite, **kwargs)

    def without_last_losses(self) -> AbstractContextManager:
        """As before the losses of the last epoch were added to their history."""
        names = [type(loss).__name__ for loss in self.losses]
        kept = {k: v[: len(v) - names.count(k)] for k, v in self.loss_history.items()}
        return self.having(loss_history=kept)

    def total_loss(self, train: bool) -> AverageMeter:
        """What adds up the losses of an epoch."""
        return self.logs_total_loss_train if train else self.logs_total_loss_eval

    def loss_meters(self, train: bool) -> list[tuple[str, AverageMeter]]:
        """The same for each of them, as the logs call it."""
        meters = self.logs_losses_train if train else self.logs_losses_eval
        return _named(self.losses, meters)

    def metric_meters(self, train: bool) -> list[tuple[str, AverageMeter]]:
        """What adds up the metrics of an epoch, as the logs call it."""
        meters = self.logs_metrics_train if train else self.logs_metrics_eval
        return _named(self.metrics, meters)

    def no_learning_meters(self) -> list[tuple[str, AverageMeter]]:
        """The same of the reconstruction without a network, if it is asked for."""
        if not self.compare_no_learning:
            return []
        return _named(self.metrics, self.logs_metrics_no_learning, " no learning")

    def training_meters(self) -> list[AverageMeter]:
        """All that an epoch adds up while it trains."""
        named = self.loss_meters(train=True) + self.metric_meters(train=True)
        meters = [self.total_loss(train=True), *(meter for _, meter in named)]
        return meters + ([self.check_grad_val] if self.check_grad else [])

    def loaders(self) -> dict[str, list]:
        """The user's data loaders of training and evaluation, as they came."""
        names = "train_dataloader", "eval_dataloader"
        found = {name: [plain(loader) for loader in as_list(getattr(self, name))] for name in names}
        return {name: loaders for name, loaders in found.items() if loaders}

    def batches_of_an_epoch(self) -> int:
        """How many the host takes of each data set."""
        counts = [len(loader) - loader.drop_last for loader in as_list(self.train_dataloader)]
        return min(counts, default=0)  # of a loop of one's own there are none

    def next_batch(self, g: int) -> Any:
        return next(self.current_train_iterators[g])

    def release_iterators(self) -> None:
        """Let the iterators of the loaders go, and with them their worker processes."""
        self.assign(dict.fromkeys(ITERATORS))

    def go_on_logging(self, checkpoint: dict) -> None:
        """In the runs of wandb and mlflow that a checkpoint names; the host reads it too late."""
        if "wandb_id" in checkpoint:
            known = {"id": checkpoint["wandb_id"], "resume": "allow"}
            self.assign({"wandb_setup": known | self.wandb_setup})
        if "mlflow_id" in checkpoint:
            known = {"run_id": checkpoint["mlflow_id"]}
            self.assign({"mlflow_setup": known | self.mlflow_setup})

    def mask_sizes(self) -> dict[str, list[int]]:
        """Of the masks that splitting models draw from a generator that they have now."""
        found = {name: m.mask_generator for name, m in self._splitting()}
        return {name: [*g.img_size] for name, g in found.items() if hasattr(g, "img_size")}

    def make_mask_generators(self, sizes: Mapping[str, list[int]]) -> None:
        """Those that a splitting model makes in its first pass, which is too late to load them."""
        for name, part in self._splitting():
            if part.mask_generator is None and name in sizes:
                part.mask_generator = BernoulliSplittingMaskGenerator(
                    tuple(sizes[name]), part.split_ratio, part.pixelwise, device=self.device
                )

    def _splitting(self) -> list[tuple[str, Any]]:
        kind = SplittingLoss.SplittingModel
        return [(name, m) for name, m in self.model.named_modules() if isinstance(m, kind)]

    def pass_through(
        self, model: nn.Module, y: torch.Tensor, physics: nn.Module, **kwargs: Any
    ) -> torch.Tensor:
        """The pass of a training batch through another module than the trainer's model."""
        with self.having(model=model):
            return Trainer.model_inference(self, y, physics, train=True, **kwargs)


class NoEmptySteps(GradScaler):
    """The host's scaler and steps, without those of a batch that was left out as a whole."""

    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> float | None:
        groups = optimizer.param_groups
        self._empty = all(p.grad is None for group in groups for p in group["params"])
        return None if self._empty else super().step(optimizer, *args, **kwargs)

    def update(self, new_scale: float | torch.Tensor | None = None) -> None:
        if not self._empty:
            super().update(new_scale)


def refill(meter: AverageMeter, values: Sequence[float]) -> None:
    """Let a meter have met these values, and no others."""
    meter.reset()
    if values:
        meter.update(np.array(values))


def content(meter: AverageMeter) -> dict[str, Any]:
    """What a meter has counted, as plain data."""
    return {k: v for k, v in vars(meter).items() if k not in NAMES}


def folder_is_taken(save_path: str | Path | None) -> bool:
    """Whether there is a run already in the folder which the host would name by this second."""
    return save_path is not None and (Path(save_path) / get_timestamp()).exists()


def as_list(value: object) -> list:
    """One thing, several or none as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _named(parts: list, meters: list, end: str = "") -> list[tuple[str, AverageMeter]]:
    return [(type(part).__name__ + end, m) for part, m in zip(parts, meters, strict=True)]
