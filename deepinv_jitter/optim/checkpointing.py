r"""Iterations that are recomputed in the backward pass, from the state of the first pass."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext

import torch
from deepinv.optim.optim_iterators import OptimIterator
from torch import nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from ..memory import Memory, device_states, modules, restore_devices
from .iterators import IteratorWrapper, JitteredIterator
from .noise import UNRESTORED, Jitter


class CheckpointedIterator(IteratorWrapper):
    r"""
    Recomputes the iteration in the backward pass instead of keeping its activations.

    Peak memory then hardly grows with the number of iterations, for about a third more time. The
    recomputation starts from the buffers (such as those of batch and spectral normalisation),
    attributes and random generators that the forward pass started from, and changes none of them:
    of buffers and of tensors among the attributes a copy is kept for each iteration.

    :param deepinv.optim.OptimIterator iterator: the iterator to wrap.
    :raises TypeError: if ``iterator`` is not an iterator, or jittered: noise must be drawn outside
        the recomputed part.
    :raises RuntimeError: in the call, if the physics is differentiated by ``torch.func``, as
        deepinv does without its ``A_adjoint`` or ``A_vjp``.
    """

    def __init__(self, iterator: OptimIterator):
        super().__init__(iterator)
        if any(isinstance(m, JitteredIterator) for m in iterator.modules()):
            raise TypeError(
                "A CheckpointedIterator must lie inside the jitter, got a JitteredIterator: its "
                "noise would be drawn again in the backward pass. Checkpoint first, then call "
                "jitter()."
            )

    def forward(
        self, X: dict, cur_data_fidelity, cur_prior, cur_params, y, physics, *args, **kwargs
    ) -> dict:
        """One iteration, recomputed in the backward pass if there is one."""
        arguments = X, cur_data_fidelity, cur_prior, cur_params, y, physics, *args
        if not torch.is_grad_enabled():
            return self.iterator(*arguments, **kwargs)
        # The parameters of a physics may change from batch to batch, but not in an iteration
        start = _Start(modules(self.iterator, cur_data_fidelity, cur_prior), modules(physics))
        # torch stops the second pass early by an exception, which TorchScript does not let through
        try:
            with set_checkpoint_early_stop(False):
                return checkpoint(
                    self.iterator,
                    *arguments,
                    use_reentrant=False,
                    context_fn=lambda: (nullcontext(), start),
                    **kwargs,
                )
        except RuntimeError as error:
            if "saved tensor hooks" not in str(error):
                raise
            raise RuntimeError(
                "an iteration that is recomputed cannot use torch.func, by which deepinv "
                "differentiates a physics without A_adjoint or, if it is not linear, without A_vjp "
                f"of its own: write that method of the {type(physics).__name__}, or leave out "
                "checkpoint=True."
            ) from error


class _Start:
    """
    What modules held at the start of a pass, except the values of their parameters.

    For the second pass :mod:`torch.utils.checkpoint` restores the global generators alone, and not
    those of all devices: batch normalisation would count a batch twice, a module with its own
    generator draw other numbers. As a context, which can be entered again as a graph can have more
    than one backward pass, this brings the start back, and afterwards what the modules held before.
    """

    def __init__(self, changing: Iterable[nn.Module], constant: Iterable[nn.Module]):
        self.found = [*changing], [*constant]
        self.then = [Memory(found) for found in self.found]
        # Of all tensors: which ones the first pass changes in place batch normalisation hides from
        # torch's count of changes, and to compare them would make a GPU wait in every iteration
        self.copies = self.then[0].copies()
        self.draws = device_states(UNRESTORED)

    def __enter__(self) -> None:
        self.now = [Memory(found) for found in self.found]
        self.draws_now = device_states(UNRESTORED)
        restore_devices(self.draws)
        # Copies of the copies: there may be a third pass
        fresh = {
            id(tensor): self.copies[id(tensor)].clone().requires_grad_(tensor.requires_grad)
            for tensor in self.then[0].tensors
        }
        for memory in self.then:
            memory.restore(fresh)
            memory.rewind()
        for module in self.found[0]:
            if isinstance(module, Jitter):
                module.replayed = True

    def __exit__(self, *error) -> None:
        for memory in self.now:
            memory.restore()
            memory.rewind()
        restore_devices(self.draws_now)
