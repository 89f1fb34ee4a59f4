r"""
What modules hold besides their parameters, and the global random generators of devices: found, and
brought back after they were used.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FunctionType

import torch
from deepinv.physics import Physics
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

#: Kinds of devices that have global random generators of their own.
DEVICES = ("cuda", "xpu", "mps")
#: What modules are found in.
HOLDERS = (nn.Module, dict, list, tuple, FunctionType)
#: What every module has.
OWN = frozenset(vars(nn.Module()))


def modules(
    *roots: object, leave: type[nn.Module] | tuple[type[nn.Module], ...] = ()
) -> Iterator[nn.Module]:
    """
    All modules of some, once each, also those in plain lists, dictionaries and closures, where
    deepinv keeps the parts of stacked physics and the priors of an algorithm. Those of a kind to
    leave are left out, with all that only they hold.
    """
    seen: dict[int, object] = {}
    left = [*reversed(roots)]
    while left:
        thing = left.pop()
        if not isinstance(thing, HOLDERS) or id(thing) in seen:
            continue
        seen[id(thing)] = thing
        if isinstance(thing, leave):
            continue
        inner: Iterable
        if isinstance(thing, (DataParallel, DistributedDataParallel)):
            inner = [thing.module]  # the wrapper's own state is not the model's
        elif isinstance(thing, nn.Module):
            yield thing
            inner = [*thing.children(), *vars(thing).values()]
        elif isinstance(thing, FunctionType):
            inner = closed_over(thing).values()
        else:
            inner = thing.values() if isinstance(thing, dict) else thing
        # Empty dictionaries are most of what a module holds
        left += reversed([part for part in inner if isinstance(part, HOLDERS) and part != {}])


def closed_over(function: FunctionType) -> dict[str, object]:
    """What a function closes over, by name."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # of a name that has no value yet
            found[name] = cell.cell_contents
    return found


def own_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """The buffers of a model, by name, but those of a physics in it, which are its last batch's."""
    physics = [m for m in model.modules() if isinstance(m, Physics)]
    given = {id(b) for m in physics for b in m.buffers()}
    return {name: b for name, b in model.named_buffers() if id(b) not in given}


class Memory:
    r"""
    The attributes and buffers of modules, as they are now, to be brought back.

    Attributes that are lists, dictionaries or sets come back with what they hold; submodules that
    were not there before go. Parameters, hooks and what replaces a submodule are left alone.
    """

    def __init__(self, found: Iterable[nn.Module]):
        found = list(found)
        attributes = [(vars(m), {k: v for k, v in vars(m).items() if k not in OWN}) for m in found]
        # Those of a compiled module are no dictionary
        buffers = [(m._buffers, dict(m._buffers.items())) for m in found]
        self.own = attributes + buffers
        self.children = [(m._modules, {*m._modules.keys()}) for m in found]
        held = [value for _, before in attributes for value in before.values()]
        self.boxes = [(box, copy.copy(box)) for box in held if isinstance(box, (dict, list, set))]
        # Of children, too: a parallel wrapper is none of those found
        self.modes = [(m, m.training) for parent in found for m in (parent, *parent.children())]
        # A noise model, which is no module, may have one
        generators = [getattr(value, "generator", value) for value in held]
        self.generators = {g: g.get_state() for g in generators if isinstance(g, torch.Generator)}

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All tensors among the attributes and buffers."""
        values = (value for _, before in self.own for value in before.values())
        return [value for value in values if isinstance(value, torch.Tensor)]

    def copies(self) -> dict[int, torch.Tensor]:
        """Copies of the tensors, one each, by the id of those, as modules may share a buffer."""
        return {id(tensor): copied(tensor) for tensor in self.tensors}

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
    def holding(self, others: dict[int, torch.Tensor]) -> Iterator[None]:
        """Other tensors in the place of some, by the id of those; afterwards all is as before."""
        try:
            self.restore(others)
            yield
        finally:
            self.restore()

    def rewind(self) -> None:
        """Bring back training modes, and the state of the generators held as attributes."""
        for module, training in self.modes:
            # Not module.train(), which reaches down and may be overridden
            module.training = training
        for generator, state in self.generators.items():
            generator.set_state(state)


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
    """
    memory = Memory(modules(*roots))
    try:
        with memory.holding(memory.copies()):
            yield
    finally:
        memory.rewind()


@contextmanager
def forgetful(model: nn.Module) -> Iterator[None]:
    r"""
    Every call of the model starts from what it keeps now, and so does what comes after.

    Without, a model that starts where its last call ended, as deepinv's ``TVDenoiser`` does, would
    give results that depend on the samples it saw before. A physics in the model is left alone: it
    has the parameters that its batches give it. Meanwhile attributes and buffers cannot be set.
    """
    memory = Memory(modules(model, leave=Physics))
    originals = memory.tensors
    # A call may write into copies alone, new ones each time: a graph may need the last ones
    copies = memory.copies()

    def forget(*_) -> None:
        for tensor in originals:
            if copies[id(tensor)]._version > 0:  # it was written to
                copies[id(tensor)] = copied(tensor)
        memory.restore(copies)

    # Before a call and not after it: its backward pass may repeat a part of it, with what it set
    handle = model.register_forward_pre_hook(forget, prepend=True)
    try:
        yield
    finally:
        handle.remove()
        memory.restore()


@contextmanager
def evaluated(model: nn.Module, *others: object) -> Iterator[None]:
    """Evaluation mode, which silences all jitter, and no memory; all is as before afterwards."""
    with preserved(model, *others), forgetful(model):
        reached: set[nn.Module] = set()
        for module in modules(model):
            # eval() reaches no further than modules(): not into the priors of an algorithm that is
            # not unfolded. What it reaches may refuse, such as dropout that is always on
            if module not in reached:
                module.eval()
                reached.update(module.modules())
        yield


def device_states(kinds: Iterable[str] = DEVICES) -> dict[str, list[torch.Tensor]]:
    """Where the global generators of devices are, by kind; none of a kind that is not in use."""
    states: dict[str, list[torch.Tensor]] = {}
    for kind in kinds:
        module = getattr(torch, kind)
        if kind == "mps":
            states[kind] = [module.get_rng_state()] if torch.backends.mps.is_available() else []
        else:
            states[kind] = module.get_rng_state_all() if module.is_initialized() else []
    return states


def restore_devices(states: Mapping[str, list[torch.Tensor]]) -> None:
    """Bring the global generators back, of kinds of which there are as many devices as then."""
    for kind, now in device_states().items():
        before = states.get(kind, [])
        if before and len(before) == len(now):
            if kind == "mps":
                torch.mps.set_rng_state(before[0])
            else:
                getattr(torch, kind).set_rng_state_all(before)


def seed_torch(seed: int) -> None:
    """
    Seed torch's global generators; not torch.manual_seed, which also seeds those of devices that
    are not in use yet, and so are not kept.
    """
    torch.default_generator.manual_seed(seed)
    for kind, states in device_states().items():
        if states:
            module = getattr(torch, kind)
            getattr(module, "manual_seed_all", module.manual_seed)(seed)


@contextmanager
def same_draws() -> Iterator[None]:
    """Torch's global generators are afterwards where they are now."""
    cpu, devices = torch.get_rng_state(), device_states()
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        restore_devices(devices)


def copied(tensor: torch.Tensor) -> torch.Tensor:
    # Copies made in inference mode would not count what is written to them
    with torch.inference_mode(False):
        return tensor.detach().clone()
