r"""Everything random in a run: all generators, their states kept and brought back."""

from __future__ import annotations

import functools
import random
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from types import FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from deepinv import Trainer

from .. import checks
from ..memory import closed_over, device_states, modules, restore_devices, seed_torch

Generator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random
Generators = dict[str, Generator] | list[Generator]

#: A longer list is data, unless it begins with a generator.
MOST = 1000

#: What is not looked into. A trainer, which hooks may hold, gives its parts.
LEAVES: tuple[type, ...] = (torch.Tensor, np.ndarray, str, bytes, int, float, complex, type)
LEAVES += (type(None), ModuleType, Trainer)

#: Packages whose objects hold no generators, and those whose functions use no global ones.
PLAIN = {*sys.stdlib_module_names, "numpy"}
KNOWN = {*PLAIN, "torch", "torchvision", "deepinv", "deepinv_jitter"}


def named(*groups: Mapping[str, object]) -> dict[str, Generator]:
    r"""
    Every random generator that can be reached from objects, by the way that leads to it.

    The way goes through attributes, also those of classes; lists, tuples and dictionaries;
    submodules and hooks of modules; partial functions, methods and what functions close over; and
    generators that are global where a function or a method is defined. Long lists are data, and
    not looked into.

    Each is there once, such as ``physics.noise_model.rng``. The order depends on how the objects
    are built alone; of several groups, the nearest ones come first.
    """
    found, seen = {}, {}  # what was seen is held, or another object could get its id
    kinds = set()
    for group in groups:
        queue = deque(group.items())
        while queue:
            name, thing = queue.popleft()
            if id(thing) in seen:
                continue
            seen[id(thing)] = thing
            if isinstance(thing, Generator):
                if not isinstance(thing, random.SystemRandom):  # which has no state
                    while name in found:
                        name += "'"
                    found[name] = thing
                continue
            parts = list(_parts(thing))
            if type(thing) not in kinds:
                new = [kind for kind in type(thing).__mro__ if kind not in kinds]
                kinds.update(new)
                parts += [part for kind in new for part in _class_parts(kind)]
            # Empty dictionaries are most of what a module holds
            queue.extend(
                (name + way, part)
                for way, part in parts
                if not (isinstance(part, LEAVES) or (isinstance(part, dict) and not part))
            )
    return found


def generators(owners: Iterable[object]) -> list[Generator]:
    """The generators that can be reached from objects, once each."""
    return list(named({str(i): owner for i, owner in enumerate(owners)}).values())


def _parts(thing: object) -> Iterator[tuple[str, object]]:
    """What a thing is made of, each with the way to it."""
    if isinstance(thing, dict):
        things = list(thing.items()) if len(thing) <= MOST else []
        for i, (key, value) in enumerate(things):
            # Numbers of hooks depend on how many others were made before
            yield f"[{key if isinstance(key, str) else i}]", value
    elif isinstance(thing, (list, tuple, deque)):
        if len(thing) <= MOST or isinstance(thing[0], Generator):
            yield from ((f"[{i}]", value) for i, value in enumerate(thing))
    elif isinstance(thing, functools.partial):
        yield from {".func": thing.func, "": (*thing.args, thing.keywords)}.items()
    elif isinstance(thing, MethodType):
        yield from {"": thing.__self__, ".function": thing.__func__}.items()
    elif isinstance(thing, FunctionType):
        yield from ((f".{name}", value) for name, value in closed_over(thing).items())
        yield "", (*(thing.__defaults__ or ()), thing.__kwdefaults__ or {})
        if _package(thing) not in KNOWN:
            for name in thing.__code__.co_names:
                if isinstance(thing.__globals__.get(name), Generator):
                    yield f".{name}", thing.__globals__[name]
    elif isinstance(thing, SimpleNamespace) or _package(type(thing)) not in PLAIN:
        own = dict(getattr(thing, "__dict__", {}))
        # After what a module holds itself
        children = own.pop("_modules", {})
        for kind in type(thing).__mro__:
            slots = vars(kind).get("__slots__", ())
            for slot in [slots] if isinstance(slots, str) else slots:
                own.setdefault(slot, getattr(thing, slot, None))
        yield from ((f".{name}", value) for name, value in own.items())
        yield from ((f".{name}", value) for name, value in children.items())


