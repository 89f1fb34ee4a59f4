r"""deepinv's Trainer for robust training: noise-free evaluation, exact resume, perturbed data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Real
from statistics import median

import torch
from deepinv.datasets.base import batch_as_dict
from deepinv.loss import Loss, SupLoss
from deepinv.loss.metric import MSE
from deepinv.physics import Physics

from . import checks, ranks
from .attacks import Attack
from .budgets import L2Ball
from .engine import ResumingTrainer, as_list
from .iterators import no_jitter


@dataclass
class JitterTrainer(ResumingTrainer):
    r"""
    Trainer for jittered models: SGD and SPGD jittering, equations (8) and (12) of the paper.

    It is a :class:`deepinv.Trainer`, with the same arguments and two other defaults. A plain
    :class:`deepinv.Trainer` trains a jittered model as well; this one adds

    - evaluation free of noise: losses on the evaluation data, validation metrics, early stopping
      and the choice of the best model. (The host computes evaluation losses in training mode,
      where the model is jittered.)
    - exact resume: with ``ckpt_pretrained`` set to a checkpoint, training goes on as if it had
      never stopped, bit for bit on one machine; :func:`latest_checkpoint` finds the newest.
      Checkpoints hold the state of the global random generators of torch, CUDA, numpy and python,
      of every :class:`torch.Generator` of the model, physics, physics generators, losses, data
      loaders and data sets, and of the gradient scaler; the histories are taken up again, so early
      stopping counts right.
    - interruptions: Ctrl-C and SIGTERM let the batch end, write ``ckp_interrupted.pth.tar`` and
      leave with :class:`KeyboardInterrupt` or exit status 143; a run resumes from the next batch.
      (With ``log_train_batch`` from the last epoch.) Files are replaced in one step, so that a kill
      at any time leaves the checkpoint of before.
      The attribute ``seconds`` counts the time of all parts of a run.
    - losses and gradients that are not finite never reach the weights.
    - many GPUs: one process for each, started by ``torchrun``, see below.
    - checkpoints that load with ``torch.load(..., weights_only=True)``, and no others are loaded.
    - one folder per training: ``test()`` makes none, and ``load_best_model()`` works after it, and
      after a resume.

    Metrics on training batches are off by default: they would score the jittered output, in
    training mode.

    **Many GPUs.** Where ``torch.distributed`` is initialised, gradients are averaged over the ranks
    by :class:`torch.nn.parallel.DistributedDataParallel`; give the trainer the plain model. The
    loaders share the data: :class:`torch.utils.data.DistributedSampler` for training (its epoch is
    set), :class:`ShardSampler` or none for evaluation. Noise and attacks differ between the ranks
    and follow from the seeds; losses and metrics are those of all samples of all ranks. The first
    rank alone prints, logs and writes. A checkpoint has the names of the plain model, and resumes
    on any number of ranks; bit for bit on as many as it was written by.

    :param bool compute_train_metrics: also compute metrics on training batches, on the jittered
        output. Default: ``False``.
    :param deepinv.loss.Loss, list losses: training loss. Default: :class:`deepinv.loss.SupLoss`
        with the mean squared error of each sample, so that an uneven last batch is averaged right.
    :param float, None grad_clip: largest gradient norm; the norm is then also reported, as with
        ``check_grad``. Default: ``None``.
    :param str on_non_finite: what happens when the loss of a training batch or its gradient is not
        finite: ``"raise"``, with a checkpoint of the weights of before; or ``"skip"``, which leaves
        the batch out with a warning and adds (epoch, batch) to the attribute ``skipped``. In
        float16 the gradient scaler leaves out gradients that overflow, as always.
        Default: ``"raise"``.
    :param float, None ckp_minutes: also save within an epoch, ``ckp_interrupted.pth.tar``, when the
        last checkpoint is so many minutes old. Default: ``None``, at the end of epochs alone.
    :param dict ddp_options: arguments of :class:`torch.nn.parallel.DistributedDataParallel`.
        Default: ``{"find_unused_parameters": True}``, as parameters of an unrolled model may be
        without use; torch warns if there are none, and ``{}`` then saves a little.
    :raises TypeError: if the model is a ``DataParallel`` or ``DistributedDataParallel``.
    :raises ValueError: if ``on_non_finite`` is unknown or ``ckp_minutes`` is negative. In ``train``
        and ``test``, if a data loader has ``drop_last=True``, with which the host loses one full
        batch per epoch; if loaders do not share the data among the ranks; or if
        ``ckpt_pretrained`` does not fit.
    :raises FloatingPointError: in ``train``, if a loss or gradient is not finite, or all of them.
    :raises OSError: in ``train``, if a checkpoint cannot be written; the former one is kept.

    The other parameters are those of :class:`deepinv.Trainer`.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> from torch.utils.data import DataLoader
    >>> physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    >>> model = dj.UnfoldedGD(dj.PointMLP(), stepsize=0.5, max_iter=5, jitter=0.1)
    >>> trainer = dj.JitterTrainer(
    ...     model, physics, torch.optim.Adam(model.parameters(), lr=1e-3),
    ...     DataLoader(dj.PointDataset(200), batch_size=100), epochs=2, device="cpu",
    ...     online_measurements=True, save_path=None, verbose=False)
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

    def setup_train(self, train: bool = True, **kwargs) -> None:
        """
        Set up training or testing, see :meth:`deepinv.Trainer.setup_train`.

        :param bool train: whether the model is trained.
        :raises ValueError: if the data loaders do not do, or the checkpoint does not fit.
        """
        _check_last_batch(as_list(self.train_dataloader))
        _check_last_batch(as_list(self.eval_dataloader))
        super().setup_train(train=train, **kwargs)

    def test(self, test_dataloader, *args, **kwargs) -> dict:
        """
        Test the model, see :meth:`deepinv.Trainer.test`.

        :param torch.utils.data.DataLoader, list test_dataloader: test data.
        :return: (:class:`dict`) mean and standard deviation of the metrics.
        :raises ValueError: if a data loader has ``drop_last=True``, or counts samples twice.
        """
        _check_last_batch(as_list(test_dataloader))
        return super().test(test_dataloader, *args, **kwargs)

    def compute_loss(
        self, physics, x, y, train: bool = True, epoch=None, step: bool = False
    ):
        """
        Losses of a batch, and in training the backward pass.

        In evaluation, no noise and no gradients: the host runs the model in training mode there.

        :raises FloatingPointError: in training, if the loss or its gradient is not finite.
        """
        if train:
            y = self.perturb(x, y, physics)
            return super().compute_loss(
                physics, x, y, train=True, epoch=epoch, step=step
            )
        with no_jitter(self.model), torch.no_grad():
            return super().compute_loss(
                physics, x, y, train=False, epoch=epoch, step=step
            )

    def perturb(
        self, x: torch.Tensor | None, y: torch.Tensor, physics: Physics
    ) -> torch.Tensor:
        r"""
        The measurements that a training batch is made of; here, as they are.

        :param torch.Tensor, None x: truth, shape `(B, ...)`; ``None`` without ground truth.
        :param torch.Tensor y: measurements, shape `(B, ...)`.
        :param deepinv.physics.Physics physics: the physics of this batch.
        :return: (:class:`torch.Tensor`) measurements, of the shape of ``y``.
        """
        return y


