r"""The batches of a training or an evaluation, on their way through deepinv's methods."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ..memory import own_buffers
from . import distributed
from .finite import finite
from .parallel import shares_gradients
from .runs import LongRun


@dataclass
class Engine(LongRun):
    """
    deepinv's Trainer for long runs, whose training batches are perturbed.

    Each method that a batch passes through is overridden once; the work is done by parts.
    """

    def step(
        self,
        epoch,
        progress_bar,
        train_ite=None,
        train: bool = True,
        last_batch: bool = False,
        update_progress_bar: bool = False,
    ) -> None:
        """A batch, see :meth:`deepinv.Trainer.step`; signals are obeyed before and after it."""
        if train and self._replay is not None:
            self._pass_over(self._replay, progress_bar)
        else:
            self._before_step(epoch, progress_bar, train, last_batch)
            with self._lines.alone(self), self._averaging.held(self.model, not train):
                super().step(
                    epoch,
                    progress_bar,
                    train_ite=train_ite,
                    train=train,
                    last_batch=last_batch,
                    # what an epoch amounts to, however seldom the bar is updated
                    update_progress_bar=update_progress_bar or last_batch,
                )
            if train:
                self._after_step(epoch, progress_bar, last_batch)
        if train and (last_batch or self.log_train_batch):
            self._steps.note("losses", train_ite if self.log_train_batch else epoch)
        if last_batch and self._clock.running:
            self._lines.add(self, epoch, train)

    def _before_step(self, epoch: int, progress_bar: Any, train: bool, last_batch: bool) -> None:
        self._merging.expect(self, last_batch)
        received = self._signals.received
        if not train:
            self._validation.batches += 1
            # Without a word to the others, who have other numbers of batches
            if distributed.count() == 1 or not self._clock.running:
                self._obey(received, progress_bar)
            return
        self._validation.forget()
        if not self._epoch.training:
            (received,) = distributed.largest([received], self.device)
            self._obey(received, progress_bar)
        if self._epoch.number != epoch:
            self._epoch.number, self._epoch.passed = epoch, 0
        self._epoch.training = True

    def _after_step(self, epoch: int, progress_bar: Any, last_batch: bool) -> None:
        self._epoch.passed += 1
        if last_batch:
            if self.total_loss(train=True).count == 0:
                raise FloatingPointError(
                    f"Every batch of epoch {epoch} was left out: no loss was finite."
                )
            distributed.share(own_buffers(self.model).values())
            self._epoch.training = False
            for part in self._parts:
                part.finish(self, epoch)
            self._epoch.ended = self._own_state(amid=True)
        words = [self._signals.received, int(self._clock.due(self.ckp_minutes))]
        received, due = distributed.largest(words, self.device)
        if not last_batch:
            self._obey(received, progress_bar)
            if due:
                self._save_amid()

    def get_samples(self, iterators, g) -> tuple:
        """A batch, see :meth:`deepinv.Trainer.get_samples`."""
        if self._epoch.training and self._epoch.passed == 0:
            # A loader without workers draws its order now
            self._epoch.begins[int(g)] = self._random_state()
        return super().get_samples(iterators, g)

    def compute_loss(
        self, physics, x, y, train: bool = True, epoch=None, step: bool = False
    ) -> tuple:
        """
        Losses of a batch, and in training the backward pass.

        In evaluation, in evaluation mode and without gradients.

        :raises FloatingPointError: in training, if the loss or its gradient is not finite.
        """
        looks = not train and self.compute_eval_losses
        if train:
            y = self.perturb(x, y, physics)
            self._gradients.averaged = False
            self._guard.begin(self, step)
        with self._validation.looking(self) if looks else nullcontext():
            loss, x_net, logs = super().compute_loss(
                physics, x, y, train=train, epoch=epoch, step=step
            )
        if train:
            counts = not self._guard.refuses(self)
            for part in self._parts:
                found, part.found = part.found, None
                if counts and found is not None:
                    part.learn(self, found)
            if not counts:
                self._leave_out(x, y)
                loss, x_net, logs = 0.0, None, self._so_far()
            self._gradients.check(self)
        self._merging.losses(self, logs, train)
        return loss, x_net, logs

    def _leave_out(self, x, y) -> None:
        """Stop at a batch that did not count, or go on without its gradient."""
        epoch, batch = self._epoch.number, self._epoch.passed
        bad = [name for name, t in {"x": x, "y": y}.items() if t is not None and not finite(t)]
        where = f"{' and '.join(bad)} not finite" if bad else "x and y are finite"
        message = (
            f"Loss and gradient must be finite, got {self._guard.found} in epoch {epoch}, "
            f"batch {batch} ({where})"
        )
        if self.on_non_finite == "raise":
            self._save_amid()
            raise FloatingPointError(
                f"{message}: the weights are those of before this batch. on_non_finite='skip' "
                "leaves such batches out."
            )
        warnings.warn(f"{message}: the batch is left out.", stacklevel=2)
        self.skipped.append((epoch, batch))

    def _so_far(self) -> dict[str, float]:
        """What the host says of the epoch so far."""
        named = dict(self.loss_meters(train=True) if len(self.losses) > 1 else [])
        named["TotalLoss"] = self.total_loss(train=True)
        return {name: meter.avg for name, meter in named.items() if meter.count}

    def check_clip_grad(self) -> float | None:
        """Check and clip the gradient, see :meth:`deepinv.Trainer.check_clip_grad`."""
        if self._guard.refuses_gradients(self):
            return None
        return super().check_clip_grad()

    def model_inference(self, y, physics, x=None, train=True, **kwargs) -> torch.Tensor:
        """
        The reconstruction, see :meth:`deepinv.Trainer.model_inference`.

        :raises ValueError: if there are more or fewer than truths, which losses would broadcast.
        """
        if self._validation.looks:
            # The host would put all of the model in training mode for the losses
            with self._validation.awake(self.model):
                x_net = super().model_inference(y, physics, x=x, train=False, **kwargs)
            x_net = x_net.detach()  # an adapter asks for gradients
        elif train and torch.is_grad_enabled() and shares_gradients(self):
            model = self._gradients.model(self, y, physics, x)
            x_net = self.pass_through(model, y, physics, **kwargs)
        else:
            x_net = super().model_inference(y, physics, x=x, train=train, **kwargs)
        tensors = isinstance(x, torch.Tensor) and isinstance(x_net, torch.Tensor)
        if tensors and len(x) != len(x_net):
            raise ValueError(
                f"there must be one reconstruction for each of {len(x)} truths, got {len(x_net)}: "
                "give the physics one parameter for each sample of the batch, or one for all."
            )
        return x_net

    def compute_metrics(self, x, x_net, y, physics, logs, train: bool = True, epoch=None) -> tuple:
        """Metrics of a batch, see :meth:`deepinv.Trainer.compute_metrics`."""
        if not train or x_net is not None:  # else it was left out
            with nullcontext() if train else self._validation.unnoticed(self):
                x_net, logs = super().compute_metrics(
                    x, x_net, y, physics, logs, train=train, epoch=epoch
                )
        self._merging.metrics(self, logs, train)
        return x_net, logs

    def save_best_model(self, epoch, train_ite, **kwargs) -> None:
        """Save the best model, see :meth:`deepinv.Trainer.save_best_model`; after evaluations."""
        self._steps.note("evaluations", train_ite if self.log_train_batch else epoch)
        super().save_best_model(epoch, train_ite, **kwargs)
