"""The bound of Corollary 6.2: as printed, and with the constants that its proof needs."""

import math

import pytest
from corollary import convergence_bound


def test_convergence_bound_is_the_arithmetic_of_the_corollary():
    bound, stepsize = convergence_bound(0.5, 4.0, 16, gap=5.0, delta=3.0)
    assert bound == pytest.approx((2 * 0.5 * 4 / 16) ** 0.5 * (2 * 5 + 3))
    assert stepsize == pytest.approx((2 / (0.5 * 4 * 16)) ** 0.5)


@pytest.mark.parametrize("max_iter", [1, 4, 50])
@pytest.mark.parametrize("sigma", [0.0, 0.5, 5.0])
def test_the_bound_holds_with_the_constants_of_the_whole_objective(max_iter, sigma):
    """F(x) = ||x/2 - 1||^2 / 2 + c ||x||^2 / 2 in 3 dimensions, exactly in the second moment."""
    c, n = 0.1, 3
    L = 0.25 + c
    minimizer = 0.5 / L
    delta = n * sigma**2 / (2 * L)
    start = 0.5
    gap = L / 2 * n * (start - minimizer) ** 2
    bound, eta = convergence_bound(L, L, max_iter, gap, delta)
    mean_square, least = n * (start - minimizer) ** 2, math.inf
    for _ in range(max_iter):
        least = min(least, L**2 * mean_square)
        mean_square = (1 - eta * L) ** 2 * mean_square + eta**2 * n * sigma**2
    assert least <= bound


def test_the_bound_as_printed_fails_for_a_small_network():
    """Why the docstring asks for other constants: A = 1/2, f = 1e-4 x, y = 1, x_0 = A y."""
    c, A = 1e-4, 0.5
    F = lambda x: (1 - A * x) ** 2 / 2 + c * x**2 / 2  # noqa: E731
    minimizer = A / (A**2 + c)
    gradient = A * (A * A - 1) + c * A
    gap = F(A) - F(minimizer)
    bound, _ = convergence_bound(c, A**2, 1, gap, delta=F(minimizer))
    assert gradient**2 > 10 * bound
