r"""What modules hold besides their weights, such as running means: kept, and brought back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..memory import modules
from . import rng


def tensors(root: nn.Module) -> dict[str, torch.Tensor]:
    """Buffers, and tensors that are plain attributes, once each, by names that stay the same."""
    found, seen = {}, set()
    for i, part in enumerate(modules(root)):
        own = dict(part.named_buffers(recurse=False)) | vars(part)
        for name, value in own.items():
            if isinstance(value, torch.Tensor) and id(value) not in seen:
                seen.add(id(value))
                found[f"{i}.{name}"] = value
    return found


class Snapshot:
    """
    What modules hold besides their weights, as often as it is taken.

    Buffers and tensors that are plain attributes, such as the warm start of a solver; numbers, with
    which a model may count its calls, of the ``counting`` modules alone. The modules are looked for
    once: to look for them costs more than to copy what they hold.
    """

    def __init__(self, roots: Iterable, counting: Iterable[nn.Module] = ()):
        counting = set(counting)
        found = list(modules(*roots))
        self.generators = rng.generators(found)
        # Generators, too: deepinv's noise models take a new one with every call
        always = (torch.Tensor, torch.Generator, type(None))
        self._attributes = []
        for part in found:
            # torch's own layers have nothing but buffers
            if not type(part).__module__.startswith("torch.nn."):
                kinds = (*always, bool, int, float) if part in counting else always
                self._attributes.append((vars(part), kinds))
            if part._buffers:
                self._attributes.append((vars(part)["_buffers"], always))

    def take(self) -> None:
        self._taken = [
            (own, {k: v for k, v in own.items() if isinstance(v, kinds)})
            for own, kinds in self._attributes
        ]
        values = (v for _, kept in self._taken for v in kept.values())
        self._contents = {
            id(v): (v, v.detach().clone()) for v in values if isinstance(v, torch.Tensor)
        }

    def restore(self) -> None:
        """Everything as it was, also what was replaced by something else."""
        for own, kept in self._taken:
            for name, value in kept.items():
                # The mode a pass sets as it needs it; and what is made once may stay
                made = value is None and not isinstance(own[name], torch.Tensor)
                if name != "training" and not made:
                    own[name] = value
        for tensor, content in self._contents.values():
            tensor.data = content

    @contextmanager
    def unnoticed(self, stream: int = 0) -> Iterator[None]:
        """
        What happens inside leaves no trace in the modules, nor in any random generator.

        It draws from a stream that follows from where the generators are; from stream 0 what would
        be drawn next.
        """
        self.take()
        try:
            with rng.kept(self.generators):
                rng.diverge(self.generators, stream)
                yield
        finally:
            self.restore()
