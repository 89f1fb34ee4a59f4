r"""Where the noise enters an iteration: noise, iterators, data fidelities and priors."""

from .checkpointing import CheckpointedIterator
from .fidelities import NormalL2
from .iterators import ConditionedIterator, JitteredIterator
from .jittering import jitter, no_jitter, unjitter
from .noise import GaussianJitter, Jitter
from .priors import GradientPrior, ProximalPrior
