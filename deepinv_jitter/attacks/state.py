r"""What modules remember: brought back after they were used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .parts import modules


@contextmanager
def preserved(*roots: nn.Module) -> Iterator[None]:
    r"""
    Use modules, and find them as they were, also after an exception.

    Brought back are buffers, whether replaced or written to; attributes that were bound anew, such
    as a mode, a counter or where a solver starts from; and the generators held as attributes. Not
    brought back are the values of parameters, and what is changed inside a list or a dictionary, or
    outside of the modules.

    In the meantime the modules hold copies of their buffers: the originals are never written to, so
    a graph that saved them for its backward pass is still valid.

    :param torch.nn.Module roots: the modules; those below them, and the parts of stacked physics,
        are found.
    """
    found = list(dict.fromkeys(m for root in roots for m in modules(root)))
    before = [(m, m.training, vars(m).copy(), dict(m._buffers.items())) for m in found]
    originals = {id(b): b for *_, buffers in before for b in buffers.values()}
    # One copy each, as modules may share a buffer
    copies = {
        key: buffer if buffer is None else buffer.detach().clone()
        for key, buffer in originals.items()
    }
    generators = {
        value: value.get_state()
        for module in found
        for value in vars(module).values()
        if isinstance(value, torch.Generator)
    }
    try:
        for module, *_, buffers in before:
            for name, buffer in buffers.items():
                module._buffers[name] = copies[id(buffer)]
        yield
    finally:
        for module, training, attributes, buffers in before:
            vars(module).clear()
            vars(module).update(attributes)
            # Not module.train(), which reaches down and may be overridden
            module.training = training
            for name in [*module._buffers.keys()]:
                if name not in buffers:
                    del module._buffers[name]
            for name, buffer in buffers.items():
                module._buffers[name] = buffer
        for generator, state in generators.items():
            generator.set_state(state)
