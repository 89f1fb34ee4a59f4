r"""deepinv's Trainer for robust training, and for runs that take days."""

from .adversarial import AttackTrainer, RobustTrainer
from .checkpoints import latest_checkpoint
from .diffusion import DDPMTrainer, DenoisingLoss
from .distributed import ShardSampler
from .fitting import fit
from .history import plot_history
from .input_jitter import InputJitterTrainer, input_jitter_sigma
from .jitter import JitterTrainer
