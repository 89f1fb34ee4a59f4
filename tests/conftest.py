"""Fixtures: small problems, no network, no GPU needed."""

import sys
from pathlib import Path

import pytest
import torch

# The modules behind the paper's tables have tests of their own
sys.path.append(str(Path(__file__).parent.parent / "examples" / "paper"))

# The tests are small and run side by side: more threads would only wait for each other
torch.set_num_threads(1)

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


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
