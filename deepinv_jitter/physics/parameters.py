r"""Parameters of a physics: numbers, known by name, one for all images or one for each."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from deepinv.physics import LinearPhysics, NoiseModel, ZeroNoise

# Parameters of deepinv's noise models that may be one number per image
LEVELS = ("sigma", "gain")


class OwnParameters(LinearPhysics):
    r"""
    A linear physics that knows its parameters: it refuses those that it does not have and those of
    another batch, and it shares none with its caller. deepinv passes over the former without a
    word, broadcasts the second and keeps the caller's own noise levels. As a part of stacked or
    composed physics it passes over those of the other parts, as deepinv hands all to each.
    """

    def update(self, **parameters) -> None:
        r"""
        Replace parameters of the operator or of its noise model for good, by copies.

        :param parameters: by name, such as those that a physics generator draws.
        :raises TypeError: if there is no parameter of that name.

        Other errors are those of ``update_parameters``.
        """
        self._check_known(parameters)
        super().update(**_copied(parameters))

    def forward(self, x: torch.Tensor, **parameters) -> torch.Tensor:
        r"""
        Measure.

        :param torch.Tensor x: images.
        :param parameters: of the operator or of its noise model, which keep them.
        :return: (:class:`torch.Tensor`) measurements.
        :raises TypeError: if there is no parameter of that name.
        """
        self._check_known(parameters)
        return super().forward(x, **parameters)

    def _check_known(self, parameters: dict) -> None:
        noise = self.noise_model
        call: Any = getattr(noise, "forward", noise)
        for name in (n for n, value in parameters.items() if value is not None):
            # What can be called is a method or a part, not a parameter
            known = not all(callable(getattr(m, name, len)) for m in (self, noise))
            if not known and name not in inspect.signature(call).parameters:
                there = {path.rpartition(".")[2] for path in self.state_dict()}
                raise TypeError(
                    f"there is no parameter {name!r} of {type(self).__name__} or of its noise "
                    f"model, {type(noise).__name__}: give one of "
                    f"{sorted(there - {'initial_random_state'})}, or another noise_model to begin "
                    "with."
                )

    def noise(self, x: torch.Tensor, **parameters) -> torch.Tensor:
        r"""
        Add the noise.

        :param torch.Tensor x: measurements without noise.
        :param parameters: of the noise model, which keeps them.
        :return: (:class:`torch.Tensor`) measurements, of the same shape.
        :raises ValueError: if there are several noise levels but not one per image.
        """
        for name in LEVELS:
            level = parameters.get(name, getattr(self.noise_model, name, None))
            if isinstance(level, torch.Tensor) and level.ndim:
                check_count(name, level, x)
        y = super().noise(x, **_copied(parameters))
        if y.shape != x.shape:
            raise ValueError(
                f"noise must have the shape of the measurements, {tuple(x.shape)}, got "
                f"{tuple(y.shape)}: give the noise model parameters for this batch, by update()."
            )
        return y


def checked_noise(model: NoiseModel | None) -> NoiseModel:
    """The noise model, by default none of its own: the host's is one object for every physics."""
    if model is None:
        return ZeroNoise()
    if isinstance(model, type) or not callable(model):
        raise TypeError(
            f"noise_model must be one of deepinv's, got {model!r}: for example "
            "deepinv.physics.GaussianNoise(0.1)."
        )
    return model


def check_count(name: str, parameter: torch.Tensor, x: torch.Tensor) -> None:
    """One for all images or one for each: another number would multiply the images."""
    if len(parameter) not in (1, len(x)):
        raise ValueError(
            f"there must be one {name} for all or one for each of the {len(x)} images, got "
            f"{len(parameter)} {name}s: give new ones, by a physics_generator, "
            f"by update({name}={name}) or with the batches, as params."
        )


def check_input(name: str, x: torch.Tensor, parameter: str, value: torch.Tensor) -> None:
    """Images or measurements must be a tensor, on the device of a parameter."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor, got {type(x).__name__}: convert them, for example by "
            "torch.as_tensor()."
        )
    if x.device != value.device:
        raise ValueError(
            f"{name} must be on the device of the {parameter}, {value.device}, got {x.device}: "
            "move one by to()."
        )


def as_tensor(name: str, values) -> torch.Tensor:
    """The values as they are; real numbers of numpy's in torch's default type."""
    try:
        if isinstance(values, np.ndarray):
            # torch takes neither reversed arrays nor the byte order of most seismic files; double
            # precision is numpy's default, not the caller's choice
            values = np.array(values, values.dtype.newbyteorder("="), order="C")
            tensor = torch.from_numpy(values)
            floating = tensor.is_floating_point()
            return tensor.to(torch.get_default_dtype()) if floating else tensor
        # as_tensor would move tensors to torch's default device
        return values if isinstance(values, torch.Tensor) else torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        advice = "give its numbers"
        if isinstance(values, Mapping):
            advice = "unpack it, as in update(**params)"
        elif hasattr(values, "step"):
            advice = "draw from it, as in update(**generator.step(batch_size))"
        raise TypeError(
            f"{name} must be a tensor or an array of numbers, got {reprlib.repr(values)}: {advice}."
        ) from error


def _copied(parameters: dict) -> dict:
    return {
        name: value.clone() if isinstance(value, torch.Tensor) else value
        for name, value in parameters.items()
    }
