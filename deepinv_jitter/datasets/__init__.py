r"""Data: points, reflectivity sections and brain slices without download; fastMRI and SEG-Y."""

from .brain import BrainSliceDataset
from .fastmri import fastmri_slices
from .indexed import IndexedDataset
from .points import PointDataset
from .reflectivity import ReflectivityDataset
from .segy import segy_sections
