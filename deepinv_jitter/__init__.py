r"""
Train any deepinv unrolled network so that it stays accurate and becomes robust.

The rooms are deepinv's, from the ground up; imports run only downwards. Everything public is also
at the root. What a module is for, its docstring says in its first line.

- `checks`: what an argument must be, at public boundaries.
- `memory`: what modules hold besides their parameters, and how to bring it back.
- `optim`: where the noise enters an iteration.
- `physics`: forward operators.
- `attacks`: perturbations of the measurements.
- `models`: networks.
- `datasets`: data.
- `training`: deepinv's Trainer, for robust training and long runs.
- `evaluation`: how robust a network is.
"""

from .attacks import (
    APGDAttack,
    Attack,
    AttackResult,
    Budget,
    ConvergedAttack,
    FrankWolfeAttack,
    L2Ball,
    LinfBall,
    MomentumAttack,
    PGDAttack,
    RandomAttack,
    WorstCase,
)
from .datasets import (
    BrainSliceDataset,
    IndexedDataset,
    PointDataset,
    ReflectivityDataset,
    fastmri_slices,
    segy_sections,
)
from .evaluation import (
    Bias,
    HorizontalLayer,
    Lesion,
    PaperPSNR,
    PaperSSIM,
    Risk,
    RobustnessComparison,
    RobustnessReport,
    Shift,
    average_case_risk,
    choose_sigma,
    contrast_recovery,
    error_outside,
    evaluate_robustness,
    generalization_risk,
    worst_case_risk,
)
from .models import (
    ConditionalDDPM,
    PointMLP,
    UnfoldedGD,
    UnfoldedPGD,
    UnrolledDnCNN,
    demo_network,
    spectral_normalize,
)
from .optim import (
    CheckpointedIterator,
    ConditionedIterator,
    GaussianJitter,
    GradientPrior,
    Jitter,
    JitteredIterator,
    NormalL2,
    ProximalPrior,
    jitter,
    no_jitter,
    unjitter,
)
from .physics import FastMRIMaskGenerator, SeismicConvolution, SingleCoilMRI, ricker
from .training import (
    AttackTrainer,
    DDPMTrainer,
    DenoisingLoss,
    InputJitterTrainer,
    JitterTrainer,
    RobustTrainer,
    ShardSampler,
    fit,
    input_jitter_sigma,
    latest_checkpoint,
    plot_history,
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
    "ConvergedAttack",
    "DDPMTrainer",
    "DenoisingLoss",
    "FastMRIMaskGenerator",
    "FrankWolfeAttack",
    "GaussianJitter",
    "GradientPrior",
    "HorizontalLayer",
    "IndexedDataset",
    "InputJitterTrainer",
    "Jitter",
    "JitterTrainer",
    "JitteredIterator",
    "L2Ball",
    "Lesion",
    "LinfBall",
    "MomentumAttack",
    "NormalL2",
    "PGDAttack",
    "PaperPSNR",
    "PaperSSIM",
    "PointDataset",
    "PointMLP",
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
    "demo_network",
    "error_outside",
    "evaluate_robustness",
    "fastmri_slices",
    "fit",
    "generalization_risk",
    "input_jitter_sigma",
    "jitter",
    "latest_checkpoint",
    "no_jitter",
    "plot_history",
    "ricker",
    "segy_sections",
    "spectral_normalize",
    "unjitter",
    "worst_case_risk",
]
