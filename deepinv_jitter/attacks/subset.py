r"""Some samples of a batch as a problem of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from deepinv.physics import Physics

from ..memory import Memory, modules
from .problem import Problem


@contextmanager
def subset(problem: Problem, rows: torch.Tensor) -> Iterator[Problem]:
    r"""
    The problem of some samples; what is found for them is brought back into that of all.

    Nothing tells which parameters of a physics belong to the samples one by one. But the losses at
    the worst points so far are known: a physics that gives them again is that of the samples. Tried
    are the physics as it is and the one with all tensors cut that are as long as the batch. Where
    neither does, as for a model that mixes the samples of a batch, all samples go on.

    :param Problem problem: the problem of all samples.
    :param torch.Tensor rows: the numbers of the samples.
    """
    if len(rows) < len(problem.eps):
        part = problem.take(rows)
        for as_it_is in (nullcontext(), _cut(problem.physics, rows, len(problem.eps))):
            with as_it_is:
                if _is_known(part):
                    yield part
                    problem.put(rows, part)
                    return
    yield problem


def _is_known(part: Problem) -> bool:
    """Whether the losses of the worst points are what they were among all samples."""
    try:
        with torch.no_grad():
            loss = part.value(part.worst)
    except Exception:  # of whatever kind a wrong batch size makes a model or a physics raise
        return False
    return torch.allclose(loss, part.worst_loss, rtol=1e-3)


@contextmanager
def _cut(physics: Physics, rows: torch.Tensor, count: int) -> Iterator[None]:
    memory = Memory(modules(physics))
    per_sample = [t for t in memory.tensors if t.shape[:1] == (count,)]
    try:
        memory.restore({id(t): t[rows] for t in per_sample})
        yield
    finally:
        memory.restore()
