r"""The state of everything random in a run: kept, brought back, and different in each process."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from random import Random

import numpy as np
import torch

from . import generators as own
from .generators import Generator

Generators = Mapping[str, Generator] | Iterable[Generator]


def generators(owners: Iterable[object]) -> list[Generator]:
    """The generators that can be reached from objects, once each."""
    return list(own.named({str(i): owner for i, owner in enumerate(owners)}).values())


def state(generators: Generators) -> dict:
    """State of the global generators and of these, as tensors and builtins for ``weights_only``."""
    name, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
        "python": random.getstate(),
        "generators": {k: own.state(g) for k, g in _keyed(generators).items()},
    }


def restore(state: dict, generators: Generators) -> None:
    """Bring a state back, to the very generators that it is of."""
    keyed = _keyed(generators)
    for key, place in state["generators"].items():
        own.restore(keyed[key], place)
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])


def diverge(generators: Iterable[Generator], rank: int) -> None:
    """
    Send a process' generators on streams of their own, which follow from where they are.

    Processes run the same script with the same seeds, and would otherwise draw the same noise. The
    first one draws what a single process draws.
    """
    if rank == 0:
        return
    for generator in generators:
        own.seed(generator, _other(own.drawn(generator), rank))
    torch.manual_seed(_other(int(torch.randint(2**62, ())), rank))
    np.random.seed(_other(np.random.randint(2**31), rank) % 2**32)
    random.seed(_other(random.getrandbits(62), rank))


def _keyed(generators: Generators) -> dict:
    named = isinstance(generators, Mapping)
    return dict(generators if named else enumerate(generators))


def _other(seed: int, rank: int) -> int:
    return Random(f"{seed}, rank {rank}").getrandbits(62)
