r"""Whether data come again as they were, when a training goes on."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from . import rng


def inexact(loaders: Mapping[str, list[DataLoader]]) -> list[str]:
    """
    What a resumed training cannot bring back: a reason for each loader that stands in the way.

    One sample is drawn twice, all random generators that are found being set back in between, and
    at the end to where they were.
    """
    reasons = []
    named = {f"{name}[{i}]": own for name, group in loaders.items() for i, own in enumerate(group)}
    for name, loader in named.items():
        # Workers that do not stay begin each epoch with a new copy of the data set
        stay = getattr(loader, "persistent_workers", False)
        if not isinstance(loader, DataLoader) or (loader.num_workers and not stay):
            continue
        try:
            moves, comes_again = _tried(loader)
        except Exception:  # which the training meets as well, and tells
            continue
        if stay and moves:
            reasons.append(
                f"{name} has workers that draw random numbers and stay, so that nobody knows "
                "where they are; set persistent_workers=False"
            )
        elif not comes_again:
            reasons.append(
                f"{name} gives something else when it is asked again, by a place that it keeps or "
                "by random numbers that do not come from torch, numpy and python's own generators "
                "or one held as an attribute"
            )
    return reasons


def _tried(loader: DataLoader) -> tuple[bool, bool]:
    """Whether a sample draws random numbers, and whether it comes again."""
    dataset, collate = loader.dataset, loader.collate_fn
    stream = isinstance(dataset, IterableDataset)
    if stream:
        dataset = copy.deepcopy(dataset)  # from which nothing is taken
    generators = rng.generators([dataset, collate])
    draws = []
    with rng.kept(generators) as before:
        for _ in range(2):
            rng.restore(before, generators)
            sample = next(iter(dataset)) if stream else dataset[0]
            alone = loader.batch_sampler is None  # a batch by itself
            draws.append(collate(sample if alone else [sample]))
        after = rng.state(generators)
    return not _same(before, after), _same(*draws)


def _same(a: Any, b: Any) -> bool:
    """Equal in every number; of what holds none, nothing is said."""
    if isinstance(a, (np.ndarray, np.generic)):
        a, b = torch.as_tensor(a), torch.as_tensor(b)
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b or a != a if isinstance(a, (int, float, complex, str)) else True
