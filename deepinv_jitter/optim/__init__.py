r"""Where the noise enters an iteration: noise, iterators, data fidelities and priors."""

from .fidelities import NormalL2
from .iterators import (
    CheckpointedIterator,
    ConditionedIterator,
    JitteredIterator,
    jitter,
    no_jitter,
    unjitter,
)
from .noise import GaussianJitter
from .priors import GradientPrior, ProximalPrior

__all__ = [
    "CheckpointedIterator",
    "ConditionedIterator",
    "GaussianJitter",
    "GradientPrior",
    "JitteredIterator",
    "NormalL2",
    "ProximalPrior",
    "jitter",
    "no_jitter",
    "unjitter",
]
