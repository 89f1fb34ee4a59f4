r"""deepinv's Trainer for jittered models."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from deepinv.loss import Loss, SupLoss
from deepinv.loss.metric import MSE
from deepinv.physics import Physics

from .engine import Engine
from .history import plot_history

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class JitterTrainer(Engine):
    r"""
    Trainer for jittered models: SGD and SPGD jittering, equations (8) and (12) of the paper.

    It is a :class:`deepinv.Trainer`, with the same arguments and two other defaults. A plain
    :class:`deepinv.Trainer` trains a jittered model as well; this one adds

    - evaluation that changes nothing and is free of noise: losses on the evaluation data,
      validation metrics, early stopping and the choice of the best model are those of the model in
      evaluation mode, and its buffers and all random generators are afterwards as before. (The host
      computes evaluation losses in training mode, where the model is jittered and batch
      normalisation takes the data in.) What a self-supervised loss has wrapped around the model,
      as :class:`deepinv.loss.SplittingLoss` does, is in training mode for that loss alone.
    - averaged weights, with ``ema``.
    - exact resume: with ``ckpt_pretrained`` set to a checkpoint, training goes on as if it had
      never stopped, bit for bit on one machine; :func:`latest_checkpoint` finds the newest.
      Checkpoints hold the states of the global random generators and of all that can be reached
      from the model, physics, losses and data, of the gradient scaler and of the histories, after
      which early stopping goes. A warning before the training names data that cannot come again; a
      checkpoint of a training that was built otherwise is refused.
    - signals: Ctrl-C and SIGTERM let the batch end, in training and validation, write
      ``ckp_interrupted.pth.tar`` and leave with exit status 130 (:class:`KeyboardInterrupt`) or
      143; a run resumes from the next batch. (With ``log_train_batch`` from the last epoch.)
      Workers of data loaders leave the signals to the training. Files are replaced in one step, so
      that a kill at any time leaves the checkpoint of before. The attribute ``seconds`` counts the
      time of all parts of a run.
    - losses and gradients that are not finite never reach the weights; what the model and the
      losses hold besides them, such as running means, is then as before the batch.
    - checkpoints that load with ``torch.load(..., weights_only=True)``, and no others are loaded.
    - one folder per training, side by side: ``test()`` makes none, and ``load_best_model()`` works
      after it, and after a resume.
    - a line for each epoch instead of progress bars where the output is no terminal, and curves by
      :meth:`plot_history`.

    Metrics on training batches are off by default: they would score the jittered output, in
    training mode.

    **Many GPUs.** Where ``torch.distributed`` is initialised, as by ``torchrun`` and one process
    per GPU, gradients are averaged over the processes by
    :class:`torch.nn.parallel.DistributedDataParallel`; give the trainer the plain model. The
    loaders share the data: :class:`torch.utils.data.DistributedSampler` for training (its epoch is
    set), :class:`ShardSampler` or none for evaluation. Noise and attacks differ between the
    processes and follow from the seeds; losses and metrics are those of all samples. The first
    process alone prints, logs and writes. A checkpoint has the names of the plain model, and
    resumes on any number of processes; bit for bit on as many as it was written by.

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
    :param float, None ema: decay of an exponential moving average of the weights, above 0 and below
        1, such as 0.998. After each step of the optimizer :math:`\bar\theta \leftarrow d_n
        \bar\theta + (1 - d_n) \theta`, with :math:`d_n = \min(d, (1 + n) / (10 + n))` where
        :math:`n` steps went before and :math:`d_0 = 0`, so that the start is soon forgotten. The
        averaged weights, and with them the statistics of batch normalisation, are validated, chosen
        as the best, saved as the model and returned by ``train``. While it trains, also for
        attacks, the model has its own weights, which are in the checkpoints too. Default: ``None``,
        no average.
    :param float, None ckp_minutes: also save within an epoch, ``ckp_interrupted.pth.tar``, when the
        last checkpoint is so many minutes old. Default: ``None``, at the end of epochs alone.
    :param dict ddp_options: arguments of :class:`torch.nn.parallel.DistributedDataParallel`.
        Default: ``{}``; one more pass at the start finds out whether some parameters are without
        use. Where that changes from batch to batch, give ``{"find_unused_parameters": True}``.
    :raises TypeError: if the model is a ``DataParallel`` or ``DistributedDataParallel``.
    :raises ValueError: if ``on_non_finite`` is unknown, ``ckp_minutes`` is negative, ``ema`` is not
        between 0 and 1, or the scheduler asks for a metric. In ``train`` and ``test``, if a data
        loader has ``drop_last=True``, with which the host loses one full batch per epoch; if
        loaders do not share the data among the processes; or if ``ckpt_pretrained`` does not fit,
        in ``train`` also if it was written with another ``ema``.
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

    def plot_history(
        self, path: str | os.PathLike | None = None, names: Sequence[str] | None = None
    ) -> Figure:
        """Losses and metrics of this training against the epoch, see :func:`plot_history`."""
        return plot_history(self, path, names)

    def perturb(self, x: torch.Tensor | None, y: torch.Tensor, physics: Physics) -> torch.Tensor:
        r"""
        The measurements that a training batch is made of; here, as they are.

        :param torch.Tensor, None x: truth, shape `(B, ...)`; ``None`` without ground truth.
        :param torch.Tensor y: measurements, shape `(B, ...)`.
        :param deepinv.physics.Physics physics: the physics of this batch.
        :return: (:class:`torch.Tensor`) measurements, of the shape of ``y``.
        """
        return self._perturbation(self, x, y, physics)
