r"""What is random in an evaluation follows from its seed and the sample alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from random import Random

import numpy as np
import torch

from ..memory import modules
from ..training import generators, rng


@contextmanager
def seeded(seed: int, device: torch.device, *owners: object) -> Iterator[None]:
    """Seed the global generators and those of the owners; afterwards all are as before."""
    own = rng.generators(chain(owners, modules(*owners)))
    states = [generators.state(generator) for generator in own]
    others = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            # Not torch.manual_seed, which also seeds GPUs that nobody brings back
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            for generator in own:
                generators.seed(generator, seed)
            yield
    finally:
        for generator, state in zip(own, states, strict=True):
            generators.restore(generator, state)
        np.random.set_state(others[0])
        random.setstate(others[1])


def seed_of(seed: int, purpose: str, number: int) -> int:
    """A seed for one purpose, unrelated to its neighbours."""
    return Random(f"{seed}, {purpose}, {number}").getrandbits(62)
