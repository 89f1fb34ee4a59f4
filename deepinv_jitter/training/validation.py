r"""Looking at a model changes nothing in it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from deepinv.loss import ReducedResolutionLoss, ScoreLoss, SplittingLoss
from deepinv.loss.r2r import R2RModel
from torch import nn

from ..attacks.parts import modules
from .resume import HISTORIES, ResumingTrainer
from .snapshot import Snapshot

#: What deepinv's self-supervised losses wrap around a network. They split, corrupt or degrade the
#: measurements, and keep what the loss then needs, in training mode alone.
ADAPTERS = (
    SplittingLoss.SplittingModel,
    R2RModel,
    ScoreLoss.ScoreModel,
    ReducedResolutionLoss.ReducedResolutionModel,
)


@dataclass
class ValidatingTrainer(ResumingTrainer):
    """
    Looking at a model changes nothing in it.

    Losses and metrics of evaluation data are those of the model in evaluation mode. Only what a
    self-supervised loss has wrapped around the network is in training mode for that loss, the
    network inside is not. Buffers, counters and random generators are afterwards as before.
    """

    def __post_init__(self):
        super().__post_init__()
        self._adapters = []  # what the losses wrapped around the network
        self._looks = False  # whether evaluation data are reconstructed for the losses
        self._looked_at = 0  # evaluation batches so far
        self._held_looking = None  # what an evaluation brings back

    def setup_train(self, train: bool = True, **kwargs) -> None:
        """Set up training or testing, see :meth:`deepinv.Trainer.setup_train`."""
        network = set(self.model.modules())
        super().setup_train(train=train, **kwargs)
        self._adapters += [m for m in self.model.modules() if m not in network]
        self._held_looking = None

    def test(self, test_dataloader, *args, **kwargs) -> dict:
        """Test the model, see :meth:`deepinv.Trainer.test`; the trainer is as before."""
        names = [*HISTORIES, "metrics", "compute_eval_losses", "compare_no_learning"]
        before = {name: getattr(self, name) for name in names if hasattr(self, name)}
        try:
            return super().test(test_dataloader, *args, **kwargs)
        finally:
            vars(self).update(before)

    def step(self, *args, train: bool = True, last_batch: bool = False, **kwargs):
        """A batch, see :meth:`deepinv.Trainer.step`."""
        self._looked_at += not train
        if train:  # which may make modules and generators
            self._held_looking = None
        super().step(*args, train=train, last_batch=last_batch, **kwargs)

    def _rank_state(self, amid: bool) -> dict:
        return super()._rank_state(amid) | {"looked_at": self._looked_at}

    def _restore_rank(self, state: dict) -> None:
        self._looked_at = state.get("looked_at", 0)
        super()._restore_rank(state)

    def compute_loss(self, physics, x, y, train: bool = True, **kwargs):
        """Losses of a batch, see :meth:`deepinv.Trainer.compute_loss`."""
        if train:
            return super().compute_loss(physics, x, y, train=True, **kwargs)
        if not self.compute_eval_losses:
            return super().compute_loss(physics, x, y, train=False, **kwargs)
        self._looks = True
        try:
            with self._unnoticed(), torch.no_grad():
                return super().compute_loss(physics, x, y, train=False, **kwargs)
        finally:
            self._looks = False

    def compute_metrics(self, x, x_net, y, physics, logs, train=True, **kwargs):
        """Metrics of a batch, see :meth:`deepinv.Trainer.compute_metrics`."""
        arguments = {"train": train} | kwargs
        if train:
            return super().compute_metrics(x, x_net, y, physics, logs, **arguments)
        with self._unnoticed():
            return super().compute_metrics(x, x_net, y, physics, logs, **arguments)

    def model_inference(self, y, physics, x=None, train: bool = True, **kwargs):
        """The reconstruction, see :meth:`deepinv.Trainer.model_inference`."""
        if not self._looks:
            return super().model_inference(y, physics, x=x, train=train, **kwargs)
        # The host would put all of the model in training mode for the losses
        hook = self.model.register_forward_pre_hook(self._wake_adapters)
        try:
            x_net = super().model_inference(y, physics, x=x, train=False, **kwargs)
        finally:
            hook.remove()
        return x_net.detach()  # an adapter asks for gradients

    def _wake_adapters(self, *_) -> None:
        for part in self._all_adapters():
            part.training = True

    def _all_adapters(self) -> list[nn.Module]:
        """Also those of a model that was given adapted."""
        known = [m for m in self.model.modules() if isinstance(m, ADAPTERS)]
        return known + self._adapters

    def _unnoticed(self) -> AbstractContextManager:
        if self._held_looking is None:
            roots = [self.model, self.physics, self.losses, self.metrics]
            counting = [*modules(self.losses), *self._all_adapters()]
            self._held_looking = Snapshot(roots, counting)
        # What is drawn differs between batches, while the generators come back to where they were
        return self._held_looking.unnoticed(stream=self._looked_at)