def _class_parts(kind: type) -> Iterator[tuple[str, object]]:
    """Generators that a class holds, and its methods where they are a user's."""
    for name, value in [] if _package(kind) in KNOWN else vars(kind).items():
        if isinstance(value, (Generator, FunctionType)):
            yield f".{kind.__name__}.{name}", value


def _package(thing: type | FunctionType) -> str:
    return (thing.__module__ or "").split(".")[0]


def kind(generator: Generator) -> str:
    """What a state must fit: the type, and the device or the algorithm."""
    if isinstance(generator, torch.Generator):
        return f"torch.Generator on {generator.device.type}"
    if isinstance(generator, np.random.Generator):
        return f"numpy {type(generator.bit_generator).__name__}"
    return type(generator).__name__


def place(generator: Generator) -> torch.Tensor | dict | tuple:
    """Where a generator is, as tensors and builtins for ``weights_only``."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return _plain(generator.bit_generator.state)
    if isinstance(generator, np.random.RandomState):
        return _plain(generator.get_state(legacy=False))
    return generator.getstate()


def put(generator: Generator, place: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = place
    elif isinstance(generator, random.Random):
        generator.setstate(place)
    else:
        generator.set_state(place)


def reseed(generator: Generator, number: int) -> None:
    if isinstance(generator, torch.Generator):
        generator.manual_seed(number)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = type(generator.bit_generator)(number).state
    else:
        generator.seed(number % 2**32)


def drawn(generator: Generator) -> int:
    if isinstance(generator, torch.Generator):
        device = generator.device
        high = checks.widest_draw(device)
        return int(torch.randint(high, (), generator=generator, device=device))
    if isinstance(generator, np.random.Generator):
        return int(generator.integers(2**62))
    if isinstance(generator, np.random.RandomState):
        return int(generator.randint(2**31 - 1))
    return generator.getrandbits(62)


def _plain(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    return checks.plain(state)


def state(generators: Generators) -> dict:
    """State of the global generators and of these, as tensors and builtins for ``weights_only``."""
    keyed = generators.items() if isinstance(generators, dict) else enumerate(generators)
    return {
        "torch": torch.get_rng_state(),
        **device_states(),
        "numpy": _plain(np.random.get_state(legacy=False)),
        "python": random.getstate(),
        "generators": {k: place(g) for k, g in keyed},
    }


def restore(state: dict, generators: Any) -> None:
    """Bring a state back, to the very generators that it is of."""
    for key, before in state["generators"].items():
        put(generators[key], before)
    torch.set_rng_state(state["torch"])
    restore_devices(state)
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])


@contextmanager
def kept(generators: Generators) -> Iterator[dict]:
    """The global generators and these are afterwards where they are now."""
    before = state(generators)
    try:
        yield before
    finally:
        restore(before, generators)


@contextmanager
def seeded(seed: int, *owners: object) -> Iterator[None]:
    """Seed the global generators and those of the owners; afterwards all are as before."""
    own = generators(chain(owners, modules(*owners)))
    with kept(own):
        seed_torch(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        for generator in own:
            reseed(generator, seed)
        yield


def diverge(generators: Iterable[Generator], process: int) -> None:
    """
    Send a process' generators on streams of their own, which follow from where they are.

    Processes run the same script with the same seeds, and would otherwise draw the same noise. The
    first one draws what a single process draws.
    """
    if process == 0:
        return
    # "rank", as ever: the streams follow from this text
    own = f"rank {process}"
    for generator in generators:
        reseed(generator, seed_of(drawn(generator), own))
    seed_torch(seed_of(int(torch.randint(2**62, (), device="cpu")), own))
    np.random.seed(seed_of(np.random.randint(2**31), own) % 2**32)
    random.seed(seed_of(random.getrandbits(62), own))


def seed_of(*words: object) -> int:
    """A seed for one purpose, unrelated to its neighbours."""
    return random.Random(", ".join(map(str, words))).getrandbits(62)
