r"""deepinv's Trainer for jittered models: noise-free evaluation and exact resume."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from deepinv import Trainer
from deepinv.loss import Loss, SupLoss
from deepinv.loss.metric import MSE

from .iterators import no_jitter

#: Histories that the host saves in a checkpoint but does not load: attribute, key in the checkpoint.
HISTORIES = {
    "loss_history": "loss",
    "eval_loss_history": "eval_loss",
    "train_metrics_history": "train_metrics",
    "eval_metrics_history": "eval_metrics",
}


@dataclass
class JitterTrainer(Trainer):
    r"""
    Trainer for jittered models: SGD and SPGD jittering, eq. (8) and (12) of the paper.

    It is a :class:`deepinv.Trainer`, with the same arguments and two other defaults. A plain :class:`deepinv.Trainer`
    trains a jittered model as well; this one adds

    - evaluation free of noise: losses on the evaluation data, validation metrics, early stopping and the choice of the
      best model. (The host computes evaluation losses in training mode, where the model is jittered.)
    - exact resume: with ``ckpt_pretrained`` set to a ``ckp_{epoch}.pth.tar`` file, training goes on as if it had never
      stopped, bit for bit on one machine. Checkpoints hold the state of the global random generators of torch, CUDA,
      numpy and python, of every :class:`torch.Generator` of the model, physics, physics generators, losses and data
      loaders, and of the gradient scaler; the histories are taken up again, so early stopping counts right.
    - checkpoints that load with ``torch.load(..., weights_only=True)``, and no others are loaded.
    - one folder per training: ``test()`` makes none, and ``load_best_model()`` works after it.

    Metrics on training batches are off by default: they would score the jittered output, in training mode.

    :param bool compute_train_metrics: also compute metrics on training batches, on the jittered output. Default:
        ``False``.
    :param deepinv.loss.Loss, list losses: training loss. Default: :class:`deepinv.loss.SupLoss` with the mean squared
        error of each sample, so that an uneven last batch is averaged right.
    :param float, None grad_clip: largest gradient norm; the norm is then also reported, as with ``check_grad``.
        Default: ``None``.
    :raises ValueError: in ``train`` and ``test``, if a data loader has ``drop_last=True``, with which the host loses
        one full batch per epoch.

    The other parameters are those of :class:`deepinv.Trainer`.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> from torch.utils.data import DataLoader
    >>> physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    >>> model = dj.UnfoldedGD(dj.PointMLP(), stepsize=0.5, max_iter=5, jitter=0.1)
    >>> trainer = dj.JitterTrainer(model, physics, torch.optim.Adam(model.parameters(), lr=1e-3),
    ...                            DataLoader(dj.PointDataset(200), batch_size=100), epochs=2, device="cpu",
    ...                            online_measurements=True, save_path=None, verbose=False)
    >>> model = trainer.train()
    """

    losses: Loss | list[Loss] = field(default_factory=lambda: SupLoss(metric=MSE()))
    compute_train_metrics: bool = False

    def __post_init__(self):
        # Non-blocking copies exist for CUDA alone; the host warns of its own default otherwise
        self.non_blocking_transfers &= torch.device(self.device).type == "cuda"
        # The host reports the norm of clipped gradients through the meter that check_grad creates
        self.check_grad |= self.grad_clip is not None
        super().__post_init__()
        self._resume = None

    def setup_train(self, train: bool = True, **kwargs) -> None:
        """
        Set up training or testing, see :meth:`deepinv.Trainer.setup_train`.

        :param bool train: whether the model is trained.
        :raises ValueError: if a data loader has ``drop_last=True``.
        """
        for loader in self._loaders():
            if getattr(loader, "drop_last", False):
                raise ValueError(
                    "Data loaders must have drop_last=False, got True: the host would lose one full batch per epoch "
                    "on top. Let the last batch be smaller."
                )
        self._resume = None
        if train:
            super().setup_train(train=True, **kwargs)
            if self._resume is not None:
                self._restore(self._resume)
        else:
            # The host would open another folder, and lose the one with the best model
            run_path, self.save_path = self.save_path, None
            super().setup_train(train=False, **kwargs)
            self.save_path = run_path

    def compute_loss(self, physics, x, y, train: bool = True, epoch=None, step: bool = False):
        """
        Losses of a batch, and in training the backward pass, see :meth:`deepinv.Trainer.compute_loss`.

        In evaluation, no noise and no gradients: the host runs the model in training mode there.
        """
        if train:
            return super().compute_loss(physics, x, y, train=True, epoch=epoch, step=step)
        with no_jitter(self.model), torch.no_grad():
            return super().compute_loss(physics, x, y, train=False, epoch=epoch, step=step)

    def save_model(self, filename: str, epoch: int, state: dict | None = None) -> None:
        """
        Save a checkpoint from which training can go on exactly, see :meth:`deepinv.Trainer.save_model`.

        :param str filename: name of the file in ``save_path``.
        :param int epoch: current epoch, from 0.
        :param dict, None state: more to save, of tensors and builtins.
        """
        rng = _global_rng_state() | {"generators": [g.get_state() for g in self._generators()]}
        extra = {"rng": rng, "scaler": self.scaler.state_dict()}
        super().save_model(filename, epoch, (state or {}) | extra)

    def load_model(
        self, ckpt_pretrained: str | Path | None = None, strict: bool = True
    ) -> dict | None:
        """
        Load a checkpoint, see :meth:`deepinv.Trainer.load_model`.

        :param str, pathlib.Path, None ckpt_pretrained: file; ``None`` means the trainer's ``ckpt_pretrained``, from
            which training then resumes.
        :param bool strict: whether all weights must be there, and no others.
        :return: (:class:`dict`) the checkpoint, or ``None`` if there is none to load.
        :raises pickle.UnpicklingError: if the file holds more than tensors and builtins.
        """
        path = ckpt_pretrained or self.ckpt_pretrained
        if path is None:
            return None
        # The host unpickles whatever the file holds; a file that passes here is only data
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        super().load_model(ckpt_pretrained, strict)
        if ckpt_pretrained is None:
            self._resume = checkpoint
        return checkpoint

    def _restore(self, checkpoint: dict) -> None:
        """What the host leaves out when it resumes; the random state last, as setting up draws from it."""
        for name, key in HISTORIES.items():
            saved = checkpoint.get(key, {})
            if saved.keys() == getattr(self, name).keys():
                setattr(self, name, {k: list(v) for k, v in saved.items()})
        if "scaler" in checkpoint:
            self.scaler.load_state_dict(checkpoint["scaler"])
        if "rng" in checkpoint:
            rng = checkpoint["rng"]
            generators = list(self._generators())
            if len(generators) != len(rng["generators"]):
                raise ValueError(
                    f"A run resumes with the random generators it was saved with, got {len(generators)} in this "
                    f"trainer and {len(rng['generators'])} in the checkpoint: build model, physics and loaders alike."
                )
            for generator, state in zip(generators, rng["generators"], strict=True):
                generator.set_state(state)
            _set_global_rng_state(rng)

    def _loaders(self) -> Iterator:
        for loaders in (self.train_dataloader, self.eval_dataloader):
            yield from _as_list(loaders)

    def _generators(self) -> Iterator[torch.Generator]:
        """Every generator of the model, physics, physics generators, losses and loaders, once each."""
        modules = [
            module
            for owner in (self.model, self.physics, self.physics_generator, self.losses)
            for root in _as_list(owner)
            for module in root.modules()
        ]
        loaders = list(self._loaders())
        datasets = [loader.dataset for loader in loaders if hasattr(loader, "dataset")]
        seen = set()
        for owner in modules + loaders + datasets:
            for value in getattr(owner, "__dict__", {}).values():
                # a generator, or an object that has one, such as a GaussianJitter
                generator = getattr(value, "generator", value)
                if isinstance(generator, torch.Generator) and id(generator) not in seen:
                    seen.add(id(generator))
                    yield generator


def _as_list(value) -> list:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _global_rng_state() -> dict:
    """State of the global generators, as tensors and builtins for ``weights_only`` loading."""
    name, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
        "python": random.getstate(),
    }


def _set_global_rng_state(state: dict) -> None:
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])
