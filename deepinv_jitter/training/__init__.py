r"""deepinv's Trainer for robust training, and for runs that take days."""

from .adversarial import AttackTrainer, RobustTrainer
from .checkpoints import latest_checkpoint
from .diffusion import DDPMTrainer, DenoisingLoss
from .distributed import ShardSampler
from .jitter import InputJitterTrainer, JitterTrainer, input_jitter_sigma

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
