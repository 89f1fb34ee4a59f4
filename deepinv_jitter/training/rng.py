r"""The state of everything random in a run: kept, brought back, and made different on each rank."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from random import Random

import numpy as np
import torch


def generators(owners: Iterable[object]) -> Iterator[torch.Generator]:
    """The generators among the attributes of objects, once each."""
    seen = set()
    for owner in owners:
        for value in getattr(owner, "__dict__", {}).values():
            # a generator, or an object that has one, such as a GaussianJitter
            generator = getattr(value, "generator", value)
            if isinstance(generator, torch.Generator) and id(generator) not in seen:
                seen.add(id(generator))
                yield generator


def state(generators: Iterable[torch.Generator]) -> dict:
    """State of the global generators and of these, as tensors and builtins for ``weights_only``."""
    name, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
        "python": random.getstate(),
        "generators": [generator.get_state() for generator in generators],
    }


def restore(state: dict, generators: Iterable[torch.Generator]) -> None:
    """
    Bring a state back.

    :raises ValueError: if the number of generators is another one.
    """
    generators = list(generators)
    if len(generators) != len(state["generators"]):
        raise ValueError(
            "A run resumes with the random generators it was saved with, got "
            f"{len(generators)} in this trainer and {len(state['generators'])} in the "
            "checkpoint: build model, physics and loaders alike."
        )
    for generator, own in zip(generators, state["generators"], strict=True):
        generator.set_state(own)
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])


def diverge(generators: Iterable[torch.Generator], rank: int) -> None:
    """
    Send a rank's generators on streams of their own, which follow from where they are.

    Ranks run the same script with the same seeds, and would otherwise draw the same noise. The
    first rank draws what a single process draws.
    """
    if rank == 0:
        return
    for generator in generators:
        generator.manual_seed(_other(_drawn(generator), rank))
    torch.manual_seed(_other(_drawn(None), rank))
    np.random.seed(_other(np.random.randint(2**31), rank) % 2**32)
    random.seed(_other(random.getrandbits(62), rank))


def _drawn(generator: torch.Generator | None) -> int:
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**62, (), generator=generator, device=device))


def _other(seed: int, rank: int) -> int:
    return Random(f"{seed}, rank {rank}").getrandbits(62)
