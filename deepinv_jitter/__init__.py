r"""
Train any deepinv unrolled network so that it stays accurate and becomes robust.

The rooms are deepinv's, from the ground up; imports run only downwards. Everything public is also
at the root. :mod:`~deepinv_jitter.checks` is what an argument must be, at public boundaries;
:mod:`~deepinv_jitter.memory` what modules hold besides their parameters, and how to bring it back.

:mod:`~deepinv_jitter.optim`, where the noise enters an iteration:

- :mod:`~deepinv_jitter.optim.noise`: the noise :math:`w_k`, and the layer that adds it.
- :mod:`~deepinv_jitter.optim.fidelities`: data fidelities given the noise, or :math:`A^\top y`.
- :mod:`~deepinv_jitter.optim.priors`: a network as the gradient or proximal map of a prior.
- :mod:`~deepinv_jitter.optim.iterators`: where the noise enters an iteration.
- :mod:`~deepinv_jitter.optim.checkpointing`: iterations recomputed in the backward pass.
- :mod:`~deepinv_jitter.optim.hooks`: noise on what submodules return.
- :mod:`~deepinv_jitter.optim.jittering`: the noise into a model, out of it, and silenced.

:mod:`~deepinv_jitter.physics`, forward operators:

- :mod:`~deepinv_jitter.physics.parameters`: what both operators demand of their parameters.
- :mod:`~deepinv_jitter.physics.wavelets`: the Ricker wavelet.
- :mod:`~deepinv_jitter.physics.seismic`: convolution of a section with a wavelet.
- :mod:`~deepinv_jitter.physics.mri`: single-coil Cartesian MRI.
- :mod:`~deepinv_jitter.physics.masks`: the fastMRI challenge's undersampling masks.

:mod:`~deepinv_jitter.attacks`, perturbations of the measurements:

- :mod:`~deepinv_jitter.attacks.parts`: stacked measurements side by side in one tensor.
- :mod:`~deepinv_jitter.attacks.samples`: what each sample of a batch has of its own.
- :mod:`~deepinv_jitter.attacks.noise`: how large the noise of a physics is.
- :mod:`~deepinv_jitter.attacks.support`: the entries that a perturbation may touch.
- :mod:`~deepinv_jitter.attacks.budgets`: what an attack may do.
- :mod:`~deepinv_jitter.attacks.balls`: bounded energy, bounded size.
- :mod:`~deepinv_jitter.attacks.adapted`: networks that self-supervised losses have adapted.
- :mod:`~deepinv_jitter.attacks.problem`: the loss of a batch as a function of the perturbation.
- :mod:`~deepinv_jitter.attacks.diagnostics`: what casts doubt on a result.
- :mod:`~deepinv_jitter.attacks.base`: the call, the worst of several.
- :mod:`~deepinv_jitter.attacks.search`: the search from point to point.
- :mod:`~deepinv_jitter.attacks.pgd`: projected gradient ascent.
- :mod:`~deepinv_jitter.attacks.frank_wolfe`: full steps to the boundary.
- :mod:`~deepinv_jitter.attacks.apgd`: steps that adapt to each sample.
- :mod:`~deepinv_jitter.attacks.momentum`: ascent with Nesterov's momentum.
- :mod:`~deepinv_jitter.attacks.subset`: some samples of a batch as a problem of their own.
- :mod:`~deepinv_jitter.attacks.converged`: a search that goes on until it has converged.
- :mod:`~deepinv_jitter.attacks.random`: random baselines.

:mod:`~deepinv_jitter.models`, networks:

- :mod:`~deepinv_jitter.models.unfolded`: the unrolled networks of SGD and SPGD jittering.
- :mod:`~deepinv_jitter.models.networks`: the paper's networks :math:`f_\theta`.
- :mod:`~deepinv_jitter.models.demo`: small trained networks that come with the package.
- :mod:`~deepinv_jitter.models.spectral`: spectral normalisation, a baseline.
- :mod:`~deepinv_jitter.models.diffusion`: a baseline, a conditional DDPM with DDIM steps.

:mod:`~deepinv_jitter.datasets`, data:

- :mod:`~deepinv_jitter.datasets.points`: points of the plane.
- :mod:`~deepinv_jitter.datasets.reflectivity`: reflectivity sections with faults.
- :mod:`~deepinv_jitter.datasets.brain`: slices of a real brain, without download.
- :mod:`~deepinv_jitter.datasets.fastmri`: slices of fastMRI files.
- :mod:`~deepinv_jitter.datasets.segy`: sections of SEG-Y files.
- :mod:`~deepinv_jitter.datasets.indexed`: samples that know their index.

:mod:`~deepinv_jitter.training`, deepinv's Trainer, for robust training and long runs:

- :mod:`~deepinv_jitter.training.distributed`: many processes.
- :mod:`~deepinv_jitter.training.generators`: random generators, wherever things hold them.
- :mod:`~deepinv_jitter.training.rng`: the state of everything random.
- :mod:`~deepinv_jitter.training.preemption`: signals, files replaced in one step.
- :mod:`~deepinv_jitter.training.workers`: loader workers leave signals to their process.
- :mod:`~deepinv_jitter.training.host`: what is used of deepinv's Trainer beyond its documentation.
- :mod:`~deepinv_jitter.training.checkpoints`: what checkpoints hold; which is the newest.
- :mod:`~deepinv_jitter.training.replay`: what cannot be resumed exactly.
- :mod:`~deepinv_jitter.training.snapshot`: what modules hold besides their weights.
- :mod:`~deepinv_jitter.training.parts`: what a training is made of.
- :mod:`~deepinv_jitter.training.position`: how far a training is, and how long it took.
- :mod:`~deepinv_jitter.training.finite`: finite steps only.
- :mod:`~deepinv_jitter.training.parallel`: one training on many processes.
- :mod:`~deepinv_jitter.training.validation`: looking at a model changes nothing.
- :mod:`~deepinv_jitter.training.averaging`: averaged weights.
- :mod:`~deepinv_jitter.training.history`: the curves of trainings.
- :mod:`~deepinv_jitter.training.progress`: bars, or lines in a log file.
- :mod:`~deepinv_jitter.training.perturbations`: what is done to a training batch.
- :mod:`~deepinv_jitter.training.resume`: exact resume.
- :mod:`~deepinv_jitter.training.runs`: a training as a whole.
- :mod:`~deepinv_jitter.training.engine`: the batches of a training.
- :mod:`~deepinv_jitter.training.jitter`: SGD and SPGD jittering.
- :mod:`~deepinv_jitter.training.input_jitter`: input jittering.
- :mod:`~deepinv_jitter.training.adversarial`: adversarial training.
- :mod:`~deepinv_jitter.training.fitting`: a training in one call.
- :mod:`~deepinv_jitter.training.diffusion`: the DDPM's trainer.

:mod:`~deepinv_jitter.evaluation`, how robust a network is:

- :mod:`~deepinv_jitter.evaluation.metrics`: the paper's PSNR and SSIM; what becomes of a detail.
- :mod:`~deepinv_jitter.evaluation.shifts`: out-of-distribution edits of the truth.
- :mod:`~deepinv_jitter.evaluation.statistics`: bootstrap intervals and verdicts.
- :mod:`~deepinv_jitter.evaluation.results`: what was measured of one network.
- :mod:`~deepinv_jitter.evaluation.tables`: text, Markdown, LaTeX and CSV.
- :mod:`~deepinv_jitter.evaluation.words`: units, headlines and notes.
- :mod:`~deepinv_jitter.evaluation.pictures`: reconstructions side by side.
- :mod:`~deepinv_jitter.evaluation.views`: security curves, pictures and files of one or of several.
- :mod:`~deepinv_jitter.evaluation.comparison`: which network is better, if the data tell.
- :mod:`~deepinv_jitter.evaluation.report`: the report of one network.
- :mod:`~deepinv_jitter.evaluation.seeds`: what is random in an evaluation.
- :mod:`~deepinv_jitter.evaluation.batches`: the samples, and the parameters of their physics.
- :mod:`~deepinv_jitter.evaluation.cache`: what an interrupted evaluation goes on from.
- :mod:`~deepinv_jitter.evaluation.protocol`: what is done to each sample.
- :mod:`~deepinv_jitter.evaluation.scores`: the scores of reconstructions.
- :mod:`~deepinv_jitter.evaluation.conditions`: what is done to a batch.
- :mod:`~deepinv_jitter.evaluation.robustness`: the one call.
- :mod:`~deepinv_jitter.evaluation.selection`: how to choose a noise level.
- :mod:`~deepinv_jitter.evaluation.risks`: average-case, worst-case and generalisation risk.
"""

import warnings

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


def __getattr__(name: str):
    if name == "PowerAttack":
        warnings.warn(
            "PowerAttack is called FrankWolfeAttack now: use the new name, the old one will go.",
            DeprecationWarning,
            stacklevel=2,
        )
        return FrankWolfeAttack
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
