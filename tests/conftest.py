"""Fixtures: small problems, no network, no GPU needed."""

import signal
import sys
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path

import pytest

# The modules behind the paper's tables have tests of their own
sys.path.append(str(Path(__file__).parent.parent / "examples" / "paper"))

#: Fixtures that start other processes: tests that ask for one are slow.
PROCESSES = {"folder", "found", "outcomes"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """
    Mark what ``-m fast`` runs: of every test its first case, except those marked as slow; and begin
    with the slow ones, so that no process has to wait for them at the end.
    """
    found = set()
    for item in items:
        if PROCESSES & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
        test = item.nodeid.split("[")[0]
        if test not in found and not item.get_closest_marker("slow"):
            item.add_marker("fast")
            found.add(test)
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session", autouse=True)
def process():
    """
    The tests are small and run side by side: more threads would only wait for each other. And no
    test waits for the next second, by which deepinv names the folder of a run.
    """
    # The process that hands out the tests does not need them
    import deepinv.training.trainer
    import torch

    from deepinv_jitter.training import host

    torch.set_num_threads(1)
    # Ignored where a script started the tests in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
    seconds = (datetime.now() + timedelta(seconds=n) for n in count())
    with pytest.MonkeyPatch.context() as patch:
        for module in (deepinv.training.trainer, host):
            patch.setattr(module, "get_timestamp", lambda: f"{next(seconds):%y-%m-%d-%H:%M:%S}")
        yield


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    import torch

    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def seeded():
    import torch

    torch.manual_seed(0)