@dataclass
class InputJitterTrainer(JitterTrainer):
    r"""
    Trainer for input jittering, noise on the measurements :math:`y \leftarrow y + w`, equation (7).

    The noise is white Gaussian, drawn anew for every training batch, on measured entries only;
    evaluation is on the measurements as they are. All else is :class:`JitterTrainer`'s, and a
    jittered model gets both noises.

    :param float, None sigma: standard deviation of each measured entry of :math:`w`, in the unit of
        the measurements.
    :param float, None eps: instead of ``sigma``, the :math:`\ell_2` radius to be robust against;
        ``sigma`` then follows in closed form from the first training batch, see
        :func:`input_jitter_sigma`.
    :param torch.Generator, None generator: source of the noise. Default: the global generator of
        the device.
    :raises TypeError: if the one given is no number.
    :raises ValueError: unless exactly one of ``sigma`` and ``eps`` is given, finite and not
        negative.

    The other parameters are those of :class:`JitterTrainer`.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> from torch.utils.data import DataLoader
    >>> physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    >>> model = dj.UnfoldedGD(dj.PointMLP(), stepsize=0.5, max_iter=5)
    >>> trainer = dj.InputJitterTrainer(
    ...     model, physics, torch.optim.Adam(model.parameters(), lr=1e-3),
    ...     DataLoader(dj.PointDataset(200), batch_size=100), epochs=2, device="cpu",
    ...     online_measurements=True, save_path=None, verbose=False, sigma=0.05)
    >>> model = trainer.train()
    """

    sigma: float | None = field(default=None, kw_only=True)
    eps: float | None = field(default=None, kw_only=True)
    generator: torch.Generator | None = field(default=None, kw_only=True)

    def __post_init__(self):
        if (self.sigma is None) == (self.eps is None):
            raise ValueError(
                "exactly one of sigma and eps must be given, got "
                f"sigma={self.sigma!r}, eps={self.eps!r}."
            )
        for name in ("sigma", "eps"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, checks.number(name, value, Real, 0))
        super().__post_init__()

    def perturb(
        self, x: torch.Tensor | None, y: torch.Tensor, physics: Physics
    ) -> torch.Tensor:
        r""":math:`y + w`, see :meth:`JitterTrainer.perturb`."""
        if self.sigma is None:
            levels = ranks.gathered(input_jitter_sigma(self.eps, y, physics))
            self.sigma = sum(levels) / len(levels)
        device = y.device if self.generator is None else self.generator.device
        w = torch.randn(y.shape, generator=self.generator, device=device, dtype=y.dtype)
        return y + self.sigma * w.to(y.device) * L2Ball(0.0).support(y, physics)

    def save_model(self, filename: str, epoch: int, state: dict | None = None) -> None:
        """Save a checkpoint, see :meth:`deepinv.Trainer.save_model`."""
        super().save_model(filename, epoch, (state or {}) | {"sigma": self.sigma})

    def _restore(self, checkpoint: dict) -> None:
        if self.sigma is None:  # it came from the first batch, which is long past
            self.sigma = checkpoint.get("sigma")
        super()._restore(checkpoint)


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
    ``PowerAttack(L2Ball(eps), steps=3, keep="last")``, the paper's ``PGDAttack.paper(eps)``.
    Without ground truth, for self-supervised losses, take an attack with ``objective="deviation"``.

    :param Attack attack: the attack on training batches.
    :param bool persistent: start each sample's attack from where its last one ended, which makes up
        for few steps: one per epoch. The perturbations of all samples are kept in memory and in the
        checkpoints. Needs a data set that tells the index of a sample, see :class:`IndexedDataset`.
        Default: ``False``.
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
        budget, or in training a data set without indices.

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
    ...     attack=dj.PowerAttack(dj.L2Ball(0.01), steps=3))
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
                    f"{name} must be an Attack such as PowerAttack(L2Ball(1.0)), got "
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
        self._fresh = set()  # the keys of those the other ranks do not know
        self._samples = None  # the keys of the current batch
        self._monitored = None  # the monitor's batch

    def perturb(
        self, x: torch.Tensor | None, y: torch.Tensor, physics: Physics
    ) -> torch.Tensor:
        r""":math:`y + \delta`, see :meth:`JitterTrainer.perturb`."""
        if not self._attacks_next():
            return super().perturb(x, y, physics)
        if not y.isfinite().all() or not (x is None or x.isfinite().all()):
            return y  # with a loss that is not finite either, on which all ranks agree
        if self.monitor is not None and self._monitored is None:
            self._monitored = {
                # Copies: what comes from a worker lies in shared memory, an open file
                "x": None if x is None else x.clone(),
                "y": y.clone(),
                "physics": [p is physics for p in self.physics].index(True),
                "buffers": {
                    n: b.clone() for n, b in physics.named_buffers(recurse=False)
                },
            }
        init = self._last_deltas(y) if self.persistent else None
        with self.get_autocast_context():
            delta = self.attack(self.model, x, y, physics, init=init)
        if self.persistent:
            # Copies: a row would keep the memory of its whole batch
            rows = map(torch.clone, delta.cpu())
            self._deltas |= zip(self._samples, rows, strict=True)
            self._fresh.update(self._samples)
        return y + delta

    def get_samples(self, iterators, g):
        """A batch, see :meth:`deepinv.Trainer.get_samples`; remembers which samples are in it."""
        if not self.persistent:
            return super().get_samples(iterators, g)
        return super().get_samples({g: self._remembering(iterators[g], g)}, g)

    def _remembering(self, iterator: Iterator, g: int) -> Iterator:
        batch = batch_as_dict(next(iterator))
        self._samples = [(int(g), int(i)) for i in batch.get("index", [])]
        yield batch

    def step(self, epoch, *args, train: bool = True, last_batch=False, **kwargs):
        """A batch, see :meth:`deepinv.Trainer.step`, and the monitor after the last of an epoch."""
        if train and self._turn[0] != epoch:
            self._turn = epoch, 0
        super().step(epoch, *args, train=train, last_batch=last_batch, **kwargs)
        if train and last_batch:
            self._share_deltas()
            if self._monitored is not None:
                self._check_overfitting(epoch)

    def save_model(self, filename: str, epoch: int, state: dict | None = None) -> None:
        """Save a checkpoint, see :meth:`deepinv.Trainer.save_model`."""
        self._share_deltas()
        attacks = {"deltas": self._deltas, "monitor_history": self.monitor_history}
        super().save_model(filename, epoch, (state or {}) | attacks)

    def _share_deltas(self) -> None:
        """Tell all ranks of the samples of each, which the next epoch gives to others."""
        for deltas in ranks.gathered({k: self._deltas[k] for k in self._fresh}):
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
        self._monitored, self._turn = state["monitored"], tuple(state["turn"])
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
        x, y = (
            None if t is None else t.to(self.device) for t in (batch["x"], batch["y"])
        )

        def excess(attack: Attack) -> float:
            result = attack.run(self.model, x, y, physics)
            own = float((result.loss - result.loss_clean).mean())
            return sum(ranks.gathered(own)) / ranks.count()

        with _buffers_set(physics, batch["buffers"]):
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
    40 % they are attacked, :math:`y + \delta`. With ``PowerAttack(L2Ball(eps), steps=3,
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
    ...     attack=dj.PowerAttack(dj.L2Ball(0.05), steps=3, keep="last"))
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


