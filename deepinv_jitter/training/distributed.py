r"""
Many processes, one run: what trainers and evaluations need of ``torch.distributed``.

Without an initialised process group there is one process, and everything here does nothing.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

import torch
from torch import distributed, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, Sampler

T = TypeVar("T")


def count() -> int:
    """Number of processes."""
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if ready else 1


def own() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if count() > 1 else 0


def gathered(thing: T) -> list[T]:
    """What every process has to say, in their order, on every process; tensors on the CPU."""
    if count() == 1:
        return [thing]
    # Not the thing itself: its tensors would arrive on the GPU of the process that they come from,
    # of which others may know nothing, and which may have no room for them
    said = io.BytesIO()
    torch.save(thing, said)
    all_said: list[Any] = [None] * count()
    distributed.all_gather_object(all_said, said.getvalue())
    return [torch.load(io.BytesIO(s), map_location="cpu", weights_only=False) for s in all_said]


def largest(numbers: list[int], device: torch.device) -> list[int]:
    """Each number as its largest value on any process."""
    if count() == 1:
        return numbers
    tensor = torch.tensor(numbers, device=device)
    distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
    return tensor.tolist()


def check_same(name: str, value: object) -> None:
    """Refuse what differs between processes, before they wait for each other in vain."""
    values = gathered(value)
    if any(other != value for other in values):
        raise ValueError(f"{name} must be the same on all processes, got {values}.")


def share(tensors: Iterable[torch.Tensor]) -> None:
    """Give every process those of the first, such as running means."""
    if count() > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, 0)


def check_plain(model: nn.Module) -> None:
    """Refuse a model in one of torch's wrappers for many GPUs."""
    if isinstance(model, (DataParallel, DistributedDataParallel)):
        raise TypeError(
            f"model must be the plain model, got {type(model).__name__}: give model.module, and "
            "start one process per GPU with torchrun; trainers wrap the model themselves."
        )


class ShardSampler(Sampler[int]):
    r"""
    The share of this process in data for evaluation: every sample on one process, once.

    :class:`torch.utils.data.DistributedSampler` repeats samples until all processes have equally
    many, which counts some twice. In training that is needed and meant, in evaluation it is an
    error.

    :param Sized data: the data set, at least one sample for each process.
    :raises ValueError: if there are fewer samples than processes.

    |sep|

    :Examples:

    >>> import deepinv_jitter as dj
    >>> list(dj.ShardSampler(dj.PointDataset(3)))  # in a single process
    [0, 1, 2]
    """

    def __init__(self, data: Sized):
        if len(data) < count():
            raise ValueError(
                f"data must hold a sample for each of {count()} processes, got {len(data)}: "
                "evaluate without a sampler, the same on all processes."
            )
        self.indices = range(own(), len(data), count())

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def set_epoch(loaders: Iterable[DataLoader], epoch: int) -> None:
    """Tell the samplers, whose order follows from the epoch."""
    for loader in loaders:
        for sampler in _samplers(loader):
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)


def check_loaders(training: list[DataLoader], evaluation: list[DataLoader]) -> None:
    """Refuse loaders that lose samples, count them twice or give processes the same ones."""
    if any(getattr(loader, "drop_last", False) for loader in [*training, *evaluation]):
        raise ValueError(
            "Data loaders must have drop_last=False, got True: the host would lose one full "
            "batch per epoch on top. Let the last batch be smaller."
        )
    if count() == 1:
        return
    for loader in training:
        stream = isinstance(getattr(loader, "dataset", None), IterableDataset)
        if not stream and _distributed(loader) is None:
            raise ValueError(
                "each training loader must share its data among the processes, got one without "
                "DistributedSampler: use DataLoader(data, sampler=DistributedSampler(data))."
            )
    for sampler in filter(None, map(_distributed, evaluation)):
        data: Any = sampler.dataset
        if sampler.total_size != len(data):
            raise ValueError(
                "evaluation loaders must count every sample once, got a DistributedSampler which "
                f"makes {sampler.total_size} of {len(data)}: use "
                "DataLoader(data, sampler=ShardSampler(data))."
            )
    check_same("the number of training batches", [len(loader) for loader in training])


def _distributed(loader: DataLoader) -> DistributedSampler | None:
    return next((s for s in _samplers(loader) if isinstance(s, DistributedSampler)), None)


def _samplers(loader: DataLoader) -> Iterator[Sampler]:
    """The samplers of a loader, from the outermost to the innermost."""
    sampler = getattr(loader, "batch_sampler", None)
    if sampler is None:  # not by its length, which that of a stream does not have
        sampler = getattr(loader, "sampler", None)
    while sampler is not None:
        yield sampler
        sampler = getattr(sampler, "sampler", None)
