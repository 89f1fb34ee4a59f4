"""One evaluation of each kind of problem, for all tests that look at it."""

import pytest
from evaluation_cases import PROBLEMS, evaluate


@pytest.fixture(scope="session", params=PROBLEMS, ids=lambda p: p.__name__)
def case(request):
    model, x, physics, epsilons, shift = request.param()
    return evaluate(model, [x[:3], x[3:]], physics, [0.0, *epsilons], shifts=shift)
