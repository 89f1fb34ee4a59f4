r"""Many small models trained as one, such as a sweep over noise levels."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Sequence
from types import FunctionType, MethodType

import torch
from deepinv.optim import BaseOptim
from deepinv.physics import Physics
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from .. import checks
from ..optim.iterators import JitteredIterator
from ..optim.jittering import jitter, unjitter
from ..optim.noise import GaussianJitter, Jitter

# What every module has: its parts, which are compared by themselves, and its mode
OWN = set(vars(nn.Module()))


class Ensemble(nn.Module):
    r"""
    Unrolled models that differ in their weights and in the level of their jitter, run as one.

    A small model spends its time on starting operations: 32 of the paper's models of points at once
    take a fraction of the time of 32 one after the other, and give the same results to rounding,
    provided that every model's noise has a ``generator`` of its own. The weights are stacked along
    a new first dimension, so that an optimizer that acts on every entry by itself (SGD, Adam)
    trains each model as it would alone.

    :param Sequence[deepinv.optim.BaseOptim] models: models that differ in nothing but the values of
        their weights and buffers, and the level and generator of their jitter; some may have none.
        On the device and of the type they are to run in; left as they are until :meth:`unstack`.
    :raises TypeError: if something in ``models`` is not a :class:`deepinv.optim.BaseOptim`.
    :raises ValueError: if ``models`` is empty, or two of them differ in anything else, such as
        their data fidelity, an activation, the start of the iterations or the scale of the noise;
        if they hold another noise than that of their iterations.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> levels = [0.0, 0.1, 0.2]
    >>> models = [
    ...     dj.UnfoldedGD(dj.PointMLP(), stepsize=0.5, max_iter=5, jitter=dj.GaussianJitter(
    ...         level, generator=torch.Generator().manual_seed(0))) for level in levels]
    >>> ensemble = dj.Ensemble(models)
    >>> physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    >>> x = torch.zeros(3, 50, 2)  # 3 models, 50 points
    >>> optimizer = torch.optim.Adam(ensemble.parameters(), lr=1e-3)
    >>> loss = (ensemble(physics(x), physics) - x).square().flatten(1).mean(1)
    >>> loss.sum().backward()
    >>> optimizer.step()
    >>> trained = ensemble.unstack()
    """

    def __init__(self, models: Sequence[BaseOptim]):
        super().__init__()
        if not isinstance(models, Iterable):
            raise TypeError(
                f"models must be a list of models, got {type(models).__name__}."
            )
        models = list(models)
        for model in models:
            _check(model)
        plain = [unjitter(copy.deepcopy(model)) for model in models]
        _check_alike(plain)
        layers = {str(m): _layer(model) for m, model in enumerate(models)}
        self.jitters = nn.ModuleDict({m: v for m, v in layers.items() if v is not None})
        parameters, buffers = stack_module_state(plain)
        self._names = list(parameters), list(buffers)
        # A list of parameters alone would make all of them trainable
        self._weights = nn.ParameterList(
            nn.Parameter(p.detach(), p.requires_grad) for p in parameters.values()
        )
        kept = plain[0].state_dict()
        for i, (name, stacked) in enumerate(buffers.items()):
            self.register_buffer(f"_state{i}", stacked, persistent=name in kept)
        self._noise = _StackedNoise(_common_scale(self.jitters.values()))
        # In tuples, which a module does not look into: only what is stacked is trained and saved
        self._skeleton = (jitter(plain[0], self._noise),)
        self._models = tuple(models)
        self.train(models[0].training)

    def forward(self, y: torch.Tensor, physics: Physics) -> torch.Tensor:
        r"""
        Run every model on its measurements.

        :param torch.Tensor y: measurements, shape `(M, B, ...)` for `M` models.
        :param deepinv.physics.Physics physics: the physics of all of them.
        :return: (:class:`torch.Tensor`) reconstructions, shape `(M, B, ...)`.
        :raises TypeError: if ``y`` is no tensor of real or complex numbers.
        :raises ValueError: if the first dimension of ``y`` is not the number of models.
        """
        checks.tensor("y", y)
        if len(y) != len(self._models):
            raise ValueError(
                f"y must hold the measurements of each of the {len(self._models)} models, got "
                f"shape {tuple(y.shape)}: y.expand({len(self._models)}, ...) shows all of them "
                "the same."
            )
        (skeleton,) = self._skeleton
        skeleton.train(self.training)
        names, states = self._names
        weights = dict(zip(names, self._weights, strict=True))
        buffers = dict(zip(states, self._states(), strict=True))

        def run(weights, buffers, y, noise):
            self._noise.drawn = noise
            # The host registers its step sizes twice, which torch would not restore if tied
            state, arguments = (weights, buffers), (y, physics)
            return functional_call(skeleton, state, arguments, tie_weights=False)

        start = vmap(lambda y: skeleton.init_iterate_fn(y, physics)["est"][0])(y)
        noise = self._draw(start.detach(), skeleton.max_iter)
        return vmap(run, in_dims=(0, 0, 0, 1))(weights, buffers, y, noise)

    def unstack(self) -> list[BaseOptim]:
        r"""
        Write the weights and buffers back into the models.

        :return: (:class:`list`) the models the ensemble was made of, with their new weights.
        """
        with torch.no_grad():
            for m, model in enumerate(self._models):
                own = itertools.chain(model.parameters(), model.buffers())
                stacks = itertools.chain(self._weights, self._states())
                for tensor, stacked in zip(own, stacks, strict=True):
                    tensor.copy_(stacked[m])
        return list(self._models)

    def _states(self) -> list[torch.Tensor]:
        """The stacked buffers."""
        return [getattr(self, f"_state{i}") for i in range(len(self._names[1]))]

    def clip_grad_norm_(self, max_norm: float) -> torch.Tensor:
        r"""
        Clip the gradient of every model by itself, as :func:`torch.nn.utils.clip_grad_norm_` does.

        :param float max_norm: largest norm.
        :return: (:class:`torch.Tensor`) norms before, shape `(M,)`.
        :raises TypeError: if ``max_norm`` is no number.
        :raises ValueError: if it is negative or not finite, or there are no gradients.
        """
        max_norm = checks.number("max_norm", max_norm, low=0)
        gradients = [w.grad for w in self._weights if w.grad is not None]
        if not gradients:
            raise ValueError(
                "gradients must be there to be clipped: call backward first."
            )
        norms = torch.stack(
            [g.reshape(len(g), -1).norm(dim=1) for g in gradients]
        ).norm(dim=0)
        factors = (max_norm / (norms + 1e-6)).clamp(max=1)
        for g in gradients:
            g.mul_(factors.reshape(-1, *(1,) * (g.ndim - 1)))
        return norms

    def _draw(self, x: torch.Tensor, steps: int) -> torch.Tensor:
        """The noise of every iteration and model for its level, shape `(K, M, B, ...)`."""
        noise = x.new_zeros(steps, *x.shape)
        for k, (m, layer) in itertools.product(range(steps), self.jitters.items()):
            if layer.is_on(k):
                own, own_noise = x[int(m)], layer.noise
                drawn = own_noise.standard_normal(own)
                noise[k, int(m)] = own_noise.level(own, k) * drawn
        return noise


class _StackedNoise(GaussianJitter):
    """The noise of an ensemble: it has been drawn, and multiplied by its level, before."""

    def __init__(self, scale: str):
        super().__init__(1.0, scale)
        self.drawn = None

    def __call__(self, x, k=0, data_step=None):
        self.k = k
        return super().__call__(x, k, data_step)

    def standard_normal(self, x):
        return self.drawn[self.k]


def _layer(model: BaseOptim) -> Jitter | None:
    """A layer with the noise model of a model's iterations."""
    iterator = model.fixed_point.iterator
    noisy = isinstance(iterator, JitteredIterator)
    return Jitter(iterator.jitter.noise) if noisy else None


