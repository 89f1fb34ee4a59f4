r"""deepinv's Trainer for robust training, and for runs that take days."""

from .adversarial import AttackTrainer, RobustTrainer
from .diffusion import DDPMTrainer, DenoisingLoss
from .distributed import ShardSampler
from .history import plot_history
from .input_jitter import InputJitterTrainer, input_jitter_sigma
from .jitter import JitterTrainer
from .preemption import latest_checkpoint

__all__ = [
    "AttackTrainer",
    "DDPMTrainer",
    "DenoisingLoss",
    "InputJitterTrainer",
    "JitterTrainer",
    "RobustTrainer",
    "ShardSampler",
    "input_jitter_sigma",
    "latest_checkpoint",
    "plot_history",
]
