r"""Forward operators: seismic deconvolution, single-coil MRI and the fastMRI challenge's masks."""

from .masks import FastMRIMaskGenerator
from .mri import SingleCoilMRI
from .seismic import SeismicConvolution
from .wavelets import ricker