def input_jitter_sigma(eps: float, y: torch.Tensor, physics: Physics) -> float:
    r"""
    Input-jitter level that gives the worst-case robustness of an :math:`\ell_2` ball, in closed
    form.

    After Krainovic et al. (NeurIPS 2023), who show that a linear denoiser trained with the right
    jitter is the one optimal in the worst case. For measurements :math:`y = s + z` with signal
    energy :math:`c = \mathbb{E}\|s\|^2` and noise energy :math:`q = \mathbb{E}\|z\|^2`, and the
    estimator :math:`\alpha y`, the worst case over :math:`\|e\| \leq \varepsilon` is, in high
    dimension, :math:`(\sqrt{\alpha^2 q + (1-\alpha)^2 c} + \alpha\varepsilon)^2`. With
    :math:`a = c + q` it is least at

    .. math::
        \alpha^* = \frac{1}{a} \left( c - \varepsilon \sqrt{\frac{cq}{a - \varepsilon^2}} \right),

    and training with jitter of energy :math:`\sigma^2 n` on the :math:`n` measured entries gives
    :math:`\alpha = c / (a + \sigma^2 n)`. Equal for :math:`\sigma^2 = (c/\alpha^* - a)/n`. For
    networks this is a starting point, not a law.

    :param float eps: radius :math:`\varepsilon` of the ball, in the unit of the measurements; below
        the norm of the signal.
    :param torch.Tensor y: measurements, shape `(B, ...)`, from which the energy is estimated.
    :param deepinv.physics.Physics physics: the physics, with deepinv's Gaussian noise.
    :return: (:class:`float`) standard deviation of each measured entry.
    :raises TypeError: if ``eps`` is no number, or ``y`` no tensor of real or complex numbers.
    :raises ValueError: if the physics has no Gaussian noise, ``y`` is not finite, or ``eps`` is
        negative or not below the norm of the signal.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    >>> y = physics(torch.ones(50, 1, 16, 16))
    >>> round(dj.input_jitter_sigma(1.6, y, physics), 2)
    0.1
    """
    eps = checks.number("eps", eps, low=0)
    checks.batch(y=y)
    budget = L2Ball(1.0, relative_to="noise")
    noise = budget.radii(y, physics).double().square().mean().item()
    energy = y.detach().abs().double().square().flatten(1).sum(1).mean().item()
    signal = energy - noise
    if not eps < math.sqrt(max(signal, 0)):
        raise ValueError(
            "eps must be below the norm of the signal, here "
            f"{math.sqrt(max(signal, 0)):.3g}, got {eps!r}."
        )
    shrinkage = (signal - eps * math.sqrt(signal * noise / (energy - eps**2))) / energy
    entries = budget.support(y, physics).flatten(1).sum(1).double().mean().item()
    return math.sqrt(max(signal / shrinkage - energy, 0) / entries)


def _check_last_batch(loaders: Iterable) -> None:
    for loader in loaders:
        if getattr(loader, "drop_last", False):
            raise ValueError(
                "Data loaders must have drop_last=False, got True: the host would lose one full "
                "batch per epoch on top. Let the last batch be smaller."
            )


@contextmanager
def _buffers_set(
    module: torch.nn.Module, buffers: dict[str, torch.Tensor]
) -> Iterator[None]:
    # Not physics.update, which may treat what it is given, such as normalising it
    before = {name: getattr(module, name) for name in buffers}
    try:
        for name, buffer in buffers.items():
            setattr(module, name, buffer.to(before[name].device))
        yield
    finally:
        for name, buffer in before.items():
            setattr(module, name, buffer)
