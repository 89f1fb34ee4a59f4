r"""The scores of reconstructions, and where they say nothing."""

from __future__ import annotations

import torch
from deepinv.utils.signals import complex_abs

from .. import checks
from ..attacks.problem import as_function
from .protocol import Protocol, peak_of
from .results import ERROR, OBJECTIVE, UNDEFINED, Columns


class Scores:
    """What the reconstructions of a batch are scored by, those of its measurements beside them."""

    def __init__(self, protocol: Protocol, x: torch.Tensor, x_clean: torch.Tensor):
        self.protocol, self.x, self.x_clean = protocol, x, x_clean
        self.metrics = protocol.metrics_for(x)
        objective = protocol.attack.objective
        self.objective, self.against_clean = as_function(objective)
        #: The column that says how much a perturbation harms
        self.harm = ERROR if isinstance(objective, str) and objective == "error" else OBJECTIVE
        self._check_shape()
        self.undefined = self._undefined(x)

    def harms(self, x_net: torch.Tensor, x: torch.Tensor) -> Columns:
        """Squared error and objective of reconstructions."""
        columns = {ERROR: squared_error(x_net, x)} if alike(x_net, x) else {}
        if self.harm == OBJECTIVE and (x is self.x or not self.against_clean):
            values = self.objective(x_net.clone(), self.x_clean if self.against_clean else x)
            columns[OBJECTIVE] = _one_each("the objective", values, x)
        return columns

    def of(self, x_net: torch.Tensor, x: torch.Tensor) -> Columns:
        """The harms and metrics of reconstructions, and where they say nothing."""
        columns = self.harms(x_net, x)
        for name, metric in self.metrics.items():
            # Of copies: some metrics cut or scale their arguments in place
            values = metric(x_net=x_net.clone(), x=x.clone())
            columns[name] = _one_each(f"metric {name!r}", values, x)
        undefined = self.undefined if x is self.x else self._undefined(x)
        best = self.protocol.best_values(self.metrics, columns)
        for name in self.metrics:
            # Of a perfect reconstruction there is no PSNR, either
            columns[f"{name}{UNDEFINED}"] = undefined[name] | (columns[name] == best[name])
        return columns

    def peak_exceeded(self) -> torch.Tensor:
        """Truths of a larger range than a metric takes them to have."""
        exceeded = torch.zeros(len(self.x), dtype=torch.bool, device=self.x.device)
        for metric in self.metrics.values():
            peak = peak_of(metric)
            if isinstance(peak, float) and metric.norm_inputs is None:
                x = (complex_abs(self.x) if metric.complex_abs else self.x).flatten(1)
                exceeded |= x.amax(1) - x.amin(1) > (1 + 1e-3) * peak
        return exceeded

    def _undefined(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Truths for which a metric has no value, whatever the reconstruction; NMSE, if blank."""
        none = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        if not alike(self.x_clean, x):
            return dict.fromkeys(self.metrics, none)
        return {k: m(x_net=x.clone(), x=x.clone()).isnan() for k, m in self.metrics.items()}

    def _check_shape(self) -> None:
        """Truths of another shape than the reconstruction are for the caller's own metrics."""
        shape, expected = tuple(self.x_clean.shape), tuple(self.x.shape)
        shifts = any(c.shift is not None for c in self.protocol.conditions)
        own = self.harm == OBJECTIVE and self.protocol.metrics is not None and not shifts
        if shape != expected and not (own and shape[:1] == expected[:1]):
            raise ValueError(
                f"the reconstruction must have the shape of x, {expected}, got {shape}: or give "
                "metrics, and an attack with an objective, that bring them together, for the same "
                "samples and without shifts."
            )
        if self.x_clean.is_complex() != self.x.is_complex() and not own:
            raise TypeError(
                "the reconstruction must be complex if x is, and only then, got "
                f"{self.x_clean.dtype} for x of {self.x.dtype}."
            )


def squared_error(x_net: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return (x_net - x).abs().to(checks.widest(x.device)).square().flatten(1).sum(1)


def alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Of one shape, and both real or both complex."""
    return a.shape == b.shape and a.is_complex() == b.is_complex()


def _one_each(name: str, values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    if not isinstance(values, torch.Tensor) or values.shape != (len(x),):
        got = tuple(values.shape) if isinstance(values, torch.Tensor) else values
        raise ValueError(
            f"{name} must give one value per sample, shape ({len(x)},), got {got}: set "
            "reduction=None."
        )
    return values
