r"""deepinv's Trainer for jittered models, and input jittering."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from numbers import Real

import torch
from deepinv.loss import Loss, SupLoss
from deepinv.loss.metric import MSE
from deepinv.physics import Physics

from .. import checks
from ..attacks.budgets import L2Ball
from ..optim.iterators import no_jitter
from . import distributed
from .parallel import as_list
from .resume import ResumingTrainer


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

    def model_inference(self, y, physics, x=None, train: bool = True, **kwargs):
        """
        The reconstruction, see :meth:`deepinv.Trainer.model_inference`.

        :raises ValueError: if there are more or fewer than truths, which losses would broadcast.
        """
        x_net = super().model_inference(y, physics, x=x, train=train, **kwargs)
        tensors = isinstance(x, torch.Tensor) and isinstance(x_net, torch.Tensor)
        if tensors and len(x) != len(x_net):
            raise ValueError(
                f"there must be one reconstruction for each of {len(x)} truths, got {len(x_net)}: "
                "give the physics one parameter for each sample of the batch, or one for all."
            )
        return x_net

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
            levels = distributed.gathered(input_jitter_sigma(self.eps, y, physics))
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
