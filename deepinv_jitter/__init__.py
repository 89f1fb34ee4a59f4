r"""
Train any deepinv unrolled network so that it stays accurate and becomes robust.

The modules in layers, from the ground up; imports run only downwards.

Layer 0, on torch and deepinv alone (with :mod:`~deepinv_jitter.checks`, what an argument must be):

- :mod:`~deepinv_jitter.noise`: the law of the jitter :math:`w_k`, its scale and its generator.
- :mod:`~deepinv_jitter.physics`: seismic convolution, single-coil MRI, the fastMRI masks.
- :mod:`~deepinv_jitter.fidelities`: data fidelities that know the noise, or :math:`A^\top y`.
- :mod:`~deepinv_jitter.networks`: the paper's networks :math:`f_\theta`.
- :mod:`~deepinv_jitter.datasets`: points, sections and brain slices, without download.
- :mod:`~deepinv_jitter.files`: fastMRI and SEG-Y files.
- :mod:`~deepinv_jitter.shifts`: out-of-distribution edits of the truth, and their detail scores.
- :mod:`~deepinv_jitter.metrics`: PSNR and SSIM as the paper's code defines them.
- :mod:`~deepinv_jitter.budgets`: what an attack may do, the balls and their support.
- :mod:`~deepinv_jitter.randomness`: the state of everything random, kept and brought back.
- :mod:`~deepinv_jitter.ranks`: many processes, as torch.distributed has them.
- :mod:`~deepinv_jitter.interruptions`: signals noted, files replaced in one step.

Layer 1, the pieces of an unrolled network, and what attacks it:

- :mod:`~deepinv_jitter.iterators`: where the jitter enters an iteration, and how to silence it.
- :mod:`~deepinv_jitter.priors`: a network as the gradient or the proximal operator of a prior.
- :mod:`~deepinv_jitter.attacks`: worst-case perturbations of the measurements, self-checking.
- :mod:`~deepinv_jitter.states`: what an interrupted evaluation goes on from.
- :mod:`~deepinv_jitter.reports`: the robustness report, its statistics, tables and curves.
- :mod:`~deepinv_jitter.engine`: the host's Trainer with finite steps only, many processes, and
  exact resume.

Layer 2, what a training script uses:

- :mod:`~deepinv_jitter.models`: the unrolled networks of SGD and SPGD jittering.
- :mod:`~deepinv_jitter.ensembles`: many small models trained as one.
- :mod:`~deepinv_jitter.trainers`: that engine, with noise-free evaluation; with input jittering;
  with attacks, which is adversarial training.
- :mod:`~deepinv_jitter.risks`: average-case, worst-case and generalisation risk; the theory.
- :mod:`~deepinv_jitter.evaluation`: measures how robust a model is, sample by sample.
- :mod:`~deepinv_jitter.selection`: how to choose a noise level, on validation data.

Layer 3, what to compare with:

- :mod:`~deepinv_jitter.baselines`: spectral normalisation, and a conditional DDPM with its trainer.
"""

from .attacks import (
    APGDAttack,
    Attack,
    AttackResult,
    PGDAttack,
    PowerAttack,
    RandomAttack,
    WorstCase,
)
from .baselines import (
    ConditionalDDPM,
    DDPMTrainer,
    DenoisingLoss,
    spectral_normalize,
)
from .budgets import Budget, L2Ball, LinfBall
from .datasets import (
    BrainSliceDataset,
    IndexedDataset,
    PointDataset,
    ReflectivityDataset,
)
from .ensembles import Ensemble
from .evaluation import evaluate_robustness
from .fidelities import NormalL2
from .files import fastmri_slices, segy_sections
from .interruptions import latest_checkpoint
from .iterators import (
    CheckpointedIterator,
    ConditionedIterator,
    JitteredIterator,
    jitter,
    no_jitter,
    unjitter,
)
from .metrics import PaperPSNR, PaperSSIM
from .models import UnfoldedGD, UnfoldedPGD
from .networks import PointMLP, UnrolledDnCNN
from .noise import GaussianJitter
from .physics import FastMRIMaskGenerator, SeismicConvolution, SingleCoilMRI, ricker
from .priors import GradientPrior, ProximalPrior
from .ranks import ShardSampler
from .reports import RobustnessComparison, RobustnessReport
from .risks import (
    ConvergenceBound,
    Risk,
    average_case_risk,
    convergence_bound,
    generalization_risk,
    implicit_regularization,
    trajectory_deviation,
    worst_case_risk,
)
from .selection import choose_sigma
from .shifts import (
    Bias,
    HorizontalLayer,
    Lesion,
    Shift,
    contrast_recovery,
    error_outside,
)
from .trainers import (
    AttackTrainer,
    InputJitterTrainer,
    JitterTrainer,
    RobustTrainer,
    input_jitter_sigma,
)

__version__ = "0.1.0"

__all__ = [
    "APGDAttack",
    "Attack",
    "AttackResult",
    "AttackTrainer",
    "Bias",
    "BrainSliceDataset",
    "Budget",
    "CheckpointedIterator",
    "ConditionalDDPM",
    "ConditionedIterator",
    "ConvergenceBound",
    "DDPMTrainer",
    "DenoisingLoss",
    "Ensemble",
    "FastMRIMaskGenerator",
    "GaussianJitter",
    "GradientPrior",
    "HorizontalLayer",
    "IndexedDataset",
    "InputJitterTrainer",
    "JitterTrainer",
    "JitteredIterator",
    "L2Ball",
    "Lesion",
    "LinfBall",
    "NormalL2",
    "PGDAttack",
    "PaperPSNR",
    "PaperSSIM",
    "PointDataset",
    "PointMLP",
    "PowerAttack",
    "ProximalPrior",
    "RandomAttack",
    "ReflectivityDataset",
    "Risk",
    "RobustTrainer",
    "RobustnessComparison",
    "RobustnessReport",
    "SeismicConvolution",
    "ShardSampler",
    "Shift",
    "SingleCoilMRI",
    "UnfoldedGD",
    "UnfoldedPGD",
    "UnrolledDnCNN",
    "WorstCase",
    "average_case_risk",
    "choose_sigma",
    "contrast_recovery",
    "convergence_bound",
    "error_outside",
    "evaluate_robustness",
    "fastmri_slices",
    "generalization_risk",
    "implicit_regularization",
    "input_jitter_sigma",
    "jitter",
    "latest_checkpoint",
    "no_jitter",
    "ricker",
    "segy_sections",
    "spectral_normalize",
    "trajectory_deviation",
    "unjitter",
    "worst_case_risk",
]
