r"""
Iterations that are recomputed in the backward pass, from the state of the first pass.

For the second pass :mod:`torch.utils.checkpoint` restores the global random generators and nothing
else. Without more, batch normalisation would count a batch twice, spectral normalisation would go
on with its power iteration, and a module with its own generator would draw other numbers, silently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from deepinv.optim.optim_iterators import OptimIterator
from torch import nn
from torch.utils.checkpoint import checkpoint

from .iterators import IteratorWrapper, JitteredIterator
from .noise import Jitter


class CheckpointedIterator(IteratorWrapper):
    r"""
    Recomputes the iteration in the backward pass instead of keeping its activations.

    Peak memory then hardly grows with the number of iterations, for about a third more time. The
    recomputation starts from the buffers (such as those of batch and spectral normalisation),
    attributes and random generators that the forward pass started from, and changes none of them.

    :param deepinv.optim.OptimIterator iterator: the iterator to wrap.
    :raises TypeError: if ``iterator`` is not an iterator, or jittered: noise must be drawn outside
        the recomputed part.
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
        fidelity, prior = cur_data_fidelity, cur_prior
        arguments = X, fidelity, prior, cur_params, y, physics, *args
        if not torch.is_grad_enabled():
            return self.iterator(*arguments, **kwargs)
        # The parameters of a physics may change from batch to batch, but not in an iteration
        start = _Start(_modules(self.iterator, fidelity, prior), _modules(physics))
        return checkpoint(
            self.iterator,
            *arguments,
            use_reentrant=False,
            context_fn=lambda: (start.remembered(), _Repeatable(start.restored)),
            **kwargs,
        )


class _Start:
    """What modules held at the start of a pass, except the values of their parameters."""

    def __init__(self, changing: list[nn.Module], constant: list[nn.Module]):
        self.changing = changing
        self.contents = _contents(changing)
        self.tensors = [
            value
            for _, content in self.contents
            for value in content.values()
            if isinstance(value, torch.Tensor)
        ]
        self.contents += _contents(constant)
        self.generators = [(g, g.get_state()) for g in _generators(changing)]
        self.copies: dict[int, torch.Tensor] = {}

    @contextmanager
    def remembered(self) -> Iterator[None]:
        """For the first pass: keeps copies of the tensors that it changes in place."""
        tensors = {id(value): (value, value.detach().clone()) for value in self.tensors}
        yield
        # Compared by value, since batch normalisation bypasses torch's count of changes; read all
        # at once, since each read makes a GPU wait
        flags = [(value != copy).any() for value, copy in tensors.values()]
        flags = torch.stack([flag.to(flags[0].device) for flag in flags]).tolist() if flags else []
        self.copies = {
            key: copy
            for (key, (_, copy)), changed in zip(tensors.items(), flags, strict=True)
            if changed
        }

    @contextmanager
    def restored(self) -> Iterator[None]:
        """For the second pass: the state of the start, and afterwards that of before."""
        now = [(place, dict(place)) for place, _ in self.contents]
        states = [(g, g.get_state()) for g, _ in self.generators]
        # Copies of the copies: there may be a third pass
        fresh = {key: copy.clone() for key, copy in self.copies.items()}
        _put(
            (place, {name: fresh.get(id(v), v) for name, v in content.items()})
            for place, content in self.contents
        )
        _set(self.generators)
        for module in self.changing:
            if isinstance(module, Jitter):
                module.replayed = True
        try:
            yield
        finally:
            _put(now)
            _set(states)


class _Repeatable:
    """A context that can be entered again: a graph can have more than one backward pass."""

    def __init__(self, make: Callable[[], AbstractContextManager]):
        self.make = make

    def __enter__(self):
        self.context = self.make()
        return self.context.__enter__()

    def __exit__(self, *error):
        return self.context.__exit__(*error)


def _modules(*owners: nn.Module | None) -> list[nn.Module]:
    """The modules below some, once each."""
    given = [owner for owner in owners if owner is not None]
    return list(dict.fromkeys(m for owner in given for m in owner.modules()))


def _contents(modules: Iterable[nn.Module]) -> list[tuple[dict, dict]]:
    """Where modules keep attributes and buffers, and what is there."""
    places = [place for m in modules for place in (vars(m), m._buffers)]
    return [(place, dict(place)) for place in places]


def _put(contents: Iterable[tuple[dict, dict]]) -> None:
    for place, content in contents:
        place.clear()
        place.update(content)


def _set(states: Iterable[tuple[torch.Generator, torch.Tensor]]) -> None:
    for generator, state in states:
        generator.set_state(state)


def _generators(modules: Iterable[nn.Module]) -> list[torch.Generator]:
    """The random generators that modules hold, themselves or by a noise model."""
    values = [value for module in modules for value in vars(module).values()]
    values = [getattr(value, "generator", value) for value in values]
    return list(dict.fromkeys(v for v in values if isinstance(v, torch.Generator)))