def _common_scale(layers: Iterable[Jitter]) -> str:
    scales = {layer.noise.scale for layer in layers}
    if len(scales) > 1:
        raise ValueError(
            f"the jitter of all models must have one scale, got {sorted(scales)}."
        )
    return scales.pop() if scales else "std"


def _check(model: BaseOptim) -> None:
    if not isinstance(model, BaseOptim):
        raise TypeError(
            "models must be unrolled deepinv models (GD, PGD, ...), got "
            f"{type(model).__name__}."
        )
    layers = [m for m in model.modules() if isinstance(m, Jitter)]
    iterator = model.fixed_point.iterator
    if layers != ([iterator.jitter] if isinstance(iterator, JitteredIterator) else []):
        raise ValueError(
            "models must have no other noise than that of their iterations, got a Jitter layer: "
            "an ensemble draws the noise of all models before they run."
        )


def _check_alike(models: Sequence[BaseOptim]) -> None:
    if not models:
        raise ValueError("models must hold at least one model, got none.")
    for i, model in enumerate(models[1:], 1):
        difference = _difference(models[0], model)
        if difference:
            raise ValueError(
                "models must be alike but for the values of weights and buffers and the level of "
                f"the jitter, but 0 and {i} differ in {difference}: build them by one function."
            )
    places = {
        (id(p), id(m), n) for m in models[0].modules() for n, p in m._parameters.items()
    }
    if len(places) > len({place[0] for place in places}):
        raise ValueError(
            "models must not share a weight between two layers: an ensemble would train only "
            "one of the two."
        )


