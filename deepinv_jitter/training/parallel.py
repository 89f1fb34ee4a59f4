r"""One training on as many processes as torch.distributed has."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from deepinv.utils import get_timestamp
from torch import nn

from . import distributed
from .finite import FiniteTrainer, refill
from .snapshot import Snapshot


@dataclass
class ParallelTrainer(FiniteTrainer):
    """One training on as many processes as ``torch.distributed`` has, one without it."""

    ddp_options: dict = field(default_factory=dict, kw_only=True)

    def __post_init__(self):
        distributed.check_plain(self.model)
        super().__post_init__()
        self._parallel = None  # the model with averaged gradients, from the first pass
        self._averages = False  # whether the gradients of a batch are averaged
        self._to_merge = -1  # losses until the meters become those of all ranks
        self._base_path = self._run_path = (
            None  # the user's folder, and that of the last run
        )

    def setup_train(self, train: bool = True, **kwargs) -> None:
        """Set up training or testing, see :meth:`deepinv.Trainer.setup_train`."""
        if distributed.own() > 0:
            self.verbose = self.plot_images = self.wandb_vis = self.mlflow_vis = False
        if train:
            distributed.check_loaders(
                as_list(self.train_dataloader), as_list(self.eval_dataloader)
            )
        # One folder per training, of the first rank: the host would open another for testing, and
        # lose the one with the best model; and the next training would be inside the last
        former = self.save_path
        if train:
            again = former is not None and former == self._run_path
            self._base_path = self.save_path = self._base_path if again else former
        if distributed.own() > 0 or not train:
            self.save_path = None
        # The host names a folder by the second, and refuses the second run of one
        while self.save_path and (Path(self.save_path) / get_timestamp()).exists():
            time.sleep(0.1)
        try:
            super().setup_train(train=train, **kwargs)
        except BaseException:
            if train and isinstance(self.save_path, str) and self.save_path != former:
                with suppress(OSError):
                    Path(self.save_path).rmdir()
            self.save_path = former
            raise
        if train:
            self.save_path = distributed.gathered(self.save_path)[0]
            self._run_path = self.save_path
            self._parallel = None
        else:
            self.save_path = former

    def train(self) -> nn.Module:
        """Train the model, see :meth:`deepinv.Trainer.train`."""
        try:
            return super().train()
        finally:
            self._parallel = None
            self._let_workers_go()

    def test(self, test_dataloader, save_path=None, *args, **kwargs) -> dict:
        """Test the model, see :meth:`deepinv.Trainer.test`; on every rank."""
        distributed.check_loaders([], as_list(test_dataloader))
        if distributed.own() > 0:
            save_path = None
        try:
            return super().test(test_dataloader, save_path, *args, **kwargs)
        finally:
            self._let_workers_go()

    def _let_workers_go(self) -> None:
        # The host keeps the iterators of the loaders, and they their worker processes
        self.current_train_iterators = self.current_eval_iterators = None

    def step(self, *args, train: bool = True, last_batch: bool = False, **kwargs):
        """A batch, see :meth:`deepinv.Trainer.step`; after the last, all are of one mind."""
        self._to_merge = self.G if last_batch and distributed.count() > 1 else -1
        super().step(*args, train=train, last_batch=last_batch, **kwargs)
        if train and last_batch:
            distributed.same_buffers(self.model)

    def model_inference(self, y, physics, x=None, train: bool = True, **kwargs):
        """The reconstruction, see :meth:`deepinv.Trainer.model_inference`."""
        if not (train and torch.is_grad_enabled() and self._shares):
            return super().model_inference(y, physics, x=x, train=train, **kwargs)
        if self._parallel is None:
            options = dict(self.ddp_options)
            if not options.keys() & {"find_unused_parameters", "static_graph"}:
                options["find_unused_parameters"] = self._has_unused(y, physics, x)
            self._parallel = distributed.parallel(self.model, self.device, options)
        # For this pass alone: evaluation and attacks, of which processes have unequally many, and
        # checkpoints are with the plain model
        plain, self.model = self.model, self._parallel
        self._averages = True
        try:
            return super().model_inference(y, physics, x=x, train=True, **kwargs)
        finally:
            self.model = plain

    @property
    def _shares(self) -> bool:
        """Whether there is a gradient to share with other processes."""
        trains = any(p.requires_grad for p in self.model.parameters())
        return trains and distributed.count() > 1

    def _has_unused(self, y, physics, x) -> bool:
        """Whether a parameter is without use, such as the weight of a prior, in one more pass."""
        free = [p for p in self.model.parameters() if p.requires_grad]
        with Snapshot([self.model, physics, self.losses]).unnoticed():
            x_net = super().model_inference(y, physics, x=x, train=True)
            ones = torch.ones_like(x_net)
            found = torch.autograd.grad(x_net, free, ones, allow_unused=True)
        unused = any(gradient is None for gradient in found)
        return bool(distributed.largest([int(unused)], self.device)[0])

    def compute_loss(self, physics, x, y, train: bool = True, **kwargs):
        """Losses of a batch, see :meth:`deepinv.Trainer.compute_loss`."""
        self._averages = False
        loss, x_net, logs = super().compute_loss(physics, x, y, train=train, **kwargs)
        if train and self._shares and not self._averages:
            raise NotImplementedError(
                f"{type(self).__name__} trains the model outside its training pass, where "
                "gradients are averaged over the processes: use a single process."
            )
        self._to_merge -= 1
        if self._to_merge == 0:  # never if it is not the last batch
            total = self.logs_total_loss_train if train else self.logs_total_loss_eval
            meters = self.logs_losses_train if train else self.logs_losses_eval
            self._merge(logs, ["TotalLoss"], [total])
            self._merge(logs, [type(part).__name__ for part in self.losses], meters)
        return loss, x_net, logs

    def compute_metrics(self, x, x_net, y, physics, logs, train=True, **kwargs):
        """Metrics of a batch, see :meth:`deepinv.Trainer.compute_metrics`."""
        x_net, logs = super().compute_metrics(
            x, x_net, y, physics, logs, train=train, **kwargs
        )
        if self._to_merge == 0:
            names = [type(metric).__name__ for metric in self.metrics]
            meters = self.logs_metrics_train if train else self.logs_metrics_eval
            self._merge(logs, names, meters)
            if not train and self.compare_no_learning:
                names = [f"{name} no learning" for name in names]
                self._merge(logs, names, self.logs_metrics_no_learning)
        return x_net, logs

    @staticmethod
    def _merge(logs: dict, names: list[str], meters: list) -> None:
        """Make meters those of all processes, and what the logs say of them."""
        for name, meter in zip(names, meters, strict=True):
            refill(meter, sum(distributed.gathered(meter.vals), []))
            if name in logs:
                logs[name] = meter.avg


def as_list(value: object) -> list:
    """One thing, several or none as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
