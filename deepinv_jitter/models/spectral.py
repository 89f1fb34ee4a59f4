r"""Spectral normalisation, a baseline of Table 5."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from .. import checks

LAYERS = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


def spectral_normalize(module: nn.Module, *, n_power_iterations: int = 1) -> nn.Module:
    r"""
    Divide the weight of every linear layer and convolution, transposed or not, by its spectral
    norm, in place.

    Lipschitz regularisation by spectral normalisation (Miyato et al., ICLR 2018), as in the paper's
    Table 5, by torch's own parametrisation: the norm is that of the weight as a matrix, one row per
    output channel, estimated by a power iteration that goes on in training mode. Layers that are
    normalised already stay as they are. A weight of zeros has no direction and is initialised anew
    first, so that an :class:`UnrolledDnCNN` no longer starts as the plain algorithm.

    Normalisation layers are not bounded by it, nor is the data step of an unrolled network.

    :param torch.nn.Module module: a network, or any model that holds one.
    :param int n_power_iterations: power iterations for each forward pass in training mode, at least
        1. Default: 1.
    :return: (:class:`torch.nn.Module`) ``module``.
    :raises TypeError: if ``module`` is no module or the number is not whole.
    :raises ValueError: if the number is below 1, or the module has no such layer.

    |sep|

    :Examples:

    >>> import torch, deepinv_jitter as dj
    >>> network = dj.spectral_normalize(dj.UnrolledDnCNN(1, depth=3, width=8))
    >>> weight = network.eval().body[0].weight
    >>> bool(torch.linalg.matrix_norm(weight.flatten(1), 2) < 1.1)
    True
    """
    checks.instance("module", module, nn.Module, "torch.nn.Module")
    iterations = checks.whole("n_power_iterations", n_power_iterations, 1)
    layers = [m for m in module.modules() if isinstance(m, LAYERS)]
    if not layers:
        raise ValueError(
            "module must hold a convolution or a linear layer, got "
            f"{type(module).__name__} without one."
        )
    for layer in layers:
        # Another parametrization, such as weight normalisation, may be beside it; torch's former
        # spectral norm is a hook
        parts = [*layer.modules(), *layer._forward_pre_hooks.values()]
        if any(type(part).__name__ in ("_SpectralNorm", "SpectralNorm") for part in parts):
            continue
        if not layer.weight.any():
            layer.reset_parameters()
        spectral_norm(layer, n_power_iterations=iterations)
    return module
