r"""Adversarial training, and noise first, then attacks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from numbers import Real
from statistics import median

import torch
from deepinv.datasets.base import batch_as_dict
from deepinv.physics import Physics
from deepinv.utils.tensorlist import TensorList

from .. import checks
from ..attacks.base import Attack
from . import distributed
from .finite import finite
from .input_jitter import InputJitterTrainer
from .jitter import JitterTrainer
from .snapshot import holding, tensors


@dataclass
class AttackTrainer(JitterTrainer):
    r"""
    Trainer with attacked measurements: adversarial training (AT), equation (6) of the paper.

    Every training batch is attacked first, :math:`y \leftarrow y + \arg\max_{\|e\| \leq
    \varepsilon} \|x - H(y+e)\|^2`; evaluation is on the measurements as they are. All else is
    :class:`JitterTrainer`'s; a jittered model is attacked without its noise and trained with it.
    It is no GAN training, which deepinv calls ``AdversarialTrainer``.

    Costs, in training steps without attack: ``n`` gradients of an attack add about :math:`2n/3`,
    and ``keep="best"`` one more forward pass than ``keep="last"``. The usual choice is
    ``FrankWolfeAttack(L2Ball(eps), steps=3, keep="last")``, the paper's ``PGDAttack.paper(eps)``.
    Without ground truth, for self-supervised losses, take an attack with ``objective="deviation"``.

    :param Attack attack: the attack on training batches.
    :param bool persistent: start each sample's attack from where its last one ended, which makes up
        for few steps: one per epoch. The perturbations of all samples are kept in memory and in the
        checkpoints. Needs a data set that tells the index of a sample, see :class:`IndexedDataset`,
        and measurements of one part. Default: ``False``.
    :param float, Callable share: share of the batches that are attacked, evenly spread over an
        epoch, at least 0 and at most 1, or a function from the epoch, from 0, to it. The others are
        as they are. Default: 1.
    :param Attack, None monitor: a stronger attack, run after each epoch on the first batch of the
        training and compared with ``attack``. The ratio of their excess losses is appended to the
        attribute ``monitor_history``; a warning tells when it exceeds 1.5 times its median so far,
        the sign of catastrophic overfitting: the model learns to withstand the weak attack alone.
        Default: ``None``.
    :raises TypeError: if ``attack`` or ``monitor`` is no :class:`Attack`, or ``share`` no number.
    :raises ValueError: if ``share`` is out of range, or ``persistent`` meets an image-domain
        budget, or in training a data set without indices or measurements of several parts.

    The other parameters are those of :class:`JitterTrainer`.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> from torch.utils.data import DataLoader
    >>> physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    >>> model = dj.UnfoldedGD(dj.PointMLP(), stepsize=0.5, max_iter=5)
    >>> trainer = dj.AttackTrainer(
    ...     model, physics, torch.optim.Adam(model.parameters(), lr=1e-3),
    ...     DataLoader(dj.PointDataset(200), batch_size=100), epochs=2, device="cpu",
    ...     online_measurements=True, save_path=None, verbose=False,
    ...     attack=dj.FrankWolfeAttack(dj.L2Ball(0.01), steps=3))
    >>> model = trainer.train()
    """

    attack: Attack = field(kw_only=True)
    persistent: bool = field(default=False, kw_only=True)
    share: float | Callable[[int], float] = field(default=1.0, kw_only=True)
    monitor: Attack | None = field(default=None, kw_only=True)

    def __post_init__(self):
        for name in ("attack", "monitor"):
            attack = getattr(self, name)
            if not isinstance(attack, Attack) and (name, attack) != ("monitor", None):
                raise TypeError(
                    f"{name} must be an Attack such as FrankWolfeAttack(L2Ball(1.0)), got "
                    f"{type(attack).__name__}."
                )
        if self.persistent and self.attack.budget.domain != "measurement":
            raise ValueError(
                "persistent keeps perturbations of the measurements, got a budget in the "
                f"{self.attack.budget.domain} domain."
            )
        if not callable(self.share):
            checks.number("share", self.share, Real, 0, 1)
        super().__post_init__()
        self.monitor_history = []
        self._turn = 0, 0  # the epoch, and how many of its batches were asked about
        self._deltas = {}  # (loader, sample) -> its last perturbation
        self._fresh = set()  # the keys of those other processes do not know
        self._samples = None  # the keys of the current batch
        self._monitored = None  # the monitor's batch

    def perturb(
        self, x: torch.Tensor | None, y: torch.Tensor, physics: Physics
    ) -> torch.Tensor:
        r""":math:`y + \delta`, see :meth:`JitterTrainer.perturb`."""
        if not self._attacks_next():
            return super().perturb(x, y, physics)
        if not finite(y) or not (x is None or finite(x)):
            return (
                y  # with a loss that is not finite either, on which all processes agree
            )
        if self.monitor is not None and self._monitored is None:
            # Copies: what comes from a worker lies in shared memory, an open file
            self._found["monitored"] = {
                "x": None if x is None else x.clone(),
                # A checkpoint holds plain lists
                "y": list(y.clone()) if isinstance(y, TensorList) else y.clone(),
                "physics": [p is physics for p in self.physics].index(True),
                "parameters": {
                    name: t.detach().clone() for name, t in tensors([physics]).items()
                },
            }
        init = self._last_deltas(y) if self.persistent else None
        with self.get_autocast_context():
            delta = self.attack(self.model, x, y, physics, init=init)
        if self.persistent:
            # Copies: a row would keep the memory of its whole batch
            rows = map(torch.clone, delta.cpu())
            self._found["deltas"] = dict(zip(self._samples, rows, strict=True))
        return y + delta

    def _count(self) -> None:
        self._monitored = self._found.pop("monitored", self._monitored)
        deltas = self._found.pop("deltas", {})
        self._deltas |= deltas
        self._fresh.update(deltas)
        super()._count()

    def get_samples(self, iterators, g):
        """A batch, see :meth:`deepinv.Trainer.get_samples`; remembers which samples are in it."""
        if not self.persistent:
            return super().get_samples(iterators, g)
        return super().get_samples({g: self._remembering(iterators[g], g)}, g)

    def _remembering(self, iterator: Iterator, g: int) -> Iterator:
        batch = batch_as_dict(next(iterator))
        self._samples = [(int(g), int(i)) for i in batch.get("index", [])]
        yield batch

    def step(self, epoch, *args, train: bool = True, **kwargs):
        """A batch, see :meth:`deepinv.Trainer.step`."""
        if train and self._turn[0] != epoch:
            self._turn = epoch, 0
        super().step(epoch, *args, train=train, **kwargs)

    def _finish_training(self, epoch: int) -> None:
        self._share_deltas()
        if self._monitored is not None:
            self._check_overfitting(epoch)
        super()._finish_training(epoch)

    def save_model(self, filename: str, epoch: int, state: dict | None = None) -> None:
        """Save a checkpoint, see :meth:`deepinv.Trainer.save_model`."""
        self._share_deltas()
        attacks = {"deltas": self._deltas, "monitor_history": self.monitor_history}
        super().save_model(filename, epoch, (state or {}) | attacks)

    def _share_deltas(self) -> None:
        """Tell all processes of the samples of each, which the next epoch gives to others."""
        for deltas in distributed.gathered({k: self._deltas[k] for k in self._fresh}):
            self._deltas |= deltas
        self._fresh.clear()

    def _rank_state(self, amid: bool) -> dict:
        own = {"monitored": self._monitored, "turn": self._turn}
        return super()._rank_state(amid) | own

    def _restore(self, checkpoint: dict) -> None:
        self._deltas = dict(checkpoint.get("deltas", {}))
        self.monitor_history = list(checkpoint.get("monitor_history", []))
        super()._restore(checkpoint)

    def _restore_rank(self, state: dict) -> None:
        # Of another trainer, which attacked nothing, there is neither
        self._monitored = state.get("monitored")
        self._turn = tuple(state.get("turn", self._turn))
        super()._restore_rank(state)

    def _attacks_next(self) -> bool:
        """Whether the next batch is attacked; it counts as passed."""
        epoch, passed = self._turn
        self._turn = epoch, passed + 1
        share = self.share
        if callable(share):
            share = checks.number("share", share(epoch), Real, 0, 1)
        # Evenly spread, and blind to rounding: 3 of 9 batches for a third
        before, after = (math.floor(n * share + 1e-9) for n in (passed, passed + 1))
        return after > before

    def _last_deltas(self, y: torch.Tensor) -> torch.Tensor:
        if isinstance(y, TensorList):
            raise ValueError(
                "persistent keeps one tensor for each sample, got measurements of "
                f"{len(y)} parts: set persistent=False and give the attack more steps."
            )
        if len(self._samples) != len(y):
            raise ValueError(
                "persistent needs the index of every sample, got "
                f"{len(self._samples)} for a batch of {len(y)}: wrap the data set in "
                "IndexedDataset."
            )
        zero = torch.zeros_like(y[0], device="cpu")
        return torch.stack([self._deltas.get(key, zero) for key in self._samples]).to(y)

    def _check_overfitting(self, epoch: int) -> None:
        batch, physics = self._monitored, self.physics[self._monitored["physics"]]
        x = None if batch["x"] is None else batch["x"].to(self.device)
        y = TensorList(batch["y"]) if isinstance(batch["y"], list) else batch["y"]
        y = y.to(self.device)

        def excess(attack: Attack) -> float:
            result = attack.run(self.model, x, y, physics)
            own = float((result.loss - result.loss_clean).mean())
            return sum(distributed.gathered(own)) / distributed.count()

        with holding(physics, batch["parameters"]):
            strong, weak = excess(self.monitor), excess(self.attack)
        ratio = strong / max(weak, torch.finfo(torch.float32).tiny)
        if len(self.monitor_history) > 1 and ratio > 1.5 * median(self.monitor_history):
            warnings.warn(
                f"Epoch {epoch}: the monitor attack harms {ratio:.2f} times as much as the "
                f"training attack, up from {median(self.monitor_history):.2f}: catastrophic "
                "overfitting. "
                "Train with more steps, or go back to an earlier checkpoint.",
                stacklevel=2,
            )
        self.monitor_history.append(ratio)


@dataclass
class RobustTrainer(AttackTrainer, InputJitterTrainer):
    r"""
    Trainer for our recipe: noise on the measurements first, attacks at the end.

    For the first 60 % of the epochs the measurements get white noise, :math:`y + w`, for the last
    40 % they are attacked, :math:`y + \delta`. With ``FrankWolfeAttack(L2Ball(eps), steps=3,
    keep="last")`` this costs about 1.8 times what MSE training costs. A jittered model gets its own
    noise in both parts. All else is :class:`AttackTrainer`'s and :class:`InputJitterTrainer`'s: the
    noise has the level ``sigma``, or follows from ``eps``.

    :param float, Callable, None share: share of the batches that are attacked, as for
        :class:`AttackTrainer`; the others get the noise. Default: ``None``, all in the last 40 % of
        the epochs, at least one epoch, and none before.

    The other parameters are those of :class:`AttackTrainer` and are those of
    :class:`InputJitterTrainer`.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> from torch.utils.data import DataLoader
    >>> physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    >>> model = dj.UnfoldedGD(dj.PointMLP(), stepsize=0.5, max_iter=5)
    >>> trainer = dj.RobustTrainer(
    ...     model, physics, torch.optim.Adam(model.parameters(), lr=1e-3),
    ...     DataLoader(dj.PointDataset(200), batch_size=100), epochs=5, device="cpu",
    ...     online_measurements=True, save_path=None, verbose=False, sigma=0.05,
    ...     attack=dj.FrankWolfeAttack(dj.L2Ball(0.05), steps=3, keep="last"))
    >>> model = trainer.train()
    >>> [trainer.share(epoch) for epoch in range(5)]
    [0.0, 0.0, 0.0, 1.0, 1.0]
    """

    share: float | Callable[[int], float] | None = field(default=None, kw_only=True)

    def __post_init__(self):
        if self.share is None:
            start = self.epochs - max(1, int(0.4 * self.epochs))
            self.share = lambda epoch: float(epoch >= start)
        super().__post_init__()
