r"""Small trained networks that come with the package, for demos and first tries."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from .. import checks
from ..optim.noise import GaussianJitter
from .networks import UnrolledDnCNN
from .unfolded import UnfoldedGD, UnfoldedPGD

#: Where ``examples/weights/train.py`` writes, and logs how the training went.
WEIGHTS = Path(__file__).parent / "weights"
#: The algorithm and the channels of each.
NETWORKS: dict[str, tuple[type[UnfoldedGD] | type[UnfoldedPGD], int]] = {
    "mri_gd": (UnfoldedGD, 2),
    "mri_gd_jittered": (UnfoldedGD, 2),
    "mri_pgd": (UnfoldedPGD, 2),
    "mri_pgd_jittered": (UnfoldedPGD, 2),
    "mri_pgd_robust": (UnfoldedPGD, 2),
    "seismic_mse": (UnfoldedPGD, 1),
    "seismic_jittered": (UnfoldedPGD, 1),
}


def demo_network(
    name: str, *, jitter: float | Iterable[float] | GaussianJitter | None = None
) -> UnfoldedGD | UnfoldedPGD:
    r"""
    A small network whose weights come with the package, to attack or to train on: 5 iterations
    around a network of 4 layers with 32 channels, some 20 000 weights.

    Those of ``mri`` reconstruct brain slices of 96 x 96 pixels, 2 mm each, from single-coil
    measurements that are 4x accelerated, with noise of standard deviation 0.05; those of
    ``seismic`` sections of 96 x 96 samples with noise of 0.01. They are trained for minutes, each
    once: examples to work with, and evidence for nothing.

    :param str name: ``"mri_gd"`` and ``"mri_pgd"``, trained with the mean squared error;
        ``"mri_gd_jittered"`` and ``"mri_pgd_jittered"``, with SGD and SPGD jittering;
        ``"mri_pgd_robust"``, by :class:`RobustTrainer`; ``"seismic_mse"`` and
        ``"seismic_jittered"``, with the mean squared error and with SPGD jittering.
    :param float, Iterable[float], GaussianJitter, None jitter: noise if it is trained on, see
        :class:`UnfoldedGD`; the weights do not depend on it. Default: ``None``.
    :return: (:class:`UnfoldedGD` or :class:`UnfoldedPGD`) the network, in evaluation mode.
    :raises ValueError: if there is no network of that name.

    |sep|

    :Examples:

    >>> import torch, deepinv_jitter as dj
    >>> model = dj.demo_network("seismic_mse")
    >>> model(torch.zeros(1, 1, 96, 96), dj.SeismicConvolution()).shape, model.training
    (torch.Size([1, 1, 96, 96]), False)
    """
    checks.choice("name", name, tuple(NETWORKS))
    algorithm, channels = NETWORKS[name]
    network = UnrolledDnCNN(channels, depth=4, width=32, residual=algorithm is UnfoldedPGD)
    model = algorithm(network, max_iter=5, jitter=jitter)
    model.load_state_dict(torch.load(WEIGHTS / f"{name}.pt", weights_only=True))
    return model.eval()
