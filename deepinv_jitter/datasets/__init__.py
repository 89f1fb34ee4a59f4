r"""Data: points, reflectivity sections and brain slices without download; fastMRI and SEG-Y."""

from .brain import BrainSliceDataset
from .files import fastmri_slices, segy_sections
from .indexed import IndexedDataset
from .points import PointDataset
from .reflectivity import ReflectivityDataset

__all__ = [
    "BrainSliceDataset",
    "IndexedDataset",
    "PointDataset",
    "ReflectivityDataset",
    "fastmri_slices",
    "segy_sections",
]
