"""Fixtures: small problems, no network, no GPU needed."""

import sys
from pathlib import Path

import pytest
import torch

# The modules behind the paper's tables have tests of their own
sys.path.append(str(Path(__file__).parent.parent / "examples" / "paper"))

# The tests are small and run side by side: more threads would only wait for each other
torch.set_num_threads(1)


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
