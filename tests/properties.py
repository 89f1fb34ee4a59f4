"""The contracts, as functions that tests apply to tables of cases."""

import random
from contextlib import contextmanager

import numpy as np
import torch


def global_rng_state():
    numpy_state = np.random.get_state()
    return [
        torch.get_rng_state().tolist(),
        (numpy_state[1].tolist(), *numpy_state[2:]),
        random.getstate(),
    ]


@contextmanager
def assert_global_rng_untouched():
    before = global_rng_state()
    yield
    assert global_rng_state() == before, "a global random generator moved"


def assert_same(a, b):
    assert list(a) == list(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name


def assert_same_parameters(model, other):
    assert_same(model.state_dict(), other.state_dict())


def gradients(model):
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def assert_same_gradients(first, second):
    assert len(first) == len(second) and any(g is not None for g in first)
    for a, b in zip(first, second, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)
