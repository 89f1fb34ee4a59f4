r"""Noise on what submodules return, for networks that have no deepinv iterator."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch
from torch import nn

from ..memory import DEVICES, device_states, modules
from .noise import GaussianJitter, Jitter, in_backward

#: Where a model keeps its OutputJitter: it is a submodule like others, without weights.
NAME = "_output_jitter"
#: Modules that consist of their children, and would take one more for a layer of their own.
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class OutputJitter(Jitter):
    r"""
    The jitter of submodules of a model, added to what they return by forward hooks.

    Their calls are numbered within each forward pass of the model: that is the iteration :math:`k`.
    """

    def __init__(self, noise: GaussianJitter, model: nn.Module, modules: list[nn.Module]):
        super().__init__(noise)
        self.k = 0
        self.numbers: dict[bytes, int | None] = {}
        # Bound methods of a submodule, so that they are copied with the model
        self.handles = [
            model.register_forward_pre_hook(self.start),
            model.register_forward_hook(self.finish),
            *[module.register_forward_hook(self.add) for module in modules],
        ]
        self.train(model.training)
        holder = next((m for m in model.modules() if not isinstance(m, CONTAINERS)), model)
        holder.add_module(NAME, self)

    def forward(self, x, *args, **kwargs):
        """Its input: the hooks add the noise, and some modules call all their children."""
        return x

    def start(self, model: nn.Module, args: tuple) -> None:
        """Before a forward pass of the model."""
        if not any(module is self for module in model.modules()):
            raise RuntimeError(
                "the submodule that kept the jitter is no longer in the model, so that neither "
                "eval() nor no_jitter would reach the noise: call unjitter before replacing "
                "submodules, and jitter again afterwards."
            )
        self.k = 0
        if not in_backward():
            self.numbers = {}

    # The noise stays outside of a compiled submodule, whose graph could not number the calls
    @torch.compiler.disable
    def add(self, module: nn.Module, args: tuple, output: torch.Tensor):
        """After a call of a submodule."""
        # The submodule's own mode, too: a copy of it may lie outside this layer's model
        if not (self.training and self.enabled and module.training):
            return output
        if not isinstance(output, torch.Tensor):
            raise TypeError(
                "jitter needs submodules that return a tensor, but the "
                f"{type(module).__name__} named by at returned a {type(output).__name__}: name a "
                "submodule of it instead."
            )
        w = self.draw(output, self._number(output))
        return output if w is None else output + w

    def finish(self, model: nn.Module, args: tuple, output: object) -> None:
        """After a forward pass of the model."""
        if self.training and self.enabled and self.k == 0 and not in_backward():
            raise RuntimeError(
                "no submodule named by at was called in training mode in this forward pass of the "
                f"{type(model).__name__}, so that there was no jitter: name submodules that are "
                "called as module(x) and trained."
            )

    def _number(self, output: torch.Tensor) -> int:
        """
        The number of this call within the forward pass, from 0.

        In a part that is repeated in the backward pass, it is the number of the call that found
        the global random generator in its present state.
        """
        if len(self.noise.sigma) == 1:
            self.k += 1
            return 0
        state = _random_state(output.device)
        if in_backward():
            k = self.numbers.get(state)
            if k is None:
                raise RuntimeError(
                    "jitter with several levels cannot tell which call is repeated in the "
                    "backward pass: leave generator=None, run the backward pass before the next "
                    "forward pass and have no level 0, or give one level."
                )
            return k
        k, self.k = self.k, self.k + 1
        first = self.numbers.setdefault(state, k)
        # A call without noise leaves the generator where the next one finds it
        if first is None or self.noise.sigma_at(first) != self.noise.sigma_at(k):
            self.numbers[state] = None
        return k


def layers(module: nn.Module) -> list[Jitter]:
    """The jitter below a module: layers, and those that its submodules have by hooks."""
    found = list(modules(module))
    jitters = [m for m in found if isinstance(m, Jitter)]
    return list(dict.fromkeys(jitters + [j for m in found for j in _owners(m)]))


def remove(model: nn.Module) -> None:
    """Take every OutputJitter out of a model."""
    for module in list(model.modules()):
        layer = dict(module.named_children()).get(NAME)
        if isinstance(layer, OutputJitter):
            for handle in layer.handles:
                handle.remove()
            delattr(module, NAME)


def named(model: nn.Module, at: str | Iterable[str]) -> list[nn.Module]:
    """The submodules, once each, that patterns name as in ``fnmatch``, part by part."""
    patterns = [at] if isinstance(at, str) or not isinstance(at, Iterable) else list(at)
    if not patterns or not all(isinstance(p, str) for p in patterns):
        raise TypeError(
            f"at must be a pattern of names of submodules or a list of such, got {at!r}."
        )
    found: dict[int, nn.Module] = {}
    for pattern in patterns:
        matches = [m for name, m in _submodules(model) if _matches(name, pattern)]
        if not matches:
            raise ValueError(
                f"at must name submodules of the {type(model).__name__}, got {pattern!r}, which "
                f"names none. {candidates(model)}"
            )
        found |= {id(m): m for m in matches}
    own = set(model.modules())
    for module in found.values():
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                "at reaches submodules by hooks, which TorchScript has none of, got a "
                f"{type(module).__name__}: name a module that holds it, or put a Jitter layer "
                "after it."
            )
        if not own.issuperset(_owners(module)):
            raise ValueError(
                f"the {type(module).__name__} named by at is jittered as a part of another "
                "model, and would get two noises: call unjitter on that one first."
            )
    return list(found.values())


def candidates(model: nn.Module) -> str:
    """A sentence that lists the submodules that repeat, the outer ones first."""
    types = defaultdict(list)
    for name, module in _submodules(model):
        pattern = ".".join("*" if part.isdigit() else part for part in name.split("."))
        types[pattern].append(type(module).__name__)
    repeated = [
        f"{pattern!r} ({len(kinds)} {kinds[0]})"
        for pattern, kinds in sorted(types.items(), key=lambda t: t[0].count("."))
        if len(kinds) > 1 and len(set(kinds)) == 1
    ]
    if repeated:
        return f"Candidates that repeat: {', '.join(repeated[:6])}."
    children = [repr(name) for name, _ in model.named_children()]
    return f"Its submodules: {', '.join(children) or 'none'}."


def _submodules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    # A module that is used in several places has several names
    return list(model.named_modules(remove_duplicate=False))[1:]


def _matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _owners(module: nn.Module) -> list[OutputJitter]:
    hooks = module._forward_hooks.values()
    owners = [getattr(hook, "__self__", None) for hook in hooks]
    return [owner for owner in owners if isinstance(owner, OutputJitter)]


def _random_state(device: torch.device) -> bytes:
    states = device_states([device.type]) if device.type in DEVICES else {}
    state = states[device.type][device.index or 0] if states else torch.get_rng_state()
    return state.numpy().tobytes()
