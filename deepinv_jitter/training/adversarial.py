r"""Adversarial training, and attacks mixed with noise."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from .. import checks
from ..attacks.base import Attack
from ..attacks.parts import Measurements
from .finite import finite
from .input_jitter import InputJitterTrainer
from .jitter import JitterTrainer
from .perturbations import Deltas, Monitor, Perturbation


class Attacked(Perturbation):
    r""":math:`y + \delta` for a share of the batches, evenly spread over the training."""

    def __init__(self, deltas: Deltas, monitor: Monitor, otherwise: Perturbation):
        self.deltas, self.monitor, self.otherwise = deltas, monitor, otherwise

    def __call__(self, trainer, x, y, physics) -> Measurements:
        epoch = trainer._epoch.number
        # Over all epochs: of one batch in each, a share of 1/2 is every second
        passed = epoch * trainer.batches_of_an_epoch() + trainer._epoch.passed
        given = trainer.share(epoch) if callable(trainer.share) else trainer.share
        share = checks.real("share", given, low=0, high=1)
        # Blind to rounding: 3 of 9 batches for a third
        before, after = (math.floor(n * share + 1e-9) for n in (passed, passed + 1))
        if before == after:
            return self.otherwise(trainer, x, y, physics)
        if not finite(x, y):
            # with a loss that is not finite either, on which all processes agree
            return y
        self.monitor.note(trainer, x, y, physics)
        init = self.deltas.last(y) if trainer.persistent else None
        with trainer.get_autocast_context():
            delta = trainer.attack(trainer.model, x, y, physics, init=init)
        if trainer.persistent:
            self.deltas.note(delta)
        return y + delta


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
    :param float, Callable share: share of the batches that are attacked, evenly spread over the
        training, at least 0 and at most 1, or a function from the epoch, from 0, to it. The others
        are as they are. Default: 1.
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

    >>> import deepinv as dinv, deepinv_jitter as dj
    >>> physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    >>> model = dj.UnfoldedGD(dj.PointMLP(), stepsize=0.5, max_iter=5)
    >>> model = dj.fit(
    ...     model, physics, dj.PointDataset(200), epochs=2, batch_size=100,
    ...     trainer=dj.AttackTrainer, attack=dj.FrankWolfeAttack(dj.L2Ball(0.01), steps=3))
    """

    attack: Attack = field(kw_only=True)
    persistent: bool = field(default=False, kw_only=True)
    share: float | Callable[[int], float] = field(default=1.0, kw_only=True)
    monitor: Attack | None = field(default=None, kw_only=True)

    def __post_init__(self):
        for name in ("attack", "monitor")[: 1 + (self.monitor is not None)]:
            checks.instance(name, getattr(self, name), Attack, "dj.Attack such as FrankWolfeAttack")
        if self.persistent and self.attack.budget.domain != "measurement":
            raise ValueError(
                "persistent keeps perturbations of the measurements, got a budget in the "
                f"{self.attack.budget.domain} domain."
            )
        if not callable(self.share):
            checks.real("share", self.share, low=0, high=1)
        super().__post_init__()
        self._deltas, self._monitor = Deltas(), Monitor()
        self._perturbation = Attacked(self._deltas, self._monitor, self._perturbation)
        self._parts += [self._deltas, self._monitor]

    @property
    def monitor_history(self) -> list[float]:
        """The ratios that the monitor has found, one for each epoch."""
        return self._monitor.history

    def get_samples(self, iterators, g):
        """A batch, see :meth:`deepinv.Trainer.get_samples`; notes which samples are in it."""
        if self.persistent:
            iterators = {g: map(functools.partial(self._deltas.meet, g), iterators[g])}
        return super().get_samples(iterators, g)


@dataclass
class RobustTrainer(AttackTrainer, InputJitterTrainer):
    r"""
    Trainer for our recipe: of the batches of an epoch some are attacked, the others get noise.

    Every second batch is attacked, :math:`y + \delta`, with ``FrankWolfeAttack(L2Ball(eps),
    steps=1, keep="last")`` at a third of the cost of an MSE training step more; the others get
    white noise, :math:`y + w`. So the network sees the clean measurements' neighbourhood as well as
    its worst corner, and keeps more of its accuracy than by attacks alone. With ``share=1/6`` it
    keeps nearly all of it, for a tenth more than MSE training costs. A jittered model gets its own
    noise in both parts. All else is :class:`AttackTrainer`'s and :class:`InputJitterTrainer`'s: the
    noise has the level ``sigma``, or follows from ``eps``.

    :param float, Callable share: share of the batches that are attacked, as for
        :class:`AttackTrainer`; the others get the noise. Default: 1/2.

    The other parameters are those of :class:`AttackTrainer` and are those of
    :class:`InputJitterTrainer`.

    |sep|

    :Examples:

    >>> import deepinv as dinv, deepinv_jitter as dj
    >>> physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    >>> model = dj.UnfoldedGD(dj.PointMLP(), stepsize=0.5, max_iter=5)
    >>> model = dj.fit(
    ...     model, physics, dj.PointDataset(200), epochs=2, batch_size=100,
    ...     trainer=dj.RobustTrainer, sigma=0.05,
    ...     attack=dj.FrankWolfeAttack(dj.L2Ball(0.05), steps=1, keep="last"))
    """

    share: float | Callable[[int], float] = field(default=0.5, kw_only=True)
