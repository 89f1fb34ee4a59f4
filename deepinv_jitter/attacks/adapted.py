r"""Networks that self-supervised losses of deepinv have adapted, and their gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from deepinv.loss import SplittingLoss
from deepinv.loss.r2r import R2RModel
from torch import nn
from torch.overrides import TorchFunctionMode

from ..memory import modules

#: In evaluation mode they average the network over masks or noise, under ``no_grad``.
ADAPTERS = (SplittingLoss.SplittingModel, R2RModel)


class _GradientsStayOn(TorchFunctionMode):
    """``no_grad`` does nothing while an adapter runs, and works in the networks that it calls."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[bool] = []
        self.active = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch._C._set_grad_enabled and args == (False,):
            return None
        return func(*args, **(kwargs or {}))

    def adapter_begins(self, *_) -> None:
        self._run([*self.running, torch.is_grad_enabled()])

    def network_begins(self, *_) -> None:
        self._run([*self.running, False])

    def ends(self, *_) -> None:
        self._run(self.running[:-1])

    def _run(self, running: list[bool]) -> None:
        self.running, wanted = running, bool(running and running[-1])
        if wanted and not self.active:
            self.__enter__()
        if self.active and not wanted:
            self.__exit__(None, None, None)
        self.active = wanted


@contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    r"""
    Adapted networks, in the model or the model itself, have gradients where the caller wants some.
    What the network that was adapted turns off stays off.
    """
    mode = _GradientsStayOn()
    with ExitStack() as stack:
        for adapter in [m for m in modules(model) if isinstance(m, ADAPTERS)]:
            begins = {adapter: mode.adapter_begins, adapter.model: mode.network_begins}
            for module, hook in begins.items():
                stack.callback(module.register_forward_pre_hook(hook).remove)
                stack.callback(module.register_forward_hook(mode.ends, always_call=True).remove)
        yield
