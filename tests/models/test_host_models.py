"""deepinv's own tests of unrolled models, run on jittered ones."""

from types import SimpleNamespace

import deepinv as dinv
import pytest
from host_suite import host_module, host_test

import deepinv_jitter as dj

host = host_module("test_unfolded")
conftest = host_module("conftest")
imsize, dummy_dataset = conftest.imsize, conftest.dummy_dataset

# Anderson acceleration is refused with jitter; DRS is ours to add to the host's five
CASES = [c for c in host.UNFOLDED_ALGO_PARAMS if not c[1]] + [("DRS", False, False)]
test_unfolded = host_test(host, "test_unfolded", **{"unfolded_algo, and_acc, full_backprop": CASES})


@pytest.fixture(autouse=True)
def jittered(monkeypatch):
    def build(algorithm):
        return lambda **kwargs: dj.jitter(algorithm(**kwargs), 0.1)

    algorithms = {name: build(getattr(dinv.optim, name)) for name, *_ in CASES}
    others = {"AndersonAccelerationConfig": dinv.optim.AndersonAccelerationConfig}
    monkeypatch.setattr(host, "optim", SimpleNamespace(**algorithms, **others))
