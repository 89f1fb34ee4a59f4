r"""The state of everything random in a run: kept, brought back, and different in each process."""

from __future__ import annotations

import random
from collections.abc import Iterable
from random import Random
from typing import Any

import numpy as np
import torch

from . import generators as own
from .generators import Generator

Generators = dict[str, Generator] | list[Generator]


def generators(owners: Iterable[object]) -> list[Generator]:
    """The generators that can be reached from objects, once each."""
    return list(own.named({str(i): owner for i, owner in enumerate(owners)}).values())


def state(generators: Generators) -> dict:
    """State of the global generators and of these, as tensors and builtins for ``weights_only``."""
    keyed = generators.items() if isinstance(generators, dict) else enumerate(generators)
    legacy: Any = np.random.get_state()
    name, keys, *rest = legacy
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
        "python": random.getstate(),
        "generators": {k: own.state(g) for k, g in keyed},
    }


def restore(state: dict, generators: Any) -> None:
    """Bring a state back, to the very generators that it is of."""
    for key, place in state["generators"].items():
        own.restore(generators[key], place)
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])


def diverge(generators: Iterable[Generator], process: int) -> None:
    """
    Send a process' generators on streams of their own, which follow from where they are.

    Processes run the same script with the same seeds, and would otherwise draw the same noise. The
    first one draws what a single process draws.
    """
    if process == 0:
        return
    for generator in generators:
        own.seed(generator, _other(own.drawn(generator), process))
    torch.manual_seed(_other(int(torch.randint(2**62, (), device="cpu")), process))
    np.random.seed(_other(np.random.randint(2**31), process) % 2**32)
    random.seed(_other(random.getrandbits(62), process))


def _other(seed: int, process: int) -> int:
    # "rank", as ever: the streams follow from this text
    return Random(f"{seed}, rank {process}").getrandbits(62)
