r"""Shares of a loader: which samples make each batch, and a loader of some batches alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset


class Indices(Dataset):
    """A data set in which every sample is its index."""

    def __getitem__(self, index: Any) -> Any:
        return index


def indices(loader: Iterable) -> list[list] | None:
    """Of every batch, drawn as the loader itself would; ``None`` where no index tells a sample."""
    if (
        type(loader) is not DataLoader
        or loader.batch_sampler is None
        or isinstance(loader.dataset, IterableDataset)
    ):
        return None
    options: dict[str, Any] = {"collate_fn": list, "generator": loader.generator}
    return list(DataLoader(Indices(), batch_sampler=loader.batch_sampler, **options))


def part(loader: Any, batches: list[list]) -> DataLoader:
    """A loader of some batches alone."""
    names = "num_workers collate_fn pin_memory timeout worker_init_fn multiprocessing_context"
    options: dict[str, Any] = {n: getattr(loader, n) for n in [*names.split(), "prefetch_factor"]}
    return DataLoader(loader.dataset, batch_sampler=batches, **options)
