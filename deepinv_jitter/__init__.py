r"""
Train any deepinv unrolled network so that it stays accurate and becomes robust.

The modules, from the ground up; imports run only downwards:

0. :mod:`~deepinv_jitter.noise`: the law of the jitter :math:`w_k`, its scale and its generator.
   :mod:`~deepinv_jitter.physics`: seismic convolution, single-coil MRI, the fastMRI masks.
   :mod:`~deepinv_jitter.networks`: the paper's networks :math:`f_\theta`.
   :mod:`~deepinv_jitter.datasets`: points, reflectivity sections, brain slices, fastMRI files.
1. :mod:`~deepinv_jitter.iterators`: where the jitter enters an iteration; ``jitter``, ``unjitter``, ``no_jitter``.
   :mod:`~deepinv_jitter.priors`: a network as the gradient or the proximal operator of a prior.
2. :mod:`~deepinv_jitter.models`: the unrolled networks of SGD and SPGD jittering.
   :mod:`~deepinv_jitter.trainers`: the host's Trainer with noise-free evaluation and exact resume.
"""

from .datasets import BrainSliceDataset, PointDataset, ReflectivityDataset, fastmri_slices
from .iterators import (
    CheckpointedIterator,
    ConditionedIterator,
    JitteredIterator,
    jitter,
    no_jitter,
    unjitter,
)
from .models import UnfoldedGD, UnfoldedPGD
from .networks import PointMLP, UnrolledDnCNN
from .noise import GaussianJitter
from .physics import FastMRIMaskGenerator, SeismicConvolution, SingleCoilMRI, ricker
from .priors import GradientPrior, ProximalPrior
from .trainers import JitterTrainer

__version__ = "0.1.0"

__all__ = [
    "BrainSliceDataset",
    "CheckpointedIterator",
    "ConditionedIterator",
    "FastMRIMaskGenerator",
    "GaussianJitter",
    "GradientPrior",
    "JitterTrainer",
    "JitteredIterator",
    "PointDataset",
    "PointMLP",
    "ProximalPrior",
    "ReflectivityDataset",
    "SeismicConvolution",
    "SingleCoilMRI",
    "UnfoldedGD",
    "UnfoldedPGD",
    "UnrolledDnCNN",
    "fastmri_slices",
    "jitter",
    "no_jitter",
    "ricker",
    "unjitter",
]
