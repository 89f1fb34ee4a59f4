r"""Data sets whose samples know their index."""

from __future__ import annotations

import operator
from collections.abc import Mapping

import numpy as np
import torch
from deepinv.datasets import ImageDataset
from deepinv.datasets.base import batch_as_dict
from deepinv.utils import TensorList
from PIL.Image import Image
from torch.utils.data import Dataset

# What deepinv takes for a sample, all of it
SAMPLES = (torch.Tensor, TensorList, np.ndarray, Image, tuple, list, dict)


class IndexedDataset(ImageDataset):
    r"""
    A data set whose samples also tell their index, as the key ``"index"`` of the dictionary.

    For what keeps something for each sample from epoch to epoch, such as
    :class:`AttackTrainer` with ``persistent=True``. deepinv ignores the key.

    :param torch.utils.data.Dataset dataset: data set in any of deepinv's formats.
    :raises TypeError: if ``dataset`` has no length or no items, or a sample is in no such format.

    |sep|

    :Examples:

    >>> import deepinv_jitter as dj
    >>> dj.IndexedDataset(dj.PointDataset(200))[7]
    {'x': tensor([0., 0.]), 'index': 7}
    """

    def __init__(self, dataset: Dataset):
        super().__init__(use_dict_output=True)
        items = all(hasattr(dataset, name) for name in ("__len__", "__getitem__"))
        if not items or isinstance(dataset, (str, Mapping)):
            raise TypeError(
                f"dataset must have a length and items, got {type(dataset).__name__}: for tensors "
                "take deepinv.datasets.TensorDataset(x=x, y=y)."
            )
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # which has been asked for

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | int]:
        # The same number for a sample that is asked for from the end
        index = from_zero(index, len(self))
        sample = self.dataset[index]
        if not isinstance(sample, SAMPLES):
            raise TypeError(
                "samples must be in one of deepinv's formats, x, (x, y), (x, y, params) or a "
                f"dictionary, got {type(sample).__name__}."
            )
        return batch_as_dict(sample) | {"index": index}


def sample_rng(seed: int, index: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))


def from_zero(index: int, length: int) -> int:
    """The index of a sequence, counted from its start."""
    try:
        i = operator.index(index)
    except TypeError as error:
        raise TypeError(
            f"index must be a whole number, got {index!r}: several samples are a "
            "torch.utils.data.Subset."
        ) from error
    if not -length <= i < length:
        raise IndexError(f"index must lie from {-length} to {length - 1}, got {i}.")
    return i % length
