r"""What modules remember: brought back after they were used, or after every call."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from deepinv.physics import Physics
from torch import nn

from .parts import modules

#: What every module has.
OWN = frozenset(vars(nn.Module()))


class Memory:
    r"""
    The attributes and buffers of modules, as they are now, to be brought back.

    Attributes that are lists, dictionaries or sets come back with what they hold; submodules that
    were not there before go. Parameters, training modes, hooks and what replaces a submodule are
    left alone.

    :param Iterable[torch.nn.Module] found: the modules, each with its own attributes only.
    """

    def __init__(self, found: Iterable[nn.Module]):
        found = list(found)
        attributes = [(vars(m), {k: v for k, v in vars(m).items() if k not in OWN}) for m in found]
        # Those of a compiled module are no dictionary
        buffers = [(m._buffers, dict(m._buffers.items())) for m in found]
        self.own = attributes + buffers
        self.children = [(m._modules, {*m._modules.keys()}) for m in found]
        self.boxes = [
            (box, copy.copy(box))
            for _, before in attributes
            for box in before.values()
            if isinstance(box, (dict, list, set))
        ]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All tensors among the attributes and buffers."""
        values = (value for _, before in self.own for value in before.values())
        return [value for value in values if isinstance(value, torch.Tensor)]

    def restore(self, copies: dict[int, torch.Tensor] | None = None) -> None:
        """Bring everything back, with copies that stand for tensors by the id of those."""
        copies = copies or {}
        for children, names in self.children:
            for name in {*children.keys()} - names:
                del children[name]
        for values, before in self.own:
            for name in {*values.keys()} - {*before} - OWN:
                del values[name]
            for name, value in before.items():
                values[name] = copies.get(id(value), value)
        for box, content in self.boxes:
            box.clear()
            box.extend(content) if isinstance(box, list) else box.update(content)


@contextmanager
def preserved(*roots: object) -> Iterator[None]:
    r"""
    Use modules, and find them as they were, also after an exception.

    Brought back are modes, buffers and attributes, whether replaced or written to, what lists and
    dictionaries among them hold, such as a counter or where a solver starts from; and the
    generators held as attributes. Not brought back are the values of parameters, and what is
    changed outside of the modules.

    In the meantime the modules hold copies of their tensors: the originals are never written to, so
    a graph that saved them for its backward pass is still valid.

    :param torch.nn.Module roots: the modules; those below them, the parts of stacked physics and
        others in lists and dictionaries are found.
    """
    found = list(modules(*roots))
    memory, modes = Memory(found), [(module, module.training) for module in found]
    generators = {
        value: value.get_state()
        for module in found
        for value in vars(module).values()
        if isinstance(value, torch.Generator)
    }
    try:
        # One copy each, as modules may share a buffer
        memory.restore({id(tensor): _copied(tensor) for tensor in memory.tensors})
        yield
    finally:
        memory.restore()
        # Not module.train(), which reaches down and may be overridden
        for module, training in modes:
            module.training = training
        for generator, state in generators.items():
            generator.set_state(state)


@contextmanager
def forgetful(model: nn.Module) -> Iterator[None]:
    r"""
    Every call of the model starts from what it keeps now, and so does what comes after.

    Without, a model that starts where its last call ended, as deepinv's ``TVDenoiser`` does, would
    give results that depend on the samples it saw before. A physics in the model is left alone: it
    has the parameters that its batches give it.

    :param torch.nn.Module model: the model; meanwhile its attributes and buffers cannot be set.
    """
    memory = Memory(modules(model, leave=Physics))
    originals = memory.tensors
    # A call may write into copies alone, new ones each time: a graph may need the last ones
    copies = {id(tensor): _copied(tensor) for tensor in originals}
    fresh = {key: copy._version for key, copy in copies.items()}

    def forget(*_) -> None:
        for tensor in originals:
            if copies[id(tensor)]._version != fresh[id(tensor)]:
                copies[id(tensor)] = _copied(tensor)
                fresh[id(tensor)] = copies[id(tensor)]._version
        memory.restore(copies)

    forget()
    handle = model.register_forward_hook(forget, always_call=True)
    try:
        yield
    finally:
        handle.remove()
        memory.restore()


@contextmanager
def evaluated(model: nn.Module, *others: object) -> Iterator[None]:
    """Evaluation mode, which silences all jitter, and no memory; all is as before afterwards."""
    with preserved(model, *others), forgetful(model):
        model.eval()
        yield


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    # Copies made in inference mode would not count what is written to them
    with torch.inference_mode(False):
        return tensor.detach().clone()
