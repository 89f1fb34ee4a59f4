r"""What a model keeps from one call to the next: every call of an evaluation starts without it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from types import CellType, FunctionType

import torch
from deepinv.physics import Physics
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

#: What every module has
OWN = frozenset(vars(nn.Module()))

#: What modules are found in
HOLDERS = (nn.Module, dict, list, tuple, FunctionType)


class Memory:
    r"""
    The attributes and buffers of modules, as they are now, to be brought back.

    Modules in lists and dictionaries count, too: an algorithm of deepinv that is not unfolded keeps
    its priors there. Submodules that were not there before go. Parameters, training modes, hooks,
    what replaces a submodule, and physics that others hold are left alone.

    :param torch.nn.Module modules: the modules, with all that they hold.
    """

    def __init__(self, *modules: nn.Module):
        self.held = held(*modules)
        self.own = [
            (vars(m), {k: v for k, v in vars(m).items() if k not in OWN})
            for m in self.held
        ]
        self.own += [(m._buffers, dict(m._buffers)) for m in self.held]
        self.children = [(m._modules, set(m._modules)) for m in self.held]
        self.boxes = [
            (box, copy.copy(box))
            for _, before in self.own
            for box in before.values()
            if isinstance(box, (dict, list, set))
        ]

    def restore(self, tensors: dict[int, torch.Tensor] | None = None) -> None:
        """Bring everything back, with tensors that stand for others by the id of those."""
        for children, before in self.children:
            for name in children.keys() - before:
                del children[name]
        for values, before in self.own:
            for name in values.keys() - before.keys() - OWN:
                del values[name]
            values.update(before)
            if tensors:
                values.update(
                    {k: tensors[id(v)] for k, v in before.items() if id(v) in tensors}
                )
        for box, before in self.boxes:
            box.clear()
            box.extend(before) if isinstance(box, list) else box.update(before)


@contextmanager
def forgetful(model: nn.Module) -> Iterator[None]:
    r"""
    Every call of the model starts from what it keeps now, and so does what comes after.

    Without, a model that starts where its last call ended, as deepinv's ``TVDenoiser`` does, would
    give results that depend on the samples it saw before.

    :param torch.nn.Module model: the model; meanwhile its attributes and buffers cannot be set.
    """
    memory = Memory(model)
    originals = [
        value
        for _, before in memory.own
        for value in before.values()
        if isinstance(value, torch.Tensor)
    ]
    # A call may write into copies alone, new ones each time: a graph may need the last ones
    copies = {id(tensor): tensor.detach().clone() for tensor in originals}
    fresh = {key: copy._version for key, copy in copies.items()}

    def forget(*_) -> None:
        for tensor in originals:
            if copies[id(tensor)]._version != fresh[id(tensor)]:
                copies[id(tensor)] = tensor.detach().clone()
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
def evaluated(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, which silences all jitter, and no memory; every module comes back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with forgetful(model):
            yield
    finally:
        # Not module.train(), which reaches down and may be overridden
        for module, training in modes:
            module.training = training


def held(*roots: nn.Module) -> list[nn.Module]:
    """
    The modules with those they hold, also in containers and closures, once each.

    But a physics in a model has the parameters that its batches give it, what torch compiled to its
    own language has none of python's attributes, and its wrappers for many GPUs have their own.

    :param torch.nn.Module roots: the modules.
    """
    seen, left = {}, [*roots]
    while left:
        thing = left.pop()
        if isinstance(thing, (Physics, torch.jit.ScriptModule)) and thing not in roots:
            continue
        if isinstance(thing, (DataParallel, DistributedDataParallel)):
            thing = thing.module
        if isinstance(thing, HOLDERS) and id(thing) not in seen:
            seen[id(thing)] = thing
            left += _parts(thing)
    return [thing for thing in seen.values() if isinstance(thing, nn.Module)]


def _parts(thing: object) -> list:
    if isinstance(thing, nn.Module):
        return [vars(thing)]
    if isinstance(thing, FunctionType):
        return [cell.cell_contents for cell in thing.__closure__ or () if _filled(cell)]
    return list(thing.values() if isinstance(thing, dict) else thing)


def _filled(cell: CellType) -> bool:
    try:
        cell.cell_contents
    except ValueError:  # of a name that has no value yet
        return False
    return True
