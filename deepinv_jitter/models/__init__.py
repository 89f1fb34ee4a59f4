r"""Networks: the paper's unrolled ones, what they are made of, and its baselines."""

from .demo import demo_network
from .diffusion import ConditionalDDPM
from .networks import PointMLP, UnrolledDnCNN
from .spectral import spectral_normalize
from .unfolded import UnfoldedGD, UnfoldedPGD