def _difference(model: nn.Module, other: nn.Module) -> str | None:
    """Where two models differ in what an ensemble takes from the first alone."""
    pairs = itertools.zip_longest(
        model.named_modules(), other.named_modules(), fillvalue=("", None)
    )
    for (name, a), (name_b, b) in pairs:
        if name != name_b or type(a) is not type(b):
            return f"{name or name_b}, {type(a).__name__} and {type(b).__name__}"
        for key in sorted((vars(a).keys() | vars(b).keys()) - OWN):
            values = vars(a).get(key), vars(b).get(key)
            if not _alike(*values, set()):
                return (
                    f"{name}.{key}".lstrip(".") + f", {values[0]!r} and {values[1]!r}"
                )
        for kind in ("_parameters", "_buffers"):
            kinds = [
                {n: _kind(tensor) for n, tensor in getattr(m, kind).items()}
                for m in (a, b)
            ]
            if kinds[0] != kinds[1]:
                return f"shape, type, device or requires_grad of {kind[1:]} of {name}"
    return None


def _kind(tensor: torch.Tensor | None) -> tuple:
    if tensor is None:
        return ()
    return tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad


def _alike(a: object, b: object, seen: set[tuple[int, int]]) -> bool:
    """Whether two values are the same, or were made in the same way from the same."""
    if a is b or (id(a), id(b)) in seen:
        return True
    if type(a) is not type(b):
        return False
    seen.add((id(a), id(b)))
    if isinstance(a, torch.Tensor):
        return _kind(a) == _kind(b) and torch.equal(a, b)
    if isinstance(a, nn.Module):
        return _difference(a, b) is None
    if isinstance(a, dict):
        return list(a) == list(b) and all(_alike(a[k], b[k], seen) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(
            _alike(v, w, seen) for v, w in zip(a, b, strict=True)
        )
    if isinstance(a, MethodType):  # of the model, or of an object of its own
        return _alike(a.__func__, b.__func__, seen)
    if isinstance(a, FunctionType):
        cells = [[c.cell_contents for c in f.__closure__ or ()] for f in (a, b)]
        parts = [(f.__code__, f.__defaults__, cells[i]) for i, f in enumerate((a, b))]
        return _alike(*parts, seen)
    if isinstance(a, torch.Generator):
        return True
    if type(a).__eq__ is object.__eq__ and hasattr(a, "__dict__"):
        return _alike(vars(a), vars(b), seen)
    return bool(a == b)
