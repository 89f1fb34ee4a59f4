r"""
How often a GPU is waited for
=============================

``python examples/benchmarks/copies.py`` counts the copies between the memories of a GPU and of the
host, by training step, by pass of a network and by attack, and prints a table. Each copy to the
host (``item``, ``tolist``, an ``if`` about a tensor, boolean indices) waits for all work queued
before, so that the GPU runs out of it.

No GPU is needed: a device is pretended, whose tensors hold their values on the CPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeAlias
from unittest import mock

import deepinv as dinv
import torch
from cases import Case
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader

import deepinv_jitter as dj
from deepinv_jitter.evaluation.tables import markdown

aten = torch.ops.aten
Counts: TypeAlias = tuple[int, int]  # copies to the host, and from it
BY_INDEX = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
#: Instead of views that are conjugate or negative, of whose marks a wrapper knows nothing.
PHYSICAL = {
    aten._conj.default: aten._conj_physical.default,
    aten._neg_view.default: aten.neg.default,
}
NORM = aten.linalg_vector_norm.default
DOUBLE = (torch.float64, torch.complex128)


class Far(torch.Tensor):
    """A tensor on the pretended device."""

    @staticmethod
    def __new__(cls, held: torch.Tensor, device: torch.device):
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, dtype=held.dtype, device=device, **layout
        )

    def __init__(self, held: torch.Tensor, device: torch.device):
        self.held = held

    @property
    def data(self):
        """torch's own setter would leave the values behind."""
        return self.detach()

    @data.setter
    def data(self, other: Far) -> None:
        self.held = other.held

    def tolist(self):
        """torch's own is for no subclass."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return PretendedDevice.active(function, types, args, kwargs)


class PretendedDevice(TorchDispatchMode):
    r"""
    A context in which the meta device holds values, as a GPU does, and copies are counted.

    As on a GPU, tensors here and there do not go together, but for single numbers of the CPU, nor
    do a generator there and a tensor here. As on GPUs of Apple, there is no double precision, and
    there are no norms of complex numbers.
    """

    #: What tensors ask that are used after the context has been left.
    active: Callable

    def __init__(self) -> None:
        super().__init__()
        self.device = torch.device("meta")
        self.copies: Counter[str] = Counter()

    def __enter__(self):
        PretendedDevice.active = self.__torch_dispatch__
        return super().__enter__()

    def count(self, function: Callable[[], object]) -> Counts:
        """Copies to the host, and from it, in a call."""
        self.copies.clear()
        function()
        return self.copies["to the host"], self.copies["from the host"]

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        far = [isinstance(t, Far) for t in tensors]
        asked = kwargs.get("device")
        here = any(far) if asked is None else torch.device(asked) == self.device
        if function in (aten._to_copy.default, aten.copy_.default):
            # copy_ writes to the first of two
            source, target = far[-1], here if function is aten._to_copy.default else far[0]
            if source != target:
                self.copies["from the host" if target else "to the host"] += 1
        elif any(far) and any(t.ndim for t, known in zip(tensors, far, strict=True) if not known):
            raise RuntimeError(f"{function} of tensors on {self.device} and on the CPU")
        elif any(far) and function is NORM and any(t.is_complex() for t in tensors):
            raise RuntimeError(f"there are no complex norms on {self.device}")
        if function in BY_INDEX and any(far):
            boolean = [i for i in args[1] if i is not None and i.dtype == torch.bool]
            self.copies["to the host"] += len(boolean)
        if here and kwargs.get("generator") is not None:
            raise RuntimeError(f"{function} on {self.device} by a generator on the CPU")
        if here and asked is not None:
            kwargs["device"] = torch.device("cpu")
        if any(far):
            function = PHYSICAL.get(function, function)
        near_args, near_kwargs = tree_map(_near, (args, kwargs))
        out = function(*near_args, **near_kwargs)
        if any(far) and (function is aten.nonzero.default or isinstance(out, (bool, int, float))):
            self.copies["to the host"] += 1
        if not here:
            return out
        known = {id(t.held): t for t in tensors if isinstance(t, Far)}
        return tree_map(lambda value: self._far(value, known), out)

    def _far(self, value: Any, known: dict[int, torch.Tensor]) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if value.dtype in DOUBLE:
            raise TypeError(f"there is no double precision on {self.device}")
        # What is changed in place stays the same tensor
        return known[id(value)] if id(value) in known else Far(value, self.device)


def _near(value: Any) -> Any:
    if isinstance(value, Far):
        return value.held
    return value


@contextmanager
def pretended() -> Iterator[PretendedDevice]:
    """The device; what in torch and deepinv does not know it is told."""

    def seen(make: Callable) -> Callable:
        """torch's own makes tensors where no mode sees them."""

        def tensor(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
            if isinstance(data, Far):
                return make(data, device=device, **options)
            place = torch.empty(0).device if device is None else device
            return make(data, device="cpu", **options).to(place)

        return tensor

    precision = {"get_autocast_context": lambda self: nullcontext()}
    with (
        mock.patch.object(torch, "tensor", seen(torch.tensor)),
        mock.patch.object(torch, "as_tensor", seen(torch.as_tensor)),
        mock.patch.multiple(dinv.Trainer, **precision),
        PretendedDevice() as device,
    ):
        yield device


CASES = {
    "sections": Case(name="sections", kind="seismic", size=(16, 12), batch=4, depth=3, width=8),
    "MRI": Case(name="MRI", kind="mri", size=(16, 12), batch=4, depth=3, width=8),
}
BALL = dj.L2Ball(1.0)
NOISE = dj.L2Ball(1.0, relative_to="noise")
FAST: dict[str, Any] = {"steps": 3, "keep": "last", "checks": False}
ATTACKS: dict[str, Callable[[int], dj.Attack]] = {
    "PGDAttack": lambda n: dj.PGDAttack(BALL, steps=n, checks=False),
    "PGDAttack, LinfBall": lambda n: dj.PGDAttack(dj.LinfBall(0.1), steps=n, checks=False),
    "PGDAttack, a radius relative to the noise": lambda n: dj.PGDAttack(
        NOISE, steps=n, checks=False
    ),
    "APGDAttack": lambda n: dj.APGDAttack(BALL, steps=n, checks=False),
    "FrankWolfeAttack": lambda n: dj.FrankWolfeAttack(BALL, steps=n, checks=False),
    "MomentumAttack, from a wider ball": lambda n: dj.MomentumAttack(
        BALL, steps=n, widen=2, checks=False
    ),
}
TRAINERS: dict[str, tuple[type[dinv.Trainer], dict]] = {
    "deepinv.Trainer": (
        dinv.Trainer,
        {"compute_train_metrics": False, "non_blocking_transfers": False},
    ),
    "JitterTrainer": (dj.JitterTrainer, {}),
    "JitterTrainer, ema": (dj.JitterTrainer, {"ema": 0.99}),
    "InputJitterTrainer": (dj.InputJitterTrainer, {"sigma": 0.1}),
    "AttackTrainer": (dj.AttackTrainer, {"attack": dj.FrankWolfeAttack(BALL, **FAST)}),
    "AttackTrainer, persistent": (
        dj.AttackTrainer,
        {"attack": dj.FrankWolfeAttack(BALL, **FAST), "persistent": True},
    ),
    "RobustTrainer": (
        dj.RobustTrainer,
        {"attack": dj.FrankWolfeAttack(BALL, **FAST), "sigma": 0.1},
    ),
}


def problem(
    case: Case, device: str = "meta"
) -> tuple[torch.Tensor, torch.Tensor, dinv.physics.Physics]:
    """Truths, measurements and a physics with noise, on the pretended device or another."""
    physics = case.physics()
    physics.noise_model = dinv.physics.GaussianNoise(0.05)
    physics.to(device)
    x = case.truth().to(device)
    return x, physics.A(x), physics


def model_of(case: Case, device: str = "meta", **options) -> dj.UnfoldedGD:
    return case.model(**{"max_iter": 2} | options).to(device)


def trainer_of(name: str, case: Case, batches: int, device: str = "meta") -> dinv.Trainer:
    """A trainer of an epoch, on the pretended device if no other is named."""
    trainer, options = TRAINERS[name]
    model = model_of(case, device, jitter=0.1)
    x = torch.cat([case.truth()] * batches)
    data = dj.IndexedDataset(dinv.datasets.TensorDataset(x=x, use_dict_output=True))
    return trainer(
        model,
        problem(case, device)[2],
        torch.optim.Adam(model.parameters()),
        DataLoader(data, batch_size=case.batch),
        online_measurements=True,
        epochs=1,
        device=device,
        save_path=None,
        verbose=False,
        **options,
    )


def normalized(case: Case, **options) -> dj.UnfoldedGD:
    """A network with buffers that every pass changes."""
    channels = 2 if case.kind == "mri" else 1
    layers = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
    return dj.UnfoldedGD(nn.Sequential(*layers), stepsize=0.5, **options).to("meta")


def of_pass(device: PretendedDevice, case: Case, model: nn.Module) -> Counts:
    """Of a forward and a backward pass."""
    _, y, physics = problem(case)
    return device.count(lambda: model(y, physics).square().sum().backward())


def of_attack(device: PretendedDevice, case: Case, attack: dj.Attack) -> Counts:
    """Of a call of an attack."""
    model, batch = model_of(case), problem(case)
    return device.count(lambda: attack(model, *batch))


def of_round(device: PretendedDevice, case: Case, radius: list[float]) -> Counts:
    """
    Of a round of the converged attack: what a third one adds. A sample of radius 0 has left.
    """
    search = dj.MomentumAttack(dj.L2Ball(torch.tensor(radius)), steps=2, checks=False)
    few, more = (
        of_attack(device, case, dj.ConvergedAttack(search, tolerance=1e-9, max_steps=n))
        for n in (8, 16)
    )
    return more[0] - few[0], more[1] - few[1]


def of_step(device: PretendedDevice, case: Case, name: str) -> Counts:
    """Of a step of a trainer: what two more of them add."""
    few, more = (device.count(trainer_of(name, case, n).train) for n in (1, 3))
    return (more[0] - few[0]) // 2, (more[1] - few[1]) // 2


def rows(device: PretendedDevice, case: Case) -> Iterator[tuple[str, int, int]]:
    """All that is counted."""
    jittered: dict[str, Any] = {"jitter": 0.1, "max_iter": 5}
    passes = {
        "": model_of(case, **jittered),
        ", checkpoint=True": model_of(case, checkpoint=True, **jittered),
        ", checkpoint=True, batch normalisation": normalized(case, checkpoint=True, **jittered),
    }
    for words, model in passes.items():
        yield f"forward and backward pass, K=5{words}", *of_pass(device, case, model)
    for name, attack in ATTACKS.items():
        yield f"{name}, any number of steps", *of_attack(device, case, attack(5))
    draws = dj.RandomAttack(BALL, samples=10, checks=False)
    yield "RandomAttack, 10 draws", *of_attack(device, case, draws)
    for words, radius in (("all samples", [1.0] * 4), ("half of them", [1.0, 1.0, 0.0, 0.0])):
        yield f"ConvergedAttack, a round of {words}", *of_round(device, case, radius)
    for name in TRAINERS:
        yield f"step of {name}", *of_step(device, case, name)


def main() -> None:
    with pretended() as device:
        counted = [*rows(device, CASES["sections"])]
    print(markdown([["what", "copies to the host", "from the host"], *counted]))


if __name__ == "__main__":
    main()
