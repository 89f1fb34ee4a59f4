r"""Noise put into a model, taken out of it, and silenced for a while."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from deepinv.optim import BaseOptim
from deepinv.optim.optim_iterators import (
    BlindRLIteration,
    BSREMIteration,
    MLEMIteration,
    OSEMIteration,
    SIRTIteration,
)
from deepinv.sampling import DDRM, BaseSampling, DiffPIR, PosteriorDiffusion
from deepinv.unfolded import BaseDEQ, BaseUnfold
from torch import nn

from .. import checks
from . import hooks
from .iterators import JitteredIterator, innermost, without_jitter
from .noise import Jitter, Noise

#: Iterators of deepinv whose step asks the data fidelity for neither a gradient nor a proximal
#: point. A user's own are noticed in the first training pass.
WITHOUT_FIDELITY = (MLEMIteration, OSEMIteration, BSREMIteration, SIRTIteration, BlindRLIteration)
#: Reconstructors that draw samples without gradients, and so are not trained.
SAMPLERS = (BaseSampling, DDRM, DiffPIR, PosteriorDiffusion)


def jitter(model: nn.Module, sigma: Noise, at: str | Iterable[str] | None = None) -> nn.Module:
    r"""
    Add noise to a network in training, in place.

    Without ``at``, ``model`` is one of deepinv's unrolled models, :class:`deepinv.optim.BaseOptim`,
    or holds one, as the model that ``adapt_model`` of a self-supervised loss returns. In training
    mode every iteration then adds fresh noise to the gradient of the data fidelity: for GD and PGD
    the paper's SGD and SPGD jittering, for FISTA, MD and PMD our extension. Where an algorithm
    takes a proximal step on the data fidelity (HQS, ADMM, DRS, PDCP), the noise tilts that step,
    our extension, too. Your own iterators work if they ask their data fidelity for either.

    With ``at``, ``model`` is any network, and noise is added to what the named submodules return.
    Their calls are numbered from 0 in every forward pass of ``model``; that number is the
    iteration, for one level per iteration. They are noisy wherever they are called.

    In evaluation mode the output is that without jitter, bit for bit. Parameters and ``state_dict``
    do not change. A second call replaces the first.

    :param torch.nn.Module model: a network; without ``at``, built with ``unfold=True``.
    :param float, Iterable[float], GaussianJitter sigma: noise level, one number or one per
        iteration, as a per-entry standard deviation in the unit of the data-fidelity gradient, or
        with ``at`` in that of the submodules' outputs; or a :class:`GaussianJitter`.
    :param str, Iterable[str], None at: names of submodules, as in ``model.named_modules()``, with
        wildcards as in ``fnmatch`` that stay between the dots: ``"backbone.*"`` names
        ``backbone.0`` and not ``backbone.0.conv``. Default: ``None``.
    :return: (:class:`torch.nn.Module`) ``model``.
    :raises TypeError: if ``model`` is not a module, or is a :class:`torch.nn.DataParallel`; without
        ``at``, if it neither is nor holds a :class:`deepinv.optim.BaseOptim`, or its algorithm has
        no place for noise; in the first training pass, if that is found for an iterator or
        submodule of your own.
    :raises ValueError: if it holds several unrolled models; if its model is not unrolled or uses
        DEQ, Anderson acceleration, backtracking or early stopping; if a level is negative or not
        finite, if there are several levels but not one per iteration, or if ``at`` names nothing.
    :raises RuntimeError: in a training pass, if no submodule named by ``at`` was called.

    |sep|

    :Examples:

    >>> import deepinv as dinv, deepinv_jitter as dj
    >>> model = dinv.optim.PGD(
    ...     data_fidelity=dinv.optim.L2(), prior=dinv.optim.PnP(dinv.models.MedianFilter()),
    ...     stepsize=0.5, max_iter=10, unfold=True, trainable_params=["stepsize"])
    >>> model = dj.jitter(model, sigma=0.1)
    >>> model.fixed_point.iterator.jitter
    Jitter(GaussianJitter(sigma=0.1, scale='std'))
    >>> varnet = dj.jitter(dinv.models.VarNet(num_cascades=3), 0.1, at="backbone_net.*.denoiser")
    """
    checks.instance("model", model, nn.Module, "torch.nn.Module")
    if any(isinstance(m, nn.DataParallel) for m in model.modules()):
        raise TypeError(
            "jitter needs a model without DataParallel, whose copies would share one noise: use "
            "DistributedDataParallel, around the jittered model."
        )
    if at is not None:
        submodules, noise = hooks.named(model, at), Jitter(sigma).noise
        if noise.scale == "official":
            raise ValueError(
                "scale='official' reproduces the paper's GD and PGD networks, and has no meaning "
                "for the outputs of submodules: use 'std', 'norm' or 'relative'."
            )
        hooks.OutputJitter(noise, unjitter(model), submodules)
        return model
    unrolled = _unrolled(model)
    iterator = jittered(unrolled, sigma)
    unjitter(model)
    unrolled.fixed_point.iterator = iterator
    return model


def jittered(model: BaseOptim, sigma: Noise) -> JitteredIterator:
    """The iterator that would make an unrolled model jittered; the model is left unchanged."""
    inner = innermost(model.fixed_point.iterator)
    algorithm = type(inner).__name__.removesuffix("Iteration")
    if type(inner) in WITHOUT_FIDELITY:
        raise TypeError(
            f"{algorithm} has no place for jitter, since its step asks the data fidelity for "
            "neither a gradient nor a proximal point: use one that does, such as PGD."
        )
    # With these the steps would depend on the noise in ways that no equation describes
    options = {
        "unfold=False": not (model.unfold or isinstance(model, BaseUnfold)),
        "DEQ": model.DEQ or isinstance(model, BaseDEQ),
        "anderson_acceleration": model.anderson_acceleration_config is not None,
        "backtracking": model.backtracking,
        "early_stop": model.early_stop,
    }
    unwanted = [option for option, used in options.items() if used]
    if unwanted:
        raise ValueError(
            "jitter is for models that are trained through a fixed number of iterations, got "
            f"{type(model).__name__} with {' and '.join(unwanted)}: build its algorithm, "
            f"{algorithm}, with unfold=True, without DEQ, acceleration, backtracking and early "
            "stop."
        )
    iterator = JitteredIterator(without_jitter(model.fixed_point.iterator), sigma)
    checks.per_iteration("sigma", len(iterator.jitter.noise.sigma), model.max_iter)
    return iterator


def unjitter(model: nn.Module) -> nn.Module:
    r"""
    Undo :func:`jitter`, in place.

    A layer :class:`Jitter` that is part of a network stays.

    :param torch.nn.Module model: a jittered model; one without jitter is left unchanged.
    :return: (:class:`torch.nn.Module`) ``model``.
    :raises TypeError: if ``model`` is not a module.

    |sep|

    :Examples:

    >>> import deepinv as dinv, deepinv_jitter as dj
    >>> model = dinv.optim.GD(
    ...     prior=dinv.optim.Tikhonov(), unfold=True, trainable_params=["stepsize"], max_iter=3)
    >>> type(dj.unjitter(dj.jitter(model, 0.1)).fixed_point.iterator).__name__
    'GDIteration'
    """
    checks.instance("model", model, nn.Module, "torch.nn.Module")
    hooks.remove(model)
    for unrolled in [m for m in model.modules() if isinstance(m, BaseOptim)]:
        unrolled.fixed_point.iterator = without_jitter(unrolled.fixed_point.iterator)
    return model


@contextmanager
def no_jitter(module: nn.Module) -> Iterator[nn.Module]:
    r"""
    Silence every :class:`Jitter` below a module, whatever its mode.

    It reaches through wrappers, such as ``DistributedDataParallel`` and the models that a deepinv
    loss adapts.

    :param torch.nn.Module module: a model, or anything that holds one.
    :return: a context manager which yields ``module``.
    :raises TypeError: if ``module`` is not a module.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> physics = dinv.physics.Denoising()
    >>> model = dj.UnfoldedGD(dj.PointMLP(), max_iter=3, jitter=0.1)
    >>> y = torch.randn(4, 2)
    >>> with dj.no_jitter(model):
    ...     print(torch.equal(model(y, physics), model(y, physics)))
    True
    """
    checks.instance("module", module, nn.Module, "torch.nn.Module")
    enabled = [layer for layer in hooks.layers(module) if layer.enabled]
    try:
        for layer in enabled:
            layer.enabled = False
        yield module
    finally:
        for layer in enabled:
            layer.enabled = True


def _unrolled(model: nn.Module) -> BaseOptim:
    """The unrolled model that a model is or holds."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, BaseOptim)}
    # One inside another, for example as its denoiser, is part of that
    inner = {m for outer in found.values() for m in list(outer.modules())[1:]}
    outer = {name: m for name, m in found.items() if m not in inner}
    if not outer:
        name = type(model).__name__
        if isinstance(model, SAMPLERS):
            raise TypeError(
                f"jitter is for networks that are trained, but {name} draws samples without "
                "gradients: unroll its denoiser, for example by UnfoldedPGD(denoiser)."
            )
        raise TypeError(
            f"jitter needs a deepinv.optim.BaseOptim (GD, PGD, ...) or a model that holds one, "
            f"got {name}: say by at='...' which submodules' outputs get the noise. "
            f"{hooks.candidates(model)}"
        )
    if len(outer) > 1:
        raise ValueError(
            f"jitter needs one unrolled model, but this {type(model).__name__} holds several, "
            f"{', '.join(outer)}: call jitter on each that is to be noisy."
        )
    return next(iter(outer.values()))
