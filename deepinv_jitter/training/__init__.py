r"""deepinv's Trainer for robust training, and for runs that take days."""

from .adversarial import AttackTrainer, RobustTrainer
from .diffusion import DDPMTrainer, DenoisingLoss
from .distributed import ShardSampler
from .jitter import InputJitterTrainer, JitterTrainer, input_jitter_sigma
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
]
