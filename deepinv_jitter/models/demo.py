r"""Small trained networks that come with the package, for demos and first tries."""

from __future__ import annotations

from pathlib import Path

import torch

from .. import checks
from ..optim.noise import Noise
from .networks import UnrolledDnCNN
from .unfolded import UnfoldedPGD

#: Where ``examples/weights/train.py`` writes, and logs how the training went.
WEIGHTS = Path(__file__).parent / "weights"
#: Of each problem: channels of an image, layers of a network, iterations with a network each.
SIZES = {"mri": (2, 4, 5), "seismic": (1, 3, 10)}
TRAININGS = ("mse", "jittered", "robust")


def demo_network(name: str, *, jitter: Noise | None = None) -> UnfoldedPGD:
    r"""
    A small network whose weights come with the package, to attack or to train on: unrolled proximal
    gradient descent with a network of 16 channels for each iteration, some 26 000 weights.

    Those of ``mri`` reconstruct brain slices of 160 x 128 pixels, 1 mm each, from single-coil
    measurements that are 4x accelerated, with noise of standard deviation 0.05; those of
    ``seismic`` sections of 96 x 96 samples with noise of 0.01. They are trained for minutes, each
    once: examples to work with, and evidence for nothing.

    :param str name: ``"mri_mse"`` and ``"seismic_mse"``, trained with the mean squared error;
        ``"mri_jittered"`` and ``"seismic_jittered"``, with SPGD jittering; ``"mri_robust"`` and
        ``"seismic_robust"``, by :class:`RobustTrainer`.
    :param float, Iterable[float], GaussianJitter, None jitter: noise if it is trained on, see
        :class:`UnfoldedPGD`; the weights do not depend on it. Default: ``None``.
    :return: (:class:`UnfoldedPGD`) the network, in evaluation mode.
    :raises ValueError: if there is no network of that name.

    |sep|

    :Examples:

    >>> import torch, deepinv_jitter as dj
    >>> model = dj.demo_network("seismic_mse")
    >>> model(torch.zeros(1, 1, 96, 96), dj.SeismicConvolution()).shape, model.training
    (torch.Size([1, 1, 96, 96]), False)
    """
    checks.choice("name", name, tuple(f"{p}_{t}" for p in SIZES for t in TRAININGS))
    model = untrained(name.split("_")[0], jitter)
    model.load_state_dict(torch.load(WEIGHTS / f"{name}.pt", weights_only=True))
    return model.eval()


def untrained(problem: str, jitter: Noise | None = None) -> UnfoldedPGD:
    """A network of a problem, freshly initialised."""
    channels, depth, iterations = SIZES[problem]
    networks = [
        UnrolledDnCNN(channels, depth=depth, width=16, residual=True) for _ in range(iterations)
    ]
    return UnfoldedPGD(networks, max_iter=iterations, jitter=jitter)
